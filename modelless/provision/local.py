"""Workers as processes of this machine: they end with the process that started them.

They are forks of one that has done a worker's imports (:mod:`modelless.forking`): a worker's own process never imports
a framework, models run in executor children, which are spawned.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path

from modelless.child import KILLED
from modelless.config import Config
from modelless.forking import Fork, ForkServer, fork_server_command
from modelless.provision import worker_command
from modelless.provision.reconcile import Instance


class LocalProcesses:
    """See :class:`modelless.provision.Provisioner`. ``file``: the configuration's, for the workers."""

    outlived = False
    poll_s = 1.0

    def __init__(self, config: Config, file: Path | None) -> None:
        self.name = f"local-{socket.gethostname()}"
        self.changed = asyncio.Event()
        self._file = file
        self._server = ForkServer(fork_server_command("worker"))
        self._running: dict[str, tuple[Instance, Fork]] = {}
        self._ended: list[Instance] = []
        self._watches: set[asyncio.Task[None]] = set()

    async def instances(self) -> Sequence[Instance]:
        await self._server.start()  # somebody will be needed
        ended, self._ended = self._ended, []
        return [*ended, *(instance for instance, _ in self._running.values())]

    async def start(self, group: str, name: str) -> None:
        asked = {"group": group, "name": name, "file": None if self._file is None else str(self._file)}
        child = await self._server.fork(name, worker_command(group, name, self._file), asked)
        self._running[name] = Instance(name, group), child
        watch = asyncio.create_task(self._watch(name, group, child), name=f"watch {name}")
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)

    async def stop(self, name: str, *, now: bool = False) -> None:
        if name in self._running:
            _, child = self._running[name]
            child.kill() if now else child.ask_to_leave()

    async def close(self) -> None:
        for _, child in self._running.values():
            child.kill()
        await asyncio.gather(*self._watches)
        await self._server.close()

    async def _watch(self, name: str, group: str, child: Fork) -> None:
        how = await child.ended()
        del self._running[name]
        self._ended.append(Instance(name, group, ended=how, was_killed=how == KILLED))
        self.changed.set()

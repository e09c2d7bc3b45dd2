"""Workers as child processes: they end with the process that started them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path

from modelless.child import KILLED, Child
from modelless.config import Config
from modelless.provision import worker_command
from modelless.provision.reconcile import Instance


class LocalProcesses:
    """See :class:`modelless.provision.Provisioner`. ``file``: the configuration's, for the workers."""

    outlived = False
    poll_s = 1.0

    def __init__(self, config: Config, file: Path | None) -> None:
        self.name = f"local-{socket.gethostname()}"
        self.changed = asyncio.Event()
        self._config = config
        self._file = file
        self._running: dict[str, tuple[Instance, Child]] = {}
        self._ended: list[Instance] = []
        self._watches: set[asyncio.Task[None]] = set()

    async def instances(self) -> Sequence[Instance]:
        ended, self._ended = self._ended, []
        return [*ended, *(instance for instance, _ in self._running.values())]

    async def start(self, group: str, name: str) -> None:
        child = Child(name, worker_command(group, name, self._file), self._config.worker.drain_s)
        await child.start()
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

    async def _watch(self, name: str, group: str, child: Child) -> None:
        how = await child.ended()
        del self._running[name]
        self._ended.append(Instance(name, group, ended=how, was_killed=how == KILLED))
        self.changed.set()

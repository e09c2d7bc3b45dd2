"""A fork server: a process that has done its imports, and becomes as many others as it is asked for.

Of what a process of ours needs of a processor until it is up, imports are most: where several start at once, each
waits for the others' to be done. The server imports once and runs nothing, no event loop and no thread of ours; a fork
begins where the imports end, and shares their memory.

Both sides speak over a socket pair, a JSON object a line::

    -> {"name": "cpu-1", "line": ["modelless", "worker", ...], "asked": {...}}    become this one
    -> {"name": "cpu-1", "signal": 15}                        only its parent cannot hit another one of that number
    <- {"name": "cpu-1", "code": 1, "words": "no such device"}                    it ended

Brokers and workers have a server each, as their imports differ. The server goes when the other end is closed, by
whatever, and its forks die with it. :func:`serve` is the server's side, :class:`ForkServer` the other.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import selectors
import shlex
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any, Literal

from modelless.child import KILLED, LAST_WORDS, Child, die_with, how_it_ended, last_words

_DEAF = (signal.SIGINT, signal.SIGTERM)
"""That the server does not hear: whoever ends all processes at once lets forks drain, and they would die with it."""


# --- the server -------------------------------------------------------------------------------------------------------


def serve(sock: socket.socket) -> Mapping[str, Any] | None:
    """Fork when asked to. Returns in each fork, with what was asked of it; in the server at the end, with None.

    Call it with all imports done, before there is a thread.
    """
    gc.collect()
    gc.freeze()
    return _Server(sock).run()


class _Server:
    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._pid = sock, os.getpid()
        self._forks: dict[int, tuple[str, IO[str]]] = {}
        """By process: its name, and where it says why it fails."""
        self._woken, self._wakes = os.pipe()
        for end in (self._woken, self._wakes):
            os.set_blocking(end, False)

    def run(self) -> Mapping[str, Any] | None:
        before = {number: signal.signal(number, signal.SIG_IGN) for number in _DEAF}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)  # so that it wakes us
        signal.set_wakeup_fd(self._wakes)
        buffer = b""
        with selectors.DefaultSelector() as selector:
            for each in (self._sock, self._woken):
                selector.register(each, selectors.EVENT_READ)
            while True:
                selector.select()
                with suppress(BlockingIOError):
                    os.read(self._woken, 4096)
                self._reap()
                with suppress(BlockingIOError):
                    heard = self._sock.recv(1 << 16, socket.MSG_DONTWAIT)
                    if not heard:
                        return None
                    *lines, buffer = (buffer + heard).split(b"\n")
                    for line in lines:
                        message = json.loads(line)
                        if "signal" in message:
                            self._signal(message["name"], message["signal"])
                        elif self._is_fork(message):
                            for number, handler in before.items():
                                signal.signal(number, handler)
                            return dict(message["asked"])

    def _is_fork(self, message: Mapping[str, Any]) -> bool:
        """Whether we are the fork."""
        from setproctitle import setproctitle  # not there where no workers run

        words = tempfile.TemporaryFile("w+")  # noqa: SIM115  (it has no name: nothing stays behind)
        pid = os.fork()
        if pid:
            self._forks[pid] = message["name"], words
            return False
        signal.set_wakeup_fd(-1)
        self._sock.close()
        for end in (self._woken, self._wakes):
            os.close(end)
        for _, others in self._forks.values():
            others.close()
        os.setsid()
        die_with(self._pid)()
        os.environ[LAST_WORDS] = f"/dev/fd/{os.dup(words.fileno())}"
        setproctitle(shlex.join(message["line"]))  # as others (``ps``) see it
        return True

    def _signal(self, name: str, number: int) -> None:
        for pid, (known, _) in self._forks.items():
            if known == name:
                os.kill(pid, number)

    def _reap(self) -> None:
        while self._forks:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            name, words = self._forks.pop(pid)
            told = {"name": name, "code": os.waitstatus_to_exitcode(status), "words": last_words(words)}
            with suppress(OSError):  # nobody is there any more
                self._sock.sendall(json.dumps(told).encode() + b"\n")


# --- who asks it ------------------------------------------------------------------------------------------------------


def fork_server_command(kind: Literal["broker", "worker"], python: str = sys.executable) -> tuple[str, ...]:
    """Command line of what such processes are forked from, without its socket's number."""
    return python, "-m", "modelless", "forks", kind


class Fork:
    """One process that was asked for, as :class:`modelless.child.Child`."""

    def __init__(self, server: ForkServer, name: str) -> None:
        self._server, self._name = server, name
        self._how: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def end(self, how: str) -> None:
        if not self._how.done():
            self._how.set_result(how)

    async def ended(self) -> str:
        return await asyncio.shield(self._how)

    def ask_to_leave(self) -> None:
        self._server.tell({"name": self._name, "signal": signal.SIGTERM})

    def kill(self) -> None:
        self._server.tell({"name": self._name, "signal": signal.SIGKILL})


class ForkServer:
    """Started with ``command`` and the number of its socket, when it is needed and not there."""

    name = "fork server"
    drain_s = 0.0

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)
        self._writer: asyncio.StreamWriter | None = None
        self._child: Child | None = None
        self._forks: dict[str, Fork] = {}
        self._hearing: asyncio.Task[None] | None = None
        self._is_closed = False
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Ahead of the first fork, so that its imports are done by then. Raises OSError when it cannot be started."""
        async with self._starting:
            if self._writer is None and not self._is_closed:
                await self._start()

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = *self._command, str(theirs.fileno())
            self._child = Child(self.name, command, self.drain_s, pass_fds=(theirs.fileno(),))
            await self._child.start()
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._hearing = asyncio.create_task(self._hear(reader, self._child), name="fork server")

    async def fork(self, name: str, line: Sequence[str], asked: Mapping[str, Any]) -> Fork:
        """A process that does what was asked of it under a name that no other one has. Raises OSError.

        Args:
            line: the command line that it shows.
            asked: what :func:`serve` returns in it; as JSON has it.
        """
        await self.start()
        found = self._forks[name] = Fork(self, name)
        self.tell({"name": name, "line": list(line), "asked": dict(asked)})
        return found

    def tell(self, message: Mapping[str, Any]) -> None:
        if self._writer is not None:
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def ended(self) -> str:
        """Wait for its end; how, in words."""
        return "it does not run" if self._child is None else await self._child.ended()

    def ask_to_leave(self) -> None:
        """For good. Its forks that are still there die."""
        self._is_closed = True
        if self._writer is not None:
            self._writer.close()

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()

    async def close(self) -> None:
        """Leave, and wait for that."""
        self.ask_to_leave()
        if self._hearing is not None:
            await self._hearing

    async def _hear(self, reader: asyncio.StreamReader, child: Child) -> None:
        while line := await reader.readline():
            told = json.loads(line)
            self._forks.pop(told["name"]).end(how_it_ended(told["code"], told["words"]))
        assert self._writer is not None
        self._writer.close()
        self._writer = None
        forks, self._forks = self._forks, {}
        how = await child.ended()
        for fork in forks.values():
            fork.end(how if how == KILLED else f"the fork server ended: {how}")


@dataclass(slots=True)
class Forked:
    """What is a fork each time that it is started, as :class:`modelless.child.Child`; see :meth:`ForkServer.fork`."""

    name: str
    server: ForkServer
    line: tuple[str, ...]
    asked: Mapping[str, Any]
    drain_s: float
    _fork: Fork | None = field(default=None, repr=False)

    async def start(self) -> None:
        """Raises OSError when it cannot be started."""
        self._fork = await self.server.fork(self.name, self.line, self.asked)

    async def ended(self) -> str:
        return "it does not run" if self._fork is None else await self._fork.ended()

    def ask_to_leave(self) -> None:
        if self._fork is not None:
            self._fork.ask_to_leave()

    def kill(self) -> None:
        if self._fork is not None:
            self._fork.kill()

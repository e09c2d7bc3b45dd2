"""Child processes that die with their parent, and can say why they ended."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

LAST_WORDS = "MODELLESS_LAST_WORDS"
"""Variable of the environment: the file where a process of ours writes why it ends, when it fails."""
LAST_WORDS_MAX = 1000
KILLED = "killed by SIGKILL"
"""How a part ended that somebody else ended: an operator, or the kernel when memory is short."""
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def leave_word(words: str) -> None:
    """Tell whoever started this process, if it asked to be told, why it fails."""
    if path := os.environ.get(LAST_WORDS):
        with suppress(OSError):
            Path(path).write_text(words[:LAST_WORDS_MAX])


def last_words(file: IO[str]) -> str:
    """What was left there; closes it."""
    with file:
        file.seek(0)
        return file.read(LAST_WORDS_MAX)


def how_it_ended(code: int, words: str) -> str:
    """In words. ``code``: as of subprocess, negative: a signal; ``words``: its last ones, if any."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}: {words}" if words else f"exit status {code}"


def die_with(parent: int) -> Callable[[], None]:
    """What a child does before it becomes its program: die with ``parent``, also if that is dead by now.

    Linux counts the *thread* that made the child as its parent: make it in one that lives as long as the process.
    """

    def prepare() -> None:
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

    return prepare


@dataclass(slots=True)
class Child:
    """A child process; its output goes where ours goes."""

    name: str
    argv: tuple[str, ...]
    drain_s: float
    pass_fds: tuple[int, ...] = ()
    _process: asyncio.subprocess.Process | None = field(default=None, repr=False)
    _words: IO[str] | None = field(default=None, repr=False)
    _said: str = field(default="", repr=False)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Raises OSError when it cannot be started."""
        self._words = tempfile.TemporaryFile("w+")  # noqa: SIM115  (it has no name: nothing stays behind)
        number = self._words.fileno()
        # A session of its own: Ctrl-C in a terminal reaches only the supervisor, which knows the order.
        self._process = await asyncio.create_subprocess_exec(
            *self.argv,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(number, *self.pass_fds),
            env={**os.environ, LAST_WORDS: f"/dev/fd/{number}"},
            preexec_fn=die_with(os.getpid()),
        )

    async def ended(self) -> str:
        if self._process is None:
            return "it does not run"
        code = await self._process.wait()
        if self._words is not None:
            self._said, self._words = last_words(self._words), None
        return how_it_ended(code, self._said)

    def ask_to_leave(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

"""Where programs are solved that take long: a process of its own, so that no query waits for the interpreter.

One process, started when something first took longer than :data:`HERE_S_MAX`; what is quick is worked out here, since
to hand it over takes longer than that. It ends with us, whatever becomes of us: its end of the pipe is closed then. If
it dies or hangs, the answer is worked out here and the next one is asked for in a new process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, ParamSpec, TypeVar

import structlog

HERE_S_MAX = 0.05
PATIENCE_S = 60.0
NICE = 5
"""What is decided for the next minutes gives way to the queries of the moment."""

_log = structlog.get_logger(__name__)
_P = ParamSpec("_P")
_R = TypeVar("_R")


class Solver:
    """Used by one thread at a time.

    Args:
        here_s_max: what took longer the last time is worked out in the other process.
    """

    def __init__(self, here_s_max: float = HERE_S_MAX) -> None:
        self._here_s_max = here_s_max
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._took_s: dict[str, float] = {}
        """By function, how long it took last."""

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """The same function, worked out wherever that disturbs least. It is a module's, and pure."""

        def solve(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            name = f"{function.__module__}.{function.__qualname__}"
            if self._took_s.get(name, 0.0) > self._here_s_max:
                with suppress(OSError, EOFError, TimeoutError):
                    took_s, result = self._ask(function, args, kwargs)
                    self._took_s[name] = took_s
                    return result  # type: ignore[no-any-return]
                _log.warning("the solver's process is gone, solving here", function=name)
                self.stop()
            began_s = time.perf_counter()
            result = function(*args, **kwargs)
            self._took_s[name] = time.perf_counter() - began_s
            return result

        return solve

    def stop(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None

    def _ask(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, Any]:
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), name="solver", daemon=True)
            self._process.start()
            theirs.close()
        self._pipe.send((function, args, kwargs))
        if not self._pipe.poll(PATIENCE_S):
            raise TimeoutError
        took_s, result = self._pipe.recv()
        if isinstance(result, Exception):
            raise result
        return took_s, result


def _serve(pipe: Connection) -> None:
    """The process: one question after another, until whoever asks is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's; whoever asks ends us
    os.nice(NICE)
    while True:
        try:
            function, args, kwargs = pipe.recv()
        except (EOFError, OSError):
            return
        began_s = time.perf_counter()
        try:
            result = function(*args, **kwargs)
        except Exception as error:
            result = error
        with suppress(OSError):
            pipe.send((time.perf_counter() - began_s, result))

"""An executor apart from those that serve: for building, or for measuring.

Starting one and importing a framework takes seconds, so it is made when it is first needed, or foreseen to be, lent
again and again, and ended when nobody wanted it for a while. One in which something went wrong is ended at once, and
the next loan gets a fresh one: whatever was left in it is gone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from workers.executor import ChildExecutor, ExecutionError, Executor, ExecutorDiedError

IDLE_S = 60.0


class Apart:
    """See the module. One loan at a time.

    Args:
        niceness: added to a child's, so that it gets what others leave (see nice(1)).
    """

    def __init__(self, spawn: Callable[[], Awaitable[Executor]], niceness: int = 0) -> None:
        self._spawn = spawn
        self._niceness = niceness
        self._executor: Executor | None = None
        self._expiry: asyncio.Task[None] | None = None
        self._coming: asyncio.Task[Executor] | None = None
        self._is_lent = False

    def foresee(self, builder: str) -> None:
        """A loan will be asked for, for this builder: start an executor and import what it needs, if none is there."""
        if self._executor is None and self._coming is None and not self._is_lent:
            self._coming = asyncio.create_task(self._fresh(builder))

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[Executor]:
        """Any exception in the body ends the executor."""
        self._is_lent = True
        try:
            executor = await self._take()
            try:
                yield executor
            except BaseException:
                await executor.close()
                raise
        finally:
            self._is_lent = False
        self._executor = executor
        self._expiry = asyncio.create_task(self._expire())

    async def close(self) -> None:
        """Not while it is lent."""
        self._keep()
        coming, self._coming = self._coming, None
        if coming is not None:
            coming.cancel()
            (ended,) = await asyncio.gather(coming, return_exceptions=True)
            self._executor = ended if not isinstance(ended, BaseException) else None
        executor, self._executor = self._executor, None
        if executor is not None:
            await executor.close()

    async def _take(self) -> Executor:
        self._keep()
        coming, self._coming = self._coming, None
        executor, self._executor = self._executor, None
        if coming is not None:
            executor = await coming
        return executor if executor is not None and executor.alive else await self._fresh()

    async def _fresh(self, builder: str | None = None) -> Executor:
        executor = await self._spawn()
        if self._niceness and isinstance(executor, ChildExecutor):
            with suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, executor.pid, os.getpriority(os.PRIO_PROCESS, 0) + self._niceness)
        try:
            if builder is not None:
                with suppress(ExecutionError, ExecutorDiedError):  # whoever gets it will hear the same
                    await executor.prepare([builder])
        except BaseException:
            await executor.close()
            raise
        return executor

    async def _expire(self) -> None:
        await asyncio.sleep(IDLE_S)
        self._expiry = None
        await self.close()

    def _keep(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

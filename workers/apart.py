"""An executor apart from those that serve: for building, or for measuring.

Starting one and importing a framework takes seconds, so it is made when it is first needed, lent again and again, and
ended when nobody wanted it for a while. One in which something went wrong is ended at once, and the next loan gets a
fresh one: whatever was left in it is gone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from workers.executor import ChildExecutor, Executor

IDLE_S = 20.0


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

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[Executor]:
        """Any exception in the body ends the executor."""
        self._keep()
        executor, self._executor = self._executor, None
        if executor is None or not executor.alive:
            executor = await self._fresh()
        try:
            yield executor
        except BaseException:
            await executor.close()
            raise
        self._executor = executor
        self._expiry = asyncio.create_task(self._expire())

    async def close(self) -> None:
        """Not while it is lent."""
        self._keep()
        executor, self._executor = self._executor, None
        if executor is not None:
            await executor.close()

    async def _fresh(self) -> Executor:
        executor = await self._spawn()
        if self._niceness and isinstance(executor, ChildExecutor):
            with suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, executor.pid, os.getpriority(os.PRIO_PROCESS, 0) + self._niceness)
        return executor

    async def _expire(self) -> None:
        await asyncio.sleep(IDLE_S)
        self._expiry = None
        await self.close()

    def _keep(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

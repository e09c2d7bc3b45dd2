"""What only the leading broker does, besides planning: for as long as it leads, and again after any trouble.

Whoever writes does so with a transactional id that is the same for all brokers, so that a leader that was replaced is
fenced before its successor reads anything.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable

import structlog
from aiokafka.errors import KafkaError, ProducerFenced

from modelless.errors import UnavailableError
from modelless.kafka import raise_if_cancelled

_log = structlog.get_logger(__name__)


class Office(ABC):
    """One broker's part in it.

    Args:
        leads: whether this broker leads now.
        name: of the task.
        fenced, failed: what is logged when another one does it, and when it is tried again.
    """

    def __init__(self, leads: Callable[[], bool], name: str, retry_s: float, *, fenced: str, failed: str) -> None:
        self._leads, self._name, self._retry_s = leads, name, retry_s
        self._fenced, self._failed = fenced, failed
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @abstractmethod
    async def _session(self) -> None:
        """For as long as this broker leads and everything works."""

    async def _run(self) -> None:
        while True:
            try:
                if self._leads():
                    await self._session()
            except ProducerFenced:
                _log.warning(self._fenced)
            except (KafkaError, OSError, TimeoutError, UnavailableError, asyncio.CancelledError) as error:
                raise_if_cancelled(error)
                _log.warning(self._failed, error=repr(error))
            await asyncio.sleep(self._retry_s)

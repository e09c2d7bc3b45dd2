"""The executors of one device: the serving one, a spare that takes its place, a quarantined one for suspects.

A crash costs the loading of the variants in use, not the start of an interpreter and the import of a framework: the
spare has that behind it. One task keeps the three as they should be; whoever needs one of them looks at
``serving`` and ``quarantined`` (None: not there now) and is told by ``on_change``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from workers.executor import ExecutionError, Executor, ExecutorDiedError, LoadSpec

Spawn = Callable[[Callable[[Executor], None]], Awaitable[Executor]]

_BACKOFF_S = (0.0, 0.0, 0.1, 0.5, 2.0, 5.0)
"""Pause before the next spawn after so many executors in a row that died before they were of use."""
_LOAD_ATTEMPTS_MAX = 2


@dataclass(frozen=True, slots=True)
class ExecutorsStatistics:
    deaths: int
    promotion_ms: float
    """How long the last replacement of a serving executor took, from its death."""
    spare: bool


class Executors:
    """See the module. ``on_lost_variant(variant, reason)``: a promoted executor could not load it any more."""

    def __init__(
        self,
        spawn: Spawn,
        on_change: Callable[[], None],
        on_lost_variant: Callable[[str, str], None],
    ) -> None:
        self.serving: Executor | None = None
        self.quarantined: Executor | None = None
        self._spawn = spawn
        self._on_change = on_change
        self._on_lost_variant = on_lost_variant
        self._spare: Executor | None = None
        self._prepared: frozenset[str] = frozenset()
        self._specs: dict[str, LoadSpec] = {}
        self._suspects: tuple[str, ...] = ()
        self._wake = asyncio.Event()
        self._serving_up = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._deaths = 0
        self._failures = 0
        self._died_s: float | None = None
        self._promotion_ms = 0.0
        self._log = structlog.get_logger()

    async def start(self) -> None:
        """Returns when the serving executor is there."""
        self._keeper = asyncio.create_task(self._keep())
        await self._serving_up.wait()

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        children = [e for e in (self.serving, self.quarantined, self._spare) if e is not None]
        await asyncio.gather(*(child.close() for child in children))

    def statistics(self) -> ExecutorsStatistics:
        return ExecutorsStatistics(self._deaths, self._promotion_ms, self._spare is not None)

    async def spawn_apart(self) -> Executor:
        """An executor of the caller's own, for measuring; its death is nobody else's business."""
        return await self._spawn(lambda executor: None)

    async def prepare(self, builder: str) -> None:
        """Import on the serving executor what the builder needs; it is quicker to load then."""
        await self._serving_up.wait()
        await self._prepare(self._up(), [builder])

    async def load(self, spec: LoadSpec) -> float:
        """Load a variant on the serving executor, and on every one that follows it; ms.

        Raises:
            ExecutionError: it cannot be loaded, or loading it brings executors down.
        """
        for _ in range(_LOAD_ATTEMPTS_MAX):
            await self._serving_up.wait()
            try:
                load_ms = await self._up().load(spec)
            except ExecutorDiedError:
                continue
            self._specs[spec.variant] = spec
            self._wake.set()
            return load_ms
        raise ExecutionError("its executor died while it was loaded")

    async def unload(self, variant: str) -> None:
        self._specs.pop(variant, None)
        if self.serving is not None:
            try:
                await self.serving.unload(variant)
            except ExecutorDiedError:
                return

    def quarantine(self, suspects: Sequence[str]) -> None:
        """The variants that wait for a quarantined executor; none: it may go."""
        if tuple(suspects) != self._suspects:
            self._suspects = tuple(suspects)
            self._wake.set()

    def _up(self) -> Executor:
        assert self.serving is not None, "cleared together with the event"
        return self.serving

    # --- the keeper -----------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            self._wake.clear()
            if self.serving is None:
                await self._promote()
            elif self._suspects and self.quarantined is None:
                executor = await self._take()
                if executor is not None:
                    await self._load_all(executor, self._suspects)
                    self.quarantined = executor if executor.alive else None
                    self._on_change()
            elif not self._suspects and self.quarantined is not None:
                executor, self.quarantined = self.quarantined, None
                self._on_change()
                await executor.close()
            elif self._spare is None:
                self._spare, self._prepared = await self._fresh(), frozenset()
            elif missing := {spec.builder for spec in self._specs.values()} - self._prepared:
                self._prepared |= missing
                await self._prepare(self._spare, sorted(missing))
            else:
                await self._wake.wait()

    async def _promote(self) -> None:
        executor = await self._take()
        if executor is None:
            return
        await self._load_all(executor, tuple(self._specs))
        if not executor.alive:
            return
        self.serving = executor
        self._serving_up.set()
        if self._died_s is not None:
            self._promotion_ms = (time.monotonic() - self._died_s) * 1000
            self._died_s = None
            self._log.warning("replaced an executor that died", promotion_ms=round(self._promotion_ms, 1))
        self._on_change()

    async def _take(self) -> Executor | None:
        """The spare, or a fresh one."""
        executor, self._spare = self._spare, None
        return executor if executor is not None and executor.alive else await self._fresh()

    async def _fresh(self) -> Executor | None:
        await asyncio.sleep(_BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)])
        try:
            executor = await self._spawn(self._died)
            await executor.prepare(())
        except (OSError, ExecutionError, ExecutorDiedError) as error:
            self._failures += 1
            self._log.error("an executor did not start", reason=str(error) or type(error).__name__)
            return None
        self._failures = 0
        return executor

    async def _prepare(self, executor: Executor, builders: Sequence[str]) -> None:
        with suppress(ExecutionError, ExecutorDiedError):  # loading says what is wrong, or its death is noticed
            await executor.prepare(builders)

    async def _load_all(self, executor: Executor, variants: Sequence[str]) -> None:
        for variant in variants:
            spec = self._specs.get(variant)
            try:
                if spec is not None:
                    await executor.load(spec)
            except ExecutionError as error:
                self._specs.pop(variant, None)
                self._on_lost_variant(variant, str(error))
            except ExecutorDiedError:
                return

    def _died(self, executor: Executor) -> None:
        self._deaths += 1
        if executor is self.serving:
            self.serving, self._died_s = None, time.monotonic()
            self._serving_up.clear()
        elif executor is self.quarantined:
            self.quarantined = None
        elif executor is self._spare:
            self._spare = None
        self._wake.set()
        self._on_change()

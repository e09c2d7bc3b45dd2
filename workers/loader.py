"""Doing what the plan says: load, warm up, unload; and beside it build and measure (:mod:`workers.workshop`).

The plan is the one authority. One task reconciles what is loaded with it, one thing at a time and the most valuable
first. A variant is **ready** when every profiled batch size has run once. One that is built first is fetched as what
the group's measuring worker built; where that does not fit this worker (other hardware, another library), the workshop
builds this worker's own, and loading goes on with the others meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import structlog

from modelless.catalog import Catalog
from modelless.clock import KafkaClock
from modelless.config import Config, GroupConfig
from modelless.errors import ModellessError
from modelless.frames import VariantState
from modelless.messages import ModelVersion, Plan, Profile
from workers.apart import Apart
from workers.builds import Builds, Built
from workers.device import Device
from workers.executor import ExecutionError, ExecutorDiedError, LoadSpec
from workers.measure import Bench, zeros
from workers.metrics import WorkerMetrics
from workers.orders import Orders
from workers.workshop import Workshop

UNLOAD_WAIT_S = 5.0
RETRY_S = 5.0
BUILDING_NICENESS = 10
"""A compiler gets what live batches leave."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Loaded:
    digest: str
    state: Literal["loading", "ready", "failed"]
    memory_bytes: int
    temporary: bool = False
    """It failed for a reason that may pass (the store, say): tried again."""
    is_being_built: bool = False


class Loader:
    """See the module. ``on_change`` is called when what is loaded has changed, after the device knows."""

    def __init__(
        self,
        config: Config,
        group: GroupConfig,
        name: str,
        device: Device,
        catalog: Catalog,
        clock: KafkaClock,
        metrics: WorkerMetrics,
        on_change: Callable[[], None],
    ) -> None:
        self._group = group
        self._device = device
        self._on_change = on_change
        self._orders = Orders(group.name, name, catalog)
        self._bench = Bench(device.step, lambda: device.busy_s)
        self._loaded: dict[str, _Loaded] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._preparing: dict[str, asyncio.Task[None]] = {}
        self.errors: dict[str, str] = {}
        """What could not be done, by variant, in words for the operator."""
        spawn = device.executors.spawn_apart
        self._builds = Builds(config, group, catalog, Apart(spawn, BUILDING_NICENESS), metrics)
        self._workshop = Workshop(
            config,
            group,
            self._orders,
            self._builds,
            self._bench,
            Apart(spawn),
            device.publisher,
            clock,
            self.errors,
            self._foresee,
            on_change,
            self._on_built,
        )

    def start(self) -> None:
        self._task = asyncio.create_task(self._reconcile())
        self._workshop.start()

    async def stop(self) -> None:
        tasks = [*self._preparing.values(), *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._workshop.stop()

    @property
    def failed(self) -> BaseException | None:
        """Why loading, building or measuring ended, if one did."""
        tasks = self._workshop.tasks if self._task is None else [self._task, *self._workshop.tasks]
        for task in tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                return error
        return None

    def plan(self, plan: Plan) -> None:
        """A plan was read; an older one than the present is ignored."""
        if not self._orders.take(plan):
            return
        for variant in [v for v, loaded in self._loaded.items() if loaded.state == "failed"]:
            del self._loaded[variant]
        self.catalog_changed()

    def catalog_changed(self) -> None:
        """A model or profile was read: what could not be done before may be possible."""
        self._wake.set()
        self._workshop.wake()

    def lost(self, variant: str, reason: str) -> None:
        """It could not be loaded again after a crash."""
        if variant in self._loaded:
            self._fail(variant, reason)

    @property
    def epoch(self) -> int:
        return self._orders.epoch

    @property
    def measuring(self) -> str | None:
        return self._workshop.measuring

    @property
    def builds(self) -> int:
        """How much this process has built."""
        return self._builds.made

    @property
    def memory_bytes(self) -> int:
        return sum(loaded.memory_bytes for loaded in self._loaded.values() if loaded.state != "failed")

    def ready(self) -> tuple[str, ...]:
        return tuple(variant for variant, loaded in self._loaded.items() if loaded.state == "ready")

    def states(self) -> tuple[VariantState, ...]:
        """For a State frame; takes the batch times since the last call."""
        return tuple(self._state(variant, loaded) for variant, loaded in self._loaded.items())

    def _state(self, variant: str, loaded: _Loaded) -> VariantState:
        times, (rows, busy_ms) = self._device.take_times(variant), self._device.take_load(variant)
        batches = tuple([(batch_size, ms) for batch_size, ms, _ in times])
        lengths = tuple([length for *_, length in times]) if any(length for *_, length in times) else ()
        return VariantState(variant, loaded.state, loaded.memory_bytes, batches, rows, busy_ms, lengths)

    # --- loading --------------------------------------------------------------------------------------------------

    async def _reconcile(self) -> None:
        while True:
            self._wake.clear()
            wanted = self._orders.assignment.load
            if gone := [variant for variant in self._loaded if not self._is_wanted(variant, wanted)]:
                await self._unload(gone[0])
            elif missing := [v for v in wanted if v not in self._loaded and self._orders.model(v) is not None]:
                await self._load(missing[0])
            else:
                await self._wait()

    async def _wait(self) -> None:
        """For a change, or until what failed for now is worth another attempt."""
        temporary = [variant for variant, loaded in self._loaded.items() if loaded.temporary]
        try:
            async with asyncio.timeout(RETRY_S if temporary else None):
                await self._wake.wait()
        except TimeoutError:
            for variant in temporary:
                self._loaded.pop(variant, None)

    def _is_wanted(self, variant: str, wanted: tuple[str, ...]) -> bool:
        model = self._orders.model(variant)
        return variant in wanted and (model is None or model.digest == self._loaded[variant].digest)

    async def _load(self, variant: str) -> None:
        model = self._orders.model(variant)
        assert model is not None, "checked by the caller"
        profile = self._orders.profile(variant)
        memory_bytes = profile.memory_bytes if profile is not None else 0
        entry = self._loaded[variant] = _Loaded(model.digest, "loading", memory_bytes)
        free_mb = self._group.memory_mb_max - (self.memory_bytes - memory_bytes) / 2**20
        if memory_bytes / 2**20 > free_mb:
            self._fail(variant, f"it needs {memory_bytes >> 20} MB, {free_mb:.0f} of memory_mb_max are free")
            return
        self._on_change()
        try:
            built = None
            if self._builds.is_needed(variant, model):
                built = await self._builds.find(variant, model)
                if built is None:
                    self._have_built(variant, model, profile)
                    return
            load_ms = await self._load_now(variant, model, profile, built)
        except (ExecutionError, ExecutorDiedError, ModellessError, OSError) as error:
            await self._device.executors.unload(variant)
            self._fail(variant, str(error), temporary=not isinstance(error, ExecutionError))
            return
        entry.state = "ready"
        self.errors.pop(variant, None)
        _log.info("variant ready", variant=variant, load_ms=round(load_ms, 1))
        self._changed()

    async def _load_now(self, variant: str, model: ModelVersion, profile: Profile | None, built: Built | None) -> float:
        """While nothing is measured. How long it took, without warming up, ms."""
        spec = await self._builds.spec(variant, model, built)
        await self._device.executors.prepare(spec.builder)  # seconds, in which measuring goes on
        async with self._bench.loading:
            load_ms = await self._device.executors.load(spec)
            await self._warm_up(spec, profile)
        return load_ms

    def _have_built(self, variant: str, model: ModelVersion, profile: Profile | None) -> None:
        """It stays in the state of loading until the workshop has built it."""
        reason = "nobody has built it"
        if profile is not None and profile.build_key is not None:
            reason = "what the group has was built for other hardware or by another version, or is gone"
        _log.info("the variant is built here", variant=variant, reason=reason)
        self._loaded[variant].is_being_built = True
        self._workshop.ask(variant, model)

    def _on_built(self, variant: str, failure: str | None) -> None:
        loaded = self._loaded.get(variant)
        if loaded is not None and loaded.is_being_built:
            loaded.is_being_built = False
            if failure is None:
                del self._loaded[variant]
                self._wake.set()
            else:
                self._fail(variant, failure)

    def _foresee(self, builder: str) -> None:
        """Its libraries are imported where variants are served, while the first variant is still measured."""
        if builder not in self._preparing:
            self._preparing[builder] = asyncio.create_task(self._device.executors.prepare(builder))

    async def _warm_up(self, spec: LoadSpec, profile: Profile | None) -> None:
        """Every profiled batch size once, of every length, smallest first, each when the device has a moment."""
        sizes = [(batch.batch_size, 0) for batch in profile.batches] if profile is not None else [(1, 0)]
        for of in profile.lengths if profile is not None else ():
            sizes += [(batch.batch_size, of.length) for batch in of.batches]
        self._device.expect(spec.variant, profile.batches[-1].p99_ms if profile and profile.batches else 0.0)
        for size, length in sizes:

            async def run(size: int = size, length: int = length) -> None:
                serving = self._device.executors.serving
                if serving is not None:
                    await serving.run(spec.variant, zeros(spec, size, length))

            try:
                await self._device.step(run)
            except ExecutorDiedError:
                raise ExecutorDiedError(f"its executor died on a batch of {size} while warming up") from None

    async def _unload(self, variant: str) -> None:
        """Brokers hear it first; what they sent before they did still runs."""
        was_ready = self._loaded.pop(variant).state == "ready"
        self.errors.pop(variant, None)
        if was_ready:
            self._on_change()
            for _ in range(int(UNLOAD_WAIT_S / 0.05)):
                await asyncio.sleep(0.05)
                if not self._device.queue.holds(variant):
                    break
            _log.info("variant unloaded", variant=variant)
        self._changed()
        await self._device.executors.unload(variant)

    def _fail(self, variant: str, reason: str, *, temporary: bool = False) -> None:
        _log.error("variant cannot be served", variant=variant, reason=reason)
        self.errors[variant] = reason
        self._loaded[variant] = replace(self._loaded[variant], state="failed", temporary=temporary)
        self._changed()
        self._wake.set()

    def _changed(self) -> None:
        self._device.queue.ready(self.ready())
        self._device.kick_soon()
        self._on_change()

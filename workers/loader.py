"""Doing what the plan says: load, warm up, unload, measure.

The plan is the one authority. One task reconciles what is loaded with it, one thing at a time and the most valuable
first; another one measures. A variant is **ready** when every profiled batch size has run once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import structlog

from modelless import store
from modelless.catalog import Catalog
from modelless.clock import KafkaClock
from modelless.codec import encode_record
from modelless.config import Config, GroupConfig
from modelless.errors import ModellessError
from modelless.frames import VariantState
from modelless.messages import Assignment, ModelVersion, Plan, Profile, split_exit, split_variant
from modelless.topics import Topics
from workers.device import Device
from workers.executor import ExecutionError, ExecutorDiedError, LoadSpec
from workers.measure import Measurement, MeasuringError, read_evaluation, zeros

UNLOAD_WAIT_S = 5.0
RETRY_S = 5.0

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Loaded:
    digest: str
    state: Literal["loading", "ready", "failed"]
    memory_bytes: int
    temporary: bool = False
    """It failed for a reason that may pass (the store, say): tried again."""


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
        on_change: Callable[[], None],
    ) -> None:
        self._config = config
        self._group = group
        self._name = name
        self._device = device
        self._catalog = catalog
        self._clock = clock
        self._on_change = on_change
        self._plan: Plan | None = None
        self._loaded: dict[str, _Loaded] = {}
        self._measured: dict[str, str] = {}
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._wake_measuring = asyncio.Event()
        self.measuring: str | None = None
        self.errors: dict[str, str] = {}
        """What could not be done, by variant, in words for the operator."""

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._reconcile()), asyncio.create_task(self._measure_all())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def failed(self) -> BaseException | None:
        """Why loading ended, if it did."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                return error
        return None

    def plan(self, plan: Plan) -> None:
        """A plan was read; an older one than the present is ignored."""
        if self._plan is not None and plan.epoch < self._plan.epoch:
            return
        self._plan = plan
        for variant in [v for v, loaded in self._loaded.items() if loaded.state == "failed"]:
            del self._loaded[variant]
        self.catalog_changed()

    def catalog_changed(self) -> None:
        """A model or profile was read: what could not be done before may be possible."""
        self._wake.set()
        self._wake_measuring.set()

    def lost(self, variant: str, reason: str) -> None:
        """It could not be loaded again after a crash."""
        if variant in self._loaded:
            self._fail(variant, reason)

    @property
    def epoch(self) -> int:
        return self._plan.epoch if self._plan is not None else 0

    @property
    def memory_bytes(self) -> int:
        return sum(loaded.memory_bytes for loaded in self._loaded.values() if loaded.state != "failed")

    def ready(self) -> tuple[str, ...]:
        return tuple(variant for variant, loaded in self._loaded.items() if loaded.state == "ready")

    def states(self) -> tuple[VariantState, ...]:
        """For a State frame; takes the batch times since the last call."""
        return tuple(
            VariantState(
                variant,
                loaded.state,
                loaded.memory_bytes,
                self._device.take_times(variant),
                *self._device.take_load(variant),
            )
            for variant, loaded in self._loaded.items()
        )

    # --- loading --------------------------------------------------------------------------------------------------

    async def _reconcile(self) -> None:
        while True:
            self._wake.clear()
            wanted = self._assignment().load
            if gone := [variant for variant in self._loaded if not self._is_wanted(variant, wanted)]:
                await self._unload(gone[0])
            elif missing := [v for v in wanted if v not in self._loaded and self._model(v) is not None]:
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
        model = self._model(variant)
        return variant in wanted and (model is None or model.digest == self._loaded[variant].digest)

    async def _load(self, variant: str) -> None:
        model = self._model(variant)
        assert model is not None, "checked by the caller"
        profile = self._profile(variant, model)
        memory_bytes = profile.memory_bytes if profile is not None else 0
        entry = self._loaded[variant] = _Loaded(model.digest, "loading", memory_bytes)
        free_mb = self._group.memory_mb_max - (self.memory_bytes - memory_bytes) / 2**20
        if memory_bytes / 2**20 > free_mb:
            self._fail(variant, f"it needs {memory_bytes >> 20} MB, {free_mb:.0f} of memory_mb_max are free")
            return
        self._on_change()
        try:
            spec = await self._spec(variant, model)
            load_ms = await self._device.executors.load(spec)
            await self._warm_up(spec, profile)
        except (ExecutionError, ExecutorDiedError, ModellessError, OSError) as error:
            await self._device.executors.unload(variant)
            self._fail(variant, str(error), temporary=not isinstance(error, ExecutionError))
            return
        entry.state = "ready"
        self.errors.pop(variant, None)
        _log.info("variant ready", variant=variant, load_ms=round(load_ms, 1))
        self._changed()

    async def _warm_up(self, spec: LoadSpec, profile: Profile | None) -> None:
        """Every profiled batch size once, smallest first, each when the device has a moment."""
        sizes = [batch.batch_size for batch in profile.batches] if profile is not None else [1]
        self._device.expect(spec.variant, profile.batches[-1].p99_ms if profile and profile.batches else 0.0)
        for size in sizes:

            async def run(size: int = size) -> None:
                serving = self._device.executors.serving
                if serving is not None:
                    await serving.run(spec.variant, zeros(spec, size))

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

    # --- measuring ------------------------------------------------------------------------------------------------

    async def _measure_all(self) -> None:
        while True:
            self._wake_measuring.clear()
            variant = next((v for v in self._assignment().measure if self._is_due(v)), None)
            if variant is None:
                await self._wake_measuring.wait()
                continue
            self.measuring = variant
            self._on_change()
            try:
                await self._measure(variant)
            finally:
                self.measuring = None
                self._on_change()

    def _is_due(self, variant: str) -> bool:
        """Unless this process measured it, or somebody found it good."""
        model = self._model(variant)
        if model is None or self._measured.get(variant) == model.digest:
            return False
        profile = self._profile(variant, model)
        return profile is None or profile.status == "failed"

    async def _measure(self, variant: str) -> None:
        model = self._model(variant)
        assert model is not None, "checked by the caller"
        _log.info("measuring", variant=variant)
        try:
            profile = await self._try_measure(variant, model)
            self.errors.pop(variant, None)
        except (MeasuringError, ExecutionError, ExecutorDiedError, ModellessError, OSError) as error:
            reason = str(error) or type(error).__name__
            _log.error("variant cannot be measured", variant=variant, reason=reason)
            self.errors[variant] = reason
            profile = Profile(variant, self._group.name, "failed", model.digest, reason[:2000])
        profile = replace(
            profile, price_per_hour=self._group.price_per_hour, measured_ms=self._clock.now_ms(), digest=model.digest
        )
        self._measured[variant] = model.digest
        topic = Topics(self._config.kafka.topic_prefix).profiles
        await self._device.publisher.write(topic, profile.key.encode(), encode_record(profile))
        if profile.status == "ready":
            _log.info(
                "measured",
                variant=variant,
                accuracy=profile.accuracy,
                memory_mb=profile.memory_bytes >> 20,
                batch_sizes=len(profile.batches),
                p50_ms=round(profile.batches[0].p50_ms, 3),
            )

    async def _try_measure(self, variant: str, model: ModelVersion) -> Profile:
        spec = await self._spec(variant, model)
        data = None
        evaluation = model.evaluation
        if evaluation.accuracy is None and evaluation.data_url and evaluation.data_sha256:
            path = await asyncio.to_thread(store.fetch, self._config, evaluation.data_url, evaluation.data_sha256)
            data = await asyncio.to_thread(read_evaluation, path, model)
        executor = await self._device.executors.spawn_apart()
        try:
            measurement = Measurement(executor, spec, self._device.step, data)
            worker = self._config.worker
            return await measurement.profile(model, self._group.name, worker.measure_s, worker.batch_size_max)
        finally:
            await executor.close()

    # --- looking up -----------------------------------------------------------------------------------------------

    def _assignment(self) -> Assignment:
        return self._plan.workers.get(self._name, Assignment()) if self._plan is not None else Assignment()

    def _model(self, variant: str) -> ModelVersion | None:
        key, _ = split_variant(variant)
        return next((model for model in self._catalog.models() if model.key == key), None)

    def _profile(self, variant: str, model: ModelVersion) -> Profile | None:
        profiles = self._catalog.profiles(model)
        return next((p for p in profiles if (p.variant, p.group) == (variant, self._group.name)), None)

    async def _spec(self, variant: str, model: ModelVersion) -> LoadSpec:
        path = await asyncio.to_thread(store.fetch, self._config, model.artifact_url, model.artifact_sha256)
        builder, exit = split_exit(split_variant(variant)[1])
        return LoadSpec(
            variant=variant,
            builder=builder,
            exit=exit,
            path=path,
            inputs=model.inputs,
            outputs=model.outputs,
            factory=model.factory,
            factories_allowed=self._config.worker.factories_allowed,
        )

"""Building and measuring what the plan assigns.

Two tasks share the machine: one **builds** (:mod:`workers.builds`), the other **measures** (:mod:`workers.measure`).
They take turns, since numbers taken beside a compiler are too high, with one exception: a model of which nothing can be
served yet is measured at once, and again when nothing is being built. So a model is served within seconds, by a variant
that needs no building, while its others are made.

Order: models that are not served yet, then what is quickly made (``_QUICK``, then what needs no building), then as the
plan says; what is only to be measured again comes last.

A variant that cannot be built or measured gets a profile that says why, once, and keeps nothing else from its turn.
What fails for a reason that may pass (the store does not answer) is tried again after ``RETRY_S``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from modelless.clock import KafkaClock
from modelless.codec import encode_record
from modelless.config import Config, GroupConfig
from modelless.errors import InvalidArgumentError, ModellessError, NotFoundError
from modelless.messages import ModelVersion, Profile, split_variant
from modelless.topics import Topics
from workers.apart import Apart
from workers.builds import BuildError, Builds, Built
from workers.evaluation import EvaluationError
from workers.executor import ExecutionError, ExecutorDiedError
from workers.measure import Bench, Measurement, MeasuringError
from workers.orders import Orders
from workers.publisher import Publisher

RETRY_S = 5.0
REASON_CHARACTERS_MAX = 2000
_QUICK = ("torch-fp32", "onnx-fp32", "emulated")
_PERMANENT = (
    BuildError,
    MeasuringError,
    EvaluationError,
    ExecutionError,
    ExecutorDiedError,
    NotFoundError,
    InvalidArgumentError,
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Job:
    """A variant to measure. ``before``: a good profile that stays when this fails."""

    variant: str
    model: ModelVersion
    before: Profile | None


class Workshop:
    """See the module.

    Args:
        apart: the executor for measuring.
        errors: what could not be done, by variant, for the operator; only what no profile says.
        foresee: told a builder of which a variant will soon be loaded.
        on_change: ``measuring`` or ``errors`` changed.
        on_built: what was asked for by :meth:`ask` is there, or cannot be built for the given reason.
    """

    def __init__(
        self,
        config: Config,
        group: GroupConfig,
        orders: Orders,
        builds: Builds,
        bench: Bench,
        apart: Apart,
        publisher: Publisher,
        clock: KafkaClock,
        errors: dict[str, str],
        foresee: Callable[[str], None],
        on_change: Callable[[], None],
        on_built: Callable[[str, str | None], None],
    ) -> None:
        self._config = config
        self._group = group
        self._orders = orders
        self._builds = builds
        self._bench = bench
        self._apart = apart
        self._publisher = publisher
        self._clock = clock
        self._errors = errors
        self._foresee = foresee
        self._on_change = on_change
        self._on_built = on_built
        self.measuring: str | None = None
        self._building: str | None = None
        self._to_build: dict[str, ModelVersion] = {}
        self._done: dict[str, str] = {}
        """By variant, the digest of the model of which it was measured, or found impossible."""
        self._again: dict[str, float] = {}
        """By variant, the time of the outdated profile that it was measured again for."""
        self._beside_a_build: set[str] = set()
        self._later_s: dict[str, float] = {}
        self._wake_builder, self._wake_measurer = asyncio.Event(), asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self.tasks = [asyncio.create_task(self._build_all()), asyncio.create_task(self._measure_all())]

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.gather(self._apart.close(), self._builds.close())

    def wake(self) -> None:
        """Plan or catalog changed."""
        self._wake_builder.set()
        self._wake_measurer.set()

    def ask(self, variant: str, model: ModelVersion) -> None:
        """Have it built, for loading."""
        self._to_build[variant] = model
        self._builds.foresee(variant)
        self.wake()

    # --- measuring ----------------------------------------------------------------------------------------------------

    async def _measure_all(self) -> None:
        while True:
            self._wake_measurer.clear()
            job = self._next_job()
            if job is None:
                await self._wake_measurer.wait()
                continue
            self.measuring = job.variant
            self._on_change()
            try:
                await self._do(job)
            finally:
                self.measuring = None
                self._on_change()
                self._wake_builder.set()

    def _next_job(self) -> _Job | None:
        """While something is built, only of a model that is not served yet."""
        jobs = [job for job in self._due() if job.variant not in self._to_build and not self._is_later(job.variant)]
        if self._building is not None:
            jobs = [job for job in jobs if not self._orders.is_served(job.model)]
        return min(jobs, key=lambda job: (job.before is not None, *self._order(job.variant, job.model)), default=None)

    def _due(self) -> list[_Job]:
        assignment = self._orders.assignment
        jobs = []
        for variant in dict.fromkeys((*assignment.measure, *assignment.outdated, *self._beside_a_build)):
            model, profile = self._orders.model(variant), self._orders.profile(variant)
            if model is None:
                continue
            before = profile if profile is not None and profile.status == "ready" else None
            if before is None:
                is_due = variant in assignment.measure and self._done.get(variant) != model.digest
            else:
                is_due = variant in self._beside_a_build
            outdated_ms = assignment.outdated.get(variant)
            if outdated_ms is not None and profile is not None and profile.measured_ms <= outdated_ms:
                is_due = is_due or self._again.get(variant) != outdated_ms
            if is_due:
                jobs.append(_Job(variant, model, before))
        return jobs

    def _order(self, variant: str, model: ModelVersion) -> tuple[bool, int, bool]:
        builder = split_variant(variant)[1]
        quick = _QUICK.index(builder) if builder in _QUICK else len(_QUICK)
        return self._orders.is_served(model), quick, self._needs_building(variant, model)

    def _needs_building(self, variant: str, model: ModelVersion) -> bool:
        try:
            return self._builds.is_needed(variant, model)
        except ExecutionError:
            return False

    async def _do(self, job: _Job) -> None:
        """Measure it, or find that it has to be built first."""
        try:
            built = None
            if self._builds.is_needed(job.variant, job.model):
                built = await self._builds.find(job.variant, job.model)
                if built is None:
                    self.ask(job.variant, job.model)
                    return
            profile = await self._measure(job, built)
        except (*_PERMANENT, ModellessError, OSError) as error:
            await self._failed(job, error)
            return
        self._finished(job)
        await self._publish(profile, job.model)

    async def _measure(self, job: _Job, built: Built | None) -> Profile:
        _log.info("measuring", variant=job.variant)
        beside_a_build = self._building is not None  # none begins while something is measured
        spec, data = await self._builds.spec(job.variant, job.model, built), await self._builds.evaluation(job.model)
        half = await asyncio.to_thread(lambda: data.halves()[1]) if data is not None else None
        worker = self._config.worker
        if self._group.device.startswith("cuda"):
            await self._apart.close()  # a device's memory is known of a whole process only
        if not self._orders.is_served(job.model):
            self._foresee(spec.builder)
        async with self._apart.lent() as executor:
            measurement = Measurement(executor, spec, self._bench, half)
            profile = await measurement.profile(job.model, self._group.name, worker.measure_s, worker.batch_size_max)
        if beside_a_build:
            self._beside_a_build.add(job.variant)
        else:
            self._beside_a_build.discard(job.variant)
        if built is None:
            return profile
        before = job.before
        build_ms = before.build_ms if before is not None and before.build_key == built.key else built.build_ms
        return replace(profile, build_ms=build_ms, build_url=built.url, build_sha256=built.sha256, build_key=built.key)

    def _finished(self, job: _Job) -> None:
        self._done[job.variant] = job.model.digest
        outdated_ms = self._orders.assignment.outdated.get(job.variant)
        if outdated_ms is not None:
            self._again[job.variant] = outdated_ms
        self._errors.pop(job.variant, None)

    async def _failed(self, job: _Job, error: Exception) -> None:
        reason = (str(error) or type(error).__name__)[:REASON_CHARACTERS_MAX]
        _log.error("variant cannot be measured", variant=job.variant, reason=reason)
        if not isinstance(error, _PERMANENT):
            self._retry(job.variant, reason)
            return
        self._finished(job)
        self._beside_a_build.discard(job.variant)
        if job.before is not None:
            self._errors[job.variant] = f"measuring it again failed, its profile stays: {reason}"
            return
        await self._publish(Profile(job.variant, self._group.name, "failed", job.model.digest, reason), job.model)

    async def _publish(self, profile: Profile, model: ModelVersion) -> None:
        profile = replace(
            profile, price_per_hour=self._group.price_per_hour, measured_ms=self._clock.now_ms(), digest=model.digest
        )
        topic = Topics(self._config.kafka.topic_prefix).profiles
        await self._publisher.write(topic, profile.key.encode(), encode_record(profile))
        if profile.status == "ready":
            _log.info(
                "measured",
                variant=profile.variant,
                accuracy=profile.accuracy,
                memory_mb=profile.memory_bytes >> 20,
                batch_sizes=len(profile.batches),
                p50_ms=round(profile.batches[0].p50_ms, 3),
            )

    # --- building -----------------------------------------------------------------------------------------------------

    async def _build_all(self) -> None:
        while True:
            self._wake_builder.clear()
            self._forget_unwanted()
            asked = [variant for variant in self._to_build if not self._is_later(variant)]
            if not asked or self.measuring is not None or self._next_job() is not None:
                await self._wake_builder.wait()
                continue
            variant = min(asked, key=lambda v: self._order(v, self._to_build[v]))
            self._building = variant
            try:
                await self._build(variant, self._to_build[variant])
            finally:
                self._building = None
                self._wake_measurer.set()

    def _forget_unwanted(self) -> None:
        """What the plan dropped meanwhile, and what is of a model that changed."""
        assignment = self._orders.assignment
        wanted = {*assignment.load, *assignment.measure, *assignment.outdated}
        self._to_build = {
            variant: model
            for variant, model in self._to_build.items()
            if variant in wanted and self._orders.model(variant) == model
        }

    async def _build(self, variant: str, model: ModelVersion) -> None:
        reason: str | None = None
        try:
            if await self._builds.find(variant, model) is None:
                await self._builds.make(variant, model)
        except _PERMANENT as error:
            reason = (str(error) or type(error).__name__)[:REASON_CHARACTERS_MAX]
            _log.error("variant cannot be built", variant=variant, reason=reason)
        except (ModellessError, OSError) as error:
            _log.error("variant cannot be built for now", variant=variant, reason=str(error))
            self._retry(variant, str(error) or type(error).__name__)
            return
        self._to_build.pop(variant, None)
        self._errors.pop(variant, None)
        if reason is not None:
            self._done[variant] = model.digest
            profile = self._orders.profile(variant)
            if profile is None or profile.status == "failed":
                await self._publish(Profile(variant, self._group.name, "failed", model.digest, reason), model)
        self._on_built(variant, reason)

    # --- another time -------------------------------------------------------------------------------------------------

    def _retry(self, variant: str, reason: str) -> None:
        self._errors[variant] = reason
        self._later_s[variant] = time.monotonic() + RETRY_S
        asyncio.get_running_loop().call_later(RETRY_S, self.wake)
        self._on_change()

    def _is_later(self, variant: str) -> bool:
        return time.monotonic() < self._later_s.get(variant, 0.0)

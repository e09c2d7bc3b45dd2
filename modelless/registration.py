"""Registering a model: copy it to the store, give it a version, and wait until the workers serve it.

The same content (its digest) is the same version, so registering twice changes nothing. Two operators at once cannot
take one version number for two models (:mod:`modelless.registry`).

A variant's way on a group: **waiting** (it is being built or measured, or will be) → **measured** → **loaded** by a
worker of the group, which not every variant needs to be; or **failed** with the reason. A group's: **waiting** →
**loading** (one of them is measured) → **ready** (one is loaded, so that it serves the model), or **failed** when all
are. Where another version of the model answers, **measured** is as far as it gets.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from aiokafka.structs import ConsumerRecord

from modelless import registry, store
from modelless.catalog import Catalog, CatalogView, model_digest
from modelless.clock import KafkaClock
from modelless.codec import decode_record
from modelless.config import Config
from modelless.errors import DeadlineExceededError, DecodeError, UnavailableError
from modelless.fleet import FleetView
from modelless.messages import Evaluation, Labels, Member, ModelVersion, Plan, Profile, split_variant
from modelless.specification import Specification, read_specification
from modelless.tables import Follower
from modelless.topic_settings import ensure_task_topic
from modelless.topics import Topics

TIMEOUT_S = 300.0
NOBODY_S = 10.0
"""How long to look for a broker and a worker before giving up."""


SETTLED = ("ready", "measured", "failed")


@dataclass(frozen=True, slots=True)
class VariantProgress:
    """How far one group is with a variant."""

    variant: str
    state: Literal["waiting", "measured", "loaded", "failed"]
    profile: Profile | None = None
    """Absent while it waits."""


@dataclass(frozen=True, slots=True)
class GroupProgress:
    """How far one group is with a model."""

    group: str
    state: Literal["waiting", "loading", "ready", "measured", "failed"]
    """``measured``: it is not loaded, since another version answers: the one labelled stable, or a newer one."""
    profile: Profile | None = None
    """Of a variant that is loaded; until then of one that is measured, or that failed."""
    reason: str | None = None
    """Why it failed, or what its workers complain about."""
    variants: tuple[VariantProgress, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether nothing is built or measured any more."""
        return self.state in SETTLED and all(one.state != "waiting" for one in self.variants)


@dataclass(frozen=True, slots=True)
class Registered:
    model: ModelVersion
    created: bool
    """False when this content was registered already."""
    groups: tuple[GroupProgress, ...]
    """Empty when nobody waited."""

    @property
    def is_served(self) -> bool:
        """By some group; or it would be if it were labelled."""
        return any(group.state in ("ready", "measured") for group in self.groups)


OnProgress = Callable[[ModelVersion, Sequence[GroupProgress]], None]


async def register(
    config: Config,
    path: Path,
    *,
    wait: bool = True,
    wait_all: bool = False,
    timeout_s: float = TIMEOUT_S,
    on_progress: OnProgress | None = None,
) -> Registered:
    """Register the model that a ``model.toml`` describes.

    Args:
        wait: return when every group that is alive serves it or failed to; otherwise once it is written.
        wait_all: and when all its variants are built and measured, or failed.
        on_progress: called with the state of every group whenever one changes.

    Raises:
        ConfigurationError: the specification is wrong; names the field.
        UnavailableError: no Kafka; or it is registered, but there is nobody who could measure and load it.
        DeadlineExceededError: it is registered, but not served by every group after ``timeout_s``; says how far it is.
    """
    specification = await asyncio.to_thread(read_specification, path)
    await ensure_task_topic(config, specification.task)
    changed = asyncio.Event()
    async with AsyncExitStack() as views:
        view = CatalogView(config, changed.set)
        views.push_async_callback(view.stop)
        await view.start()
        model = await asyncio.to_thread(_store, config, specification)
        known = view.catalog.find_digest(model.digest)
        model = known or await _publish(config, model)
        if not wait:
            return Registered(model, known is None, ())
        fleet = FleetView(config, wall_clock(), changed.set)
        views.push_async_callback(fleet.stop)
        await fleet.start()
        plans = PlanView(config, changed.set)
        views.push_async_callback(plans.stop)
        await plans.start()
        watch = _Watch(config, view.catalog, fleet, plans, model, wait_all, on_progress or (lambda *_: None))
        return Registered(model, known is None, await watch.until_settled(changed, timeout_s))


def wall_clock() -> KafkaClock:
    """A clock for commands, which announce nothing and so never learn the offset: it trusts this machine's."""
    clock = KafkaClock()
    now_ms = clock.local_ms()
    clock.observe(now_ms, now_ms, now_ms)
    return clock


def progress(
    config: Config,
    catalog: Catalog,
    model: ModelVersion,
    workers: Sequence[Member],
    expected: Collection[tuple[str, str]] = (),
) -> tuple[GroupProgress, ...]:
    """How far every group of the living ``workers`` that can run the model's format is with it. Pure.

    Args:
        expected: (group, variant) that are to be measured, or have been: see :func:`to_measure`.
    """
    profiles = catalog.profiles(model)
    known = {profile.group for profile in profiles}
    groups = sorted({worker.group for worker in workers if worker.group is not None})
    return tuple(
        _group_progress(
            model,
            group,
            [profile for profile in profiles if profile.group == group],
            [worker for worker in workers if worker.group == group],
            [variant for name, variant in expected if name == group],
            _is_held_back(model, catalog),
        )
        for group in groups
        if group in known or _can_run(config, group, model.format)
    )


def to_measure(plan: Plan, model: ModelVersion, workers: Sequence[Member]) -> set[tuple[str, str]]:
    """(group, variant) of the model that the plan has assigned to one of the workers."""
    return {
        (worker.group, variant)
        for worker in workers
        if worker.group is not None and worker.name in plan.workers
        for variant in plan.workers[worker.name].measure
        if split_variant(variant)[0] == model.key
    }


def _group_progress(
    model: ModelVersion,
    group: str,
    profiles: Sequence[Profile],
    workers: Sequence[Member],
    expected: Sequence[str],
    held_back: bool,
) -> GroupProgress:
    variants = _variants(profiles, workers, expected)
    complaint = _complaint(model, workers)

    def first(state: str) -> Profile | None:
        return next((one.profile for one in variants if one.state == state), None)

    if (loaded := first("loaded")) is not None:
        return GroupProgress(group, "ready", loaded, None, variants)
    if (measured := first("measured")) is not None:
        return GroupProgress(group, "measured" if held_back else "loading", measured, complaint, variants)
    failed = first("failed")
    if failed is not None and all(one.state == "failed" for one in variants):
        return GroupProgress(group, "failed", failed, failed.reason or complaint, variants)
    return GroupProgress(group, "waiting", None, complaint, variants)


def _is_held_back(model: ModelVersion, catalog: Catalog) -> bool:
    """Whether it answers nobody who does not name it, and therefore is not loaded."""
    labels = catalog.labels(model.name) or Labels(model.name)
    if model.version in (labels.stable, labels.canary):
        return False
    newer = (other for other in catalog.models() if other.name == model.name and other.version > model.version)
    return labels.stable is not None or any(p.status == "ready" for other in newer for p in catalog.profiles(other))


def _variants(
    profiles: Sequence[Profile], workers: Sequence[Member], expected: Sequence[str]
) -> tuple[VariantProgress, ...]:
    """Those of one group that are profiled, and those that are expected to be."""
    loaded = {variant for worker in workers for variant in worker.variants}
    found = {
        profile.variant: VariantProgress(
            profile.variant,
            "failed" if profile.status == "failed" else "loaded" if profile.variant in loaded else "measured",
            profile,
        )
        for profile in profiles
    }
    for variant in expected:
        found.setdefault(variant, VariantProgress(variant, "waiting"))
    return tuple(found[variant] for variant in sorted(found))


def _complaint(model: ModelVersion, workers: Sequence[Member]) -> str | None:
    """What a worker last said about one of the model's variants."""
    for worker in workers:
        for subject, words in worker.errors.items():
            if split_variant(subject)[0] == model.key:
                return words
    return None


def _can_run(config: Config, group: str, format: str) -> bool:
    """Emulated models run on emulated devices, and nothing else does. A group that we do not know might."""
    device = next((known.device for known in config.groups if known.name == group), None)
    return device is None or (device == "emulated") == (format == "emulated")


class PlanView:
    """Follows the plan; ``plan`` is the newest one."""

    def __init__(self, config: Config, on_change: Callable[[], None] | None = None) -> None:
        self.plan: Plan | None = None
        self._on_change = on_change or (lambda: None)
        self._follower = Follower(config, [Topics(config.kafka.topic_prefix).plan], self._on_record)

    async def start(self) -> None:
        await self._follower.start()

    async def stop(self) -> None:
        await self._follower.stop()

    def _on_record(self, record: ConsumerRecord) -> None:
        try:
            plan = decode_record(Plan, record.value)
        except DecodeError:
            return  # workers raise the alarm
        if self.plan is None or plan.epoch >= self.plan.epoch:
            self.plan = plan
        self._on_change()


class _Watch:
    """Waits for the groups to settle."""

    def __init__(
        self,
        config: Config,
        catalog: Catalog,
        fleet: FleetView,
        plans: PlanView,
        model: ModelVersion,
        wait_all: bool,
        on_progress: OnProgress,
    ) -> None:
        self._config = config
        self._catalog = catalog
        self._fleet = fleet
        self._plans = plans
        self._model = model
        self._wait_all = wait_all
        self._expected: set[tuple[str, str]] = set()
        """All that any plan wanted: one that is written while a worker is out of reach asks nothing of it."""
        self._on_progress = on_progress
        self._groups: tuple[GroupProgress, ...] = ()

    async def until_settled(self, changed: asyncio.Event, timeout_s: float) -> tuple[GroupProgress, ...]:
        try:
            async with asyncio.timeout(min(NOBODY_S, timeout_s)):
                while self._nobody() is not None:
                    await _next(changed)
        except TimeoutError:
            raise UnavailableError(f"{self._model.key} is registered, but {self._nobody()}") from None
        try:
            async with asyncio.timeout(timeout_s):
                while not self._look():
                    await _next(changed)
        except TimeoutError:
            raise DeadlineExceededError(self._how_far(timeout_s)) from None
        return self._groups

    def _nobody(self) -> str | None:
        """Who is missing, and what to start."""
        workers = self._fleet.workers()
        if not workers:
            return "no worker is alive to measure and load it: start `modelless up`, or `modelless worker --group G`"
        if not self._fleet.brokers():
            return "no broker is alive to plan who loads it: start `modelless up`, or `modelless broker`"
        if not progress(self._config, self._catalog, self._model, workers):
            device = "emulated" if self._model.format == "emulated" else "real"
            return (
                f"no worker that is alive runs {self._model.format} models: start one of a group with a {device} device"
            )
        return None

    def _look(self) -> bool:
        workers = self._fleet.workers()
        if self._plans.plan is not None:
            self._expected |= to_measure(self._plans.plan, self._model, workers)
        groups = progress(self._config, self._catalog, self._model, workers, self._expected)
        if groups != self._groups:
            self._groups = groups
            self._on_progress(self._model, groups)
        if self._wait_all:
            return bool(groups) and all(group.is_complete for group in groups)
        return bool(groups) and all(group.state in SETTLED for group in groups)

    def _how_far(self, timeout_s: float) -> str:
        lines = [
            f"group {group.group} is {group.state}" + (f" ({group.reason})" if group.reason else "") + _waiting(group)
            for group in self._groups
        ]
        missing = "complete" if self._wait_all else "served everywhere"
        return (
            f"{self._model.key} is registered, but not {missing} after {timeout_s:g} s: "
            f"{'; '.join(lines) or 'no group is there'}. `modelless status` and `modelless models` show how it goes on"
        )


def _waiting(group: GroupProgress) -> str:
    names = [split_variant(one.variant)[1] for one in group.variants if one.state == "waiting"]
    return f", waiting for {', '.join(names)}" if names else ""


async def _next(changed: asyncio.Event) -> None:
    await changed.wait()
    changed.clear()


def _store(config: Config, specification: Specification) -> ModelVersion:
    """Copy the files to the store; what to register, still without a version (0)."""
    url, sha256, size_bytes = store.put(config, specification.artifact)
    source = specification.evaluation
    data_url, data_sha256 = store.put(config, source.data)[:2] if source.data is not None else (None, None)
    evaluation = Evaluation(source.accuracy, data_url, data_sha256, source.metric)
    return ModelVersion(
        name=specification.name,
        version=0,
        task=specification.task,
        format=specification.format,
        artifact_url=url,
        artifact_sha256=sha256,
        artifact_bytes=size_bytes,
        inputs=specification.inputs,
        outputs=specification.outputs,
        evaluation=evaluation,
        digest=model_digest(
            name=specification.name,
            task=specification.task,
            format=specification.format,
            artifact_sha256=sha256,
            factory=specification.factory,
            exits=specification.exits,
            inputs=specification.inputs,
            outputs=specification.outputs,
            evaluation=evaluation,
        ),
        factory=specification.factory,
        exits=specification.exits,
        registered_ms=float(int(time.time() * 1000)),
    )


async def _publish(config: Config, model: ModelVersion) -> ModelVersion:
    """Write the model under the next free version; the one that is there when somebody else was first."""

    def numbered(catalog: Catalog) -> ModelVersion:
        known = catalog.find_digest(model.digest)
        return known or replace(model, version=catalog.next_version(model.name))

    return await registry.settle(config, numbered)

"""Which version of a model answers. Pure.

A query that names a task or a model leaves the version to us. Words:

* **place**: a (builder, group): where a version can be loaded. A version is *loaded* at a place on so many workers.
* **served**: the version that answers. The one labelled ``stable``; without the label the newest that is ready.
* **taking over**: another version becomes the served one only once it is loaded wherever it should be, so that no
  query meets a version that is on its way. The plan says where it should be, and keeps the served version loaded
  meanwhile; what waits or runs for the old one is finished by it.
* **canary**: answers a share of what would be answered by stable. The share is cut out by a hash of the query's
  record, so that a redelivered query meets the same version. When it is rolled back, says :mod:`broker.canary`.
* **shadow**: gets copies; see :mod:`broker.shadows`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from modelless.messages import Labels, ModelVersion, Profile, RecordId, split_variant

Place = tuple[str, str]


class Loaded(NamedTuple):
    """A worker that is linked: what it has loaded, and what the plan wants it to have, less what it cannot load."""

    group: str
    ready: frozenset[str]
    wanted: frozenset[str] | None = None
    """None: no plan is known."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far one version is."""

    version: int
    ready: frozenset[Place]
    """Where its profile is good."""
    known: frozenset[Place]
    """Where it was measured, with whatever result."""
    loaded: frozenset[Place]
    planned: frozenset[str] | None
    """Groups that the plan wants it in; None: no plan is known."""
    missing: int
    """Times that the plan wants it on a worker that has not loaded it yet."""


def standing(model: ModelVersion, profiles: Iterable[Profile], workers: Iterable[Loaded]) -> Standing:
    """Of one version, by its profiles and the workers that are linked."""
    fresh = [profile for profile in profiles if profile.digest == model.digest]
    ready = [profile for profile in fresh if profile.is_usable]
    loaded: set[Place] = set()
    planned: set[str] | None = None
    missing = 0
    for worker in workers:
        if worker.wanted is not None and planned is None:
            planned = set()
        for profile in ready:
            if profile.group != worker.group:
                continue
            if profile.variant in worker.ready:
                loaded.add(_place(profile))
            if worker.wanted is not None and planned is not None and profile.variant in worker.wanted:
                planned.add(profile.group)
                missing += profile.variant not in worker.ready
    return Standing(
        model.version,
        frozenset(_place(profile) for profile in ready),
        frozenset(_place(profile) for profile in fresh),
        frozenset(loaded),
        None if planned is None else frozenset(planned),
        missing,
    )


def _place(profile: Profile) -> Place:
    return split_variant(profile.variant)[1], profile.group


def name_of(variant: str) -> str:
    """The model's name in ``name:version`` or ``name:version/builder``."""
    return variant.partition(":")[0]


def takes_over(new: Standing, old: Standing) -> bool:
    """Whether ``new`` is loaded wherever it should be, and may answer instead of ``old``."""
    if not new.loaded or new.missing or not old.loaded <= new.known:
        return False
    groups = {group for _, group in old.loaded} & {group for _, group in new.ready}
    there = {group for _, group in new.loaded}
    return groups <= (there if new.planned is None else there & new.planned)


def served(standings: Sequence[Standing], stable: int | None, current: int | None) -> int | None:
    """The version that answers from now on.

    Args:
        standings: of all versions, ascending.
        stable: as labelled.
        current: that answered until now.
    """
    by_version = {each.version: each for each in standings}
    now = by_version.get(current) if current is not None else None
    if now is not None and not now.loaded:
        now = None
    if stable in by_version:
        wanted = by_version[stable]
        return stable if now is None or now is wanted or takes_over(wanted, now) else now.version
    runnable = [each for each in standings if each.ready]
    if not runnable:
        return standings[-1].version if standings else None
    loaded = [each for each in runnable if each.loaded]
    if not loaded:
        return runnable[-1].version
    answers = now or loaded[0]
    for each in loaded:
        if each.version > answers.version and takes_over(each, answers):
            answers = each
    return answers.version


def share(record: RecordId, purpose: str) -> float:
    """A number in [0, 1) that belongs to a record; independent for each purpose."""
    digest = blake2b(f"{purpose}{record}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def canary_for(labels: Labels | None, record: RecordId) -> str | None:
    """The canary (``name:version``) when it should answer the query at ``record``."""
    if labels is None or labels.canary is None or share(record, "canary") >= labels.canary_weight:
        return None
    return f"{labels.name}:{labels.canary}"


def shadowed(labels: Labels | None, record: RecordId) -> bool:
    """Whether the shadow gets a copy of the query at ``record``."""
    return labels is not None and labels.shadow is not None and share(record, "shadow") < labels.shadow_weight

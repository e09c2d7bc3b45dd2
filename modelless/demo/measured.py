"""Registers the family, and takes from that what the system measured."""

from __future__ import annotations

from collections.abc import Callable

from modelless.config import Config
from modelless.demo.family import Family
from modelless.demo.scenario import Measured
from modelless.errors import UnavailableError
from modelless.registration import Registered, register


async def register_family(config: Config, family: Family, say: Callable[[str], None]) -> tuple[Measured, ...]:
    """One model after the other.

    Raises:
        UnavailableError: a model is not served; with the reason.
    """
    found = []
    for path in family.specifications:
        result = await register(config, path)
        found.append(measured(result))
        say(f"modelless register {path.name}: version {result.model.version}, served by {_groups(result)}")
    return tuple(found)


def measured(result: Registered) -> Measured:
    """The fastest group's profile. Raises UnavailableError when no group is ready with an accuracy."""
    profiles = [group.profile for group in result.groups if group.state == "ready" and group.profile is not None]
    known = [(profile.accuracy, profile) for profile in profiles if profile.accuracy is not None]
    times = [
        (min(batch.p50_ms / batch.batch_size for batch in profile.batches), accuracy)
        for accuracy, profile in known
        if profile.batches
    ]
    if not times:
        reasons = "; ".join(f"{group.group}: {group.reason or group.state}" for group in result.groups) or "no group"
        raise UnavailableError(f"{result.model.name} is registered, but not served ({reasons})")
    row_ms, accuracy = min(times)
    return Measured(result.model.name, accuracy, row_ms)


def _groups(result: Registered) -> str:
    return ", ".join(group.group for group in result.groups if group.state == "ready")

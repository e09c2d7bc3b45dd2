"""Registers the family and reads from Kafka what the system measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from aiokafka.structs import ConsumerRecord

from modelless.codec import decode_record
from modelless.config import Config
from modelless.demo.family import Family
from modelless.demo.scenario import Measured
from modelless.errors import DecodeError, UnavailableError
from modelless.messages import Profile, split_variant
from modelless.registration import register
from modelless.tables import Follower
from modelless.topics import Topics


async def register_family(config: Config, family: Family, say: Callable[[str], None]) -> tuple[Measured, ...]:
    """One model after the other; returns what was measured of their newest versions."""
    for path in family.specifications:
        say(f"modelless register {path}")
        await register(config, path)
    profiles: dict[str, Profile] = {}

    def note(record: ConsumerRecord) -> None:
        if record.value is None:
            return
        try:
            profile = decode_record(Profile, record.value)
        except DecodeError:
            return
        profiles[profile.key] = profile

    follower = Follower(config, [Topics(config.kafka.topic_prefix).profiles], note)
    await follower.start()
    await follower.stop()
    return measured(profiles.values(), {path.stem for path in family.specifications})


def measured(profiles: Iterable[Profile], names: Collection[str]) -> tuple[Measured, ...]:
    """Of each named model the newest version that is ready.

    Raises:
        UnavailableError: a model has no profile.
    """
    newest: dict[str, tuple[int, Measured]] = {}
    for profile in profiles:
        name, _, version = split_variant(profile.variant)[0].partition(":")
        if name not in names or profile.status != "ready" or profile.accuracy is None or not profile.batches:
            continue
        row_ms = min(batch.p50_ms / batch.batch_size for batch in profile.batches)
        if int(version) >= newest.get(name, (0,))[0]:
            newest[name] = (int(version), Measured(name, profile.accuracy, row_ms))
    missing = sorted(set(names) - newest.keys())
    if missing:
        raise UnavailableError(f"nothing was measured of {', '.join(missing)}: see the log of `modelless up`")
    return tuple(found for _, found in newest.values())

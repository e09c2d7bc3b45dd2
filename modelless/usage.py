"""Reading ``<prefix>.usage``: who used what, summed up over its periods. Writing it is the leading broker's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from aiokafka.structs import ConsumerRecord

from modelless.codec import decode_record
from modelless.config import Config
from modelless.errors import DecodeError, InvalidArgumentError
from modelless.messages import Usage
from modelless.tables import Follower
from modelless.topics import Topics

UNITS_MS = {"s": 1e3, "min": 60e3, "h": 3600e3, "d": 86_400e3}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(s|min|h|d)")
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """Of a tenant and task, over all groups and periods."""

    tenant: str
    task: str
    queries: int
    rows: int
    busy_ms: float
    cost_usd: float
    idle_usd: float

    @property
    def total_usd(self) -> float:
        return self.cost_usd + self.idle_usd


def parts(usages: Iterable[Usage]) -> tuple[Part, ...]:
    """By tenant and task, the dearest first."""
    found: dict[tuple[str, str], list[Usage]] = {}
    for usage in usages:
        found.setdefault((usage.tenant, usage.task), []).append(usage)
    summed = [
        Part(
            *key,
            sum(each.queries for each in own),
            sum(each.rows for each in own),
            sum(each.busy_ms for each in own),
            sum(each.cost_usd for each in own),
            sum(each.idle_usd for each in own),
        )
        for key, own in found.items()
    ]
    return tuple(sorted(summed, key=lambda part: (-part.total_usd, part.tenant, part.task)))


def since_ms(text: str, now_ms: float) -> float:
    """``90s``, ``30min``, ``24h`` or ``7d`` ago, or a date or time as in ISO 8601 (UTC unless it says otherwise).

    Raises:
        InvalidArgumentError: it is neither.
    """
    span = _SPAN.fullmatch(text.strip())
    if span is not None:
        return now_ms - float(span[1]) * UNITS_MS[span[2]]
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidArgumentError(
            f"--since: got {text!r}, expected a span (90s, 30min, 24h, 7d) or a time (2026-11-23, 2026-11-23T15:00)"
        ) from None
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp() * 1000


async def read(config: Config, from_ms: float) -> Sequence[Usage]:
    """Of all periods that began since; each part once, in the order of periods.

    Raises:
        UnavailableError: no Kafka, or it has no such topic.
    """
    topic = Topics(config.kafka.topic_prefix).usage
    found: dict[str, Usage] = {}

    def on_record(record: ConsumerRecord) -> None:
        try:
            usage = decode_record(Usage, record.value)
        except DecodeError as error:
            _log.warning("ignored a malformed record", what=topic, error=error.message)
            return
        if usage.start_ms >= from_ms:
            found[usage.key] = usage

    follower = Follower(config, [topic], on_record, since_ms=max(0.0, from_ms))
    await follower.start()
    await follower.stop()
    return sorted(found.values(), key=lambda usage: usage.start_ms)

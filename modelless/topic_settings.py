"""What our topics must be like, their creation, and the grading of a cluster that exists.

``settings`` says what we create, ``grade`` what a difference costs, in terms of what the system promises. A finding
**blocks** when queries could be lost or never answered, and **weakens** when a promise holds less well; both say what to
change. What a cluster does not let us read is **unknown**, and said to be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from aiokafka.admin import NewTopic
from aiokafka.errors import KafkaError, for_code

from modelless.config import Config
from modelless.errors import ConfigurationError, PermissionDeniedError, UnavailableError
from modelless.kafka import make_admin
from modelless.topics import Topics

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
OUTAGE_MS_MAX = DAY_MS
"""The longest outage of the whole system that queries must outlive in their topic."""
RECORD_OVERHEAD_BYTES = 64 * 1024
"""What keys, headers and a batch's frame may add to the largest value."""
ADMIN_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class TopicSetting:
    """A topic as we create it; ``config`` holds Kafka's own names and values."""

    partitions: int
    replication_factor: int
    config: Mapping[str, str]


def settings(config: Config) -> dict[str, TopicSetting]:
    """Every topic of ours by name, without those bound to tasks."""
    topics = Topics(config.kafka.topic_prefix)
    many = config.kafka.partitions
    table: dict[str, tuple[int, dict[str, str]]] = {
        topics.queries: (many, _QUERIES),
        topics.offline: (many, _QUERIES),
        topics.replies: (many, _kept(HOUR_MS)),
        topics.cancel: (1, _kept(HOUR_MS)),
        topics.registry: (1, _COMPACTED),
        topics.profiles: (1, _COMPACTED),
        topics.plan: (1, _COMPACTED),
        topics.fleet: (1, _kept(10 * MINUTE_MS) | {"message.timestamp.type": "LogAppendTime"}),
        topics.dead_letter: (1, _kept(14 * DAY_MS)),
    }
    return {name: _setting(config, partitions, values) for name, (partitions, values) in table.items()}


def task_setting(config: Config) -> TopicSetting:
    """Of a query topic that is bound to one task."""
    return _setting(config, config.kafka.partitions, _QUERIES)


def _kept(retention_ms: int) -> dict[str, str]:
    """Deleted by age; segments short enough that the age means something."""
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(retention_ms),
        "segment.ms": str(max(retention_ms // 4, MINUTE_MS)),
    }


_QUERIES = _kept(7 * DAY_MS) | {"message.timestamp.type": "LogAppendTime", "compression.type": "uncompressed"}
_COMPACTED = {"cleanup.policy": "compact", "segment.ms": str(DAY_MS), "min.cleanable.dirty.ratio": "0.1"}


def _setting(config: Config, partitions: int, values: Mapping[str, str]) -> TopicSetting:
    largest = config.kafka.request_bytes_max + RECORD_OVERHEAD_BYTES
    return TopicSetting(partitions, config.kafka.replication_factor, {**values, "max.message.bytes": str(largest)})


async def create_missing(config: Config) -> list[str]:
    """Create what of ``settings`` is not there; the names that were created. Existing topics are left as they are.

    Raises:
        UnavailableError: Kafka does not answer.
        PermissionDeniedError: we may not create topics there.
        ConfigurationError: Kafka refuses a setting (a replication factor that it has no nodes for, say).
    """
    return await _create(config, settings(config))


async def ensure_task_topic(config: Config, task: str) -> str:
    """The query topic bound to ``task``, created when it is not there. Raises as ``create_missing``."""
    name = Topics(config.kafka.topic_prefix).task_queries(task)
    await _create(config, {name: task_setting(config)})
    return name


async def _create(config: Config, wanted: Mapping[str, TopicSetting]) -> list[str]:
    admin = make_admin(config)
    try:
        async with asyncio.timeout(ADMIN_TIMEOUT_S):
            await admin.start()
            missing = sorted(set(wanted) - set(await admin.list_topics()))
            if not missing:
                return []
            reply = await admin.create_topics([_new_topic(name, wanted[name]) for name in missing])
            for name, code, *text in reply.topic_errors:
                _raise_for(name, code, text[0] if text else None)
            while not set(missing) <= set(await admin.list_topics()):
                await asyncio.sleep(0.05)
            return missing
    except (TimeoutError, KafkaError, OSError) as error:
        raise unreachable(config, error) from error
    finally:
        await admin.close()


def unreachable(config: Config, error: BaseException) -> UnavailableError:
    """What to say when Kafka does not answer."""
    return UnavailableError(
        f"Kafka at {config.kafka.servers} does not answer ({type(error).__name__}); "
        "start it (`modelless kafka`, or `modelless up`), or set kafka.bootstrap_servers"
    )


def _new_topic(name: str, setting: TopicSetting) -> NewTopic:
    return NewTopic(name, setting.partitions, setting.replication_factor, topic_configs=dict(setting.config))


_TOPIC_EXISTS, _TOPIC_AUTHORIZATION_FAILED, _CLUSTER_AUTHORIZATION_FAILED = 36, 29, 31


def _raise_for(name: str, code: int, text: str | None) -> None:
    if code in (0, _TOPIC_EXISTS):
        return
    if code in (_TOPIC_AUTHORIZATION_FAILED, _CLUSTER_AUTHORIZATION_FAILED):
        raise PermissionDeniedError(
            f"topic {name!r} may not be created by this user; allow CREATE, or create it as `modelless check` says"
        )
    raise ConfigurationError(f"topic {name!r} cannot be created: {text or for_code(code).__name__}")

"""What our topics must be like, their creation, and the grading of a cluster that exists.

``settings`` says what we create, ``grade`` what a difference costs, in terms of what the system promises. A finding
**blocks** when queries could vanish or the system could not run, and **weakens** when a promise holds less well. What a
cluster does not let us read is **unknown**, and said to be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, for_code

from modelless.config import Config
from modelless.errors import ConfigurationError, PermissionDeniedError, UnavailableError
from modelless.kafka import make_admin
from modelless.topics import Topics

Kind = Literal["queries", "replies", "cancel", "table", "plan", "fleet", "feedback", "usage", "dead-letter"]
Severity = Literal["blocks", "weakens", "unknown"]

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
OUTAGE_MS_MAX = DAY_MS
"""The longest outage of the whole system that queries must outlive in their topic."""
RECORD_OVERHEAD_BYTES = 64 * 1024
"""What keys, headers and a batch's frame may add to the largest value."""
DEAD_LETTER_OVERHEAD_BYTES = 2 * RECORD_OVERHEAD_BYTES
"""On top of that: a whole record, or a whole batch that cannot be read, and the headers that say why."""
ADMIN_TIMEOUT_S = 30.0
CREATE_HINT = "run `modelless check --create`"


@dataclass(frozen=True, slots=True)
class TopicSetting:
    """A topic as we create it; ``config`` holds Kafka's own names and values."""

    kind: Kind
    partitions: int
    replication_factor: int
    config: Mapping[str, str]


def settings(config: Config) -> dict[str, TopicSetting]:
    """Every topic of ours by name, without those bound to tasks."""
    topics = Topics(config.kafka.topic_prefix)
    kinds: dict[str, Kind] = {
        topics.queries: "queries",
        topics.offline: "queries",
        topics.replies: "replies",
        topics.cancel: "cancel",
        topics.registry: "table",
        topics.profiles: "table",
        topics.plan: "plan",
        topics.fleet: "fleet",
        topics.feedback: "feedback",
        topics.usage: "usage",
        topics.dead_letter: "dead-letter",
    }
    return {name: setting_of(config, kind) for name, kind in kinds.items()}


def setting_of(config: Config, kind: Kind) -> TopicSetting:
    kafka = config.kafka
    overhead_bytes = DEAD_LETTER_OVERHEAD_BYTES if kind == "dead-letter" else RECORD_OVERHEAD_BYTES
    values = _VALUES[kind] | {"max.message.bytes": str(kafka.request_bytes_max + overhead_bytes)}
    if kafka.replication_factor > 2:
        values["min.insync.replicas"] = "2"
    return TopicSetting(kind, kafka.partitions if kind in _MANY else 1, kafka.replication_factor, values)


def _kept(retention_ms: int) -> dict[str, str]:
    """Deleted by age; segments short enough that the age means something."""
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(retention_ms),
        "segment.ms": str(max(retention_ms // 4, MINUTE_MS)),
    }


_MANY = ("queries", "replies")
_COMPACTED = {"cleanup.policy": "compact", "segment.ms": str(DAY_MS), "min.cleanable.dirty.ratio": "0.1"}
_LOG_TIME = {"message.timestamp.type": "LogAppendTime"}
_VALUES: dict[Kind, dict[str, str]] = {
    "queries": _kept(7 * DAY_MS) | _LOG_TIME | {"compression.type": "uncompressed"},
    "replies": _kept(HOUR_MS),
    "cancel": _kept(HOUR_MS),
    "table": _COMPACTED,
    "plan": _COMPACTED,
    "fleet": _kept(10 * MINUTE_MS) | _LOG_TIME,
    "feedback": _kept(7 * DAY_MS),
    "usage": _kept(400 * DAY_MS),
    "dead-letter": _kept(14 * DAY_MS),
}


# --- creation --------------------------------------------------------------------------------------------------


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
    await _create(config, {name: setting_of(config, "queries")})
    return name


async def _create(config: Config, wanted: Mapping[str, TopicSetting]) -> list[str]:
    admin = make_admin(config)
    try:
        async with asyncio.timeout(ADMIN_TIMEOUT_S):
            await admin.start()
            missing = sorted(set(wanted) - set(await admin.list_topics()))
            if not missing:
                return []
            reply: Any = await admin.create_topics([_new_topic(name, wanted[name]) for name in missing])
            for name, code, *text in reply.topic_errors:
                _raise_for(name, code, text[0] if text else None)
            while not _led(await admin.describe_topics(missing)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            return missing
    except (TimeoutError, KafkaError, OSError) as error:
        raise unreachable(config, error) from error
    finally:
        await admin.close()


def _led(topics: list[dict[str, Any]]) -> bool:
    """Whether all are known to the node asked, and have leaders."""
    return all(
        topic["partitions"] and all(partition["leader"] >= 0 for partition in topic["partitions"]) for topic in topics
    )


def unreachable(config: Config, error: BaseException) -> UnavailableError:
    """What to say when Kafka does not answer."""
    return UnavailableError(
        f"Kafka at {config.kafka.servers} does not answer ({type(error).__name__}); "
        "start it (`modelless kafka`, or `modelless up`), or set kafka.bootstrap_servers"
    )


def _new_topic(name: str, setting: TopicSetting) -> NewTopic:
    return NewTopic(name, setting.partitions, setting.replication_factor, topic_configs=dict(setting.config))


_TOPIC_EXISTS, _TOPIC_FORBIDDEN, _CLUSTER_FORBIDDEN = 36, 29, 31


def _raise_for(name: str, code: int, text: str | None) -> None:
    if code in (0, _TOPIC_EXISTS):
        return
    if code in (_TOPIC_FORBIDDEN, _CLUSTER_FORBIDDEN):
        raise PermissionDeniedError(
            f"topic {name!r} may not be created by this user; allow CREATE on it, or have it created by who may"
        )
    raise ConfigurationError(f"topic {name!r} cannot be created: {text or for_code(code).__name__}")


# --- inspection and grading ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ActualTopic:
    """A topic as it is; ``config`` is None where we may not read it."""

    partitions: int
    replicas: int
    config: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class Cluster:
    """What ``grade`` judges: the topics that exist, and the settings of a node (None where we may not read them)."""

    topics: Mapping[str, ActualTopic]
    settings: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that differs from what the promises need."""

    topic: str
    """Its name, or ``cluster``."""
    severity: Severity
    what: str
    costs: str
    """The promise that it breaks or weakens."""
    change: str


@dataclass(frozen=True, slots=True)
class _Rule:
    kinds: tuple[Kind | Literal["cluster"], ...]
    setting: str
    bad: Callable[[str, Config], bool]
    severity: Severity
    costs: str
    change: str | None = None
    """Default: set it to what we create topics with."""


_ALL: tuple[Kind, ...] = ("queries", "replies", "cancel", "table", "plan", "fleet", "dead-letter")
_SOON_MS = HOUR_MS


def _less(limit: int) -> Callable[[str, Config], bool]:
    return lambda value, _: 0 <= int(value) < limit


_RULES = (
    _Rule(("queries",), "cleanup.policy", lambda v, _: "compact" in v, "blocks",
          "P1: a query vanishes when another has its key"),
    _Rule(("table", "plan"), "cleanup.policy", lambda v, _: v != "compact", "blocks",
          "registered models, profiles and plans are forgotten with age"),
    _Rule(("queries",), "retention.ms", _less(_SOON_MS), "blocks",
          "P1: queries vanish in an outage of less than an hour"),
    _Rule(("queries",), "retention.ms", lambda v, _: _SOON_MS <= int(v) < OUTAGE_MS_MAX, "weakens",
          "P1: queries vanish in an outage of less than a day"),
    _Rule(("queries",), "retention.bytes", lambda v, _: int(v) >= 0, "weakens",
          "P1: a flood deletes queries before they are answered", "set retention.bytes=-1"),
    _Rule(("usage",), "retention.ms", _less(32 * DAY_MS), "weakens",
          "who used what is forgotten before a month's bill is made"),
    _Rule(("replies",), "retention.ms", _less(MINUTE_MS), "weakens",
          "P1: replies vanish before a slow consumer reads them"),
    _Rule(("queries",), "message.timestamp.type", lambda v, _: v != "LogAppendTime", "weakens",
          "P6, P14: deadlines count from the producer's clock, not from Kafka's"),
    _Rule(("fleet",), "message.timestamp.type", lambda v, _: v != "LogAppendTime", "weakens",
          "P14: processes cannot tell how far their clock is off"),
    _Rule(("queries",), "compression.type", lambda v, _: v != "uncompressed", "weakens",
          "P5, P13: a small record may unpack to a huge one (a decompression bomb)"),
    _Rule(_ALL, "max.message.bytes", lambda v, c: int(v) < c.kafka.request_bytes_max, "weakens",
          "P15: records that kafka.request_bytes_max allows are refused by Kafka",
          "raise max.message.bytes, or lower kafka.request_bytes_max below it"),
    _Rule(("cluster",), "auto.create.topics.enable", lambda v, _: v == "true", "weakens",
          "P13: a mistyped topic is created, with the wrong settings", "set auto.create.topics.enable=false"),
    _Rule(("cluster",), "group.min.session.timeout.ms", lambda v, c: int(v) > c.broker.session_timeout_ms, "blocks",
          "brokers cannot join their group", "raise broker.session_timeout_ms to it"),
    _Rule(("cluster",), "group.max.session.timeout.ms", lambda v, c: int(v) < c.broker.session_timeout_ms, "blocks",
          "brokers cannot join their group", "lower broker.session_timeout_ms to it"),
    _Rule(("cluster",), "offsets.retention.minutes", lambda v, _: int(v) * MINUTE_MS < OUTAGE_MS_MAX, "weakens",
          "P3: after an outage that long every query in the topic runs again", "set offsets.retention.minutes=10080"),
    _Rule(("cluster",), "offset.metadata.max.bytes", _less(4096), "weakens",
          "P3: more answered queries run again after a crash", "set offset.metadata.max.bytes=4096"),
)  # fmt: skip


def grade(config: Config, cluster: Cluster) -> list[Finding]:
    """Judge a cluster; nothing found means that the promises hold. Pure."""
    findings = list(_judge_settings(config, "cluster", "cluster", cluster.settings, {}))
    for name, wanted in wanted_topics(config, cluster.topics).items():
        findings += _judge_topic(config, name, wanted, cluster.topics.get(name))
    return findings


def wanted_topics(config: Config, existing: Iterable[str]) -> dict[str, TopicSetting]:
    """``settings``, the query topics of ``broker.topics``, and what exists of topics by task and of reply topics."""
    topics = Topics(config.kafka.topic_prefix)
    wanted = settings(config) | {name: setting_of(config, "queries") for name in config.broker.topics}
    for name in sorted(set(existing) - set(wanted)):
        if topics.task_of(name) is not None:
            wanted[name] = setting_of(config, "queries")
        elif name.startswith(f"{topics.replies}."):
            wanted[name] = setting_of(config, "replies")
    return wanted


def _judge_topic(config: Config, name: str, wanted: TopicSetting, actual: ActualTopic | None) -> Iterator[Finding]:
    if actual is None:
        ours = name not in config.broker.topics
        change = CREATE_HINT if ours else "create it, or take it out of broker.topics"
        yield Finding(name, "blocks", "is not there, or hidden from this user", "the system cannot run", change)
        return
    if wanted.kind in ("plan", "fleet") and actual.partitions != 1:
        severity: Severity = "blocks" if wanted.kind == "plan" else "weakens"
        costs = "plans have no order" if wanted.kind == "plan" else "who is alive is judged by several clocks"
        yield Finding(name, severity, f"{actual.partitions} partitions", costs, "make it anew with one partition")
    if wanted.kind == "queries" and actual.partitions < config.broker.brokers:
        what = f"{actual.partitions} partitions for {config.broker.brokers} brokers"
        yield Finding(name, "weakens", what, "some brokers have nothing to do", "add partitions")
    if actual.replicas < wanted.replication_factor:
        what = f"{actual.replicas} replicas, kafka.replication_factor is {wanted.replication_factor}"
        yield Finding(name, "weakens", what, "P1: losing a node loses what is in it", "add replicas")
    if actual.config is not None and int(actual.config.get("min.insync.replicas", 1)) > actual.replicas:
        what = f"min.insync.replicas = {actual.config['min.insync.replicas']} with {actual.replicas} replicas"
        yield Finding(name, "blocks", what, "nothing can be written", f"set min.insync.replicas={actual.replicas}")
    yield from _judge_settings(config, name, wanted.kind, actual.config, wanted.config)


def _judge_settings(
    config: Config,
    name: str,
    kind: Kind | Literal["cluster"],
    actual: Mapping[str, str] | None,
    wanted: Mapping[str, str],
) -> Iterator[Finding]:
    rules = [rule for rule in _RULES if kind in rule.kinds]
    if actual is None:
        names = ", ".join(dict.fromkeys(rule.setting for rule in rules))
        change = "allow DescribeConfigs, or look yourself"
        yield Finding(name, "unknown", "its settings may not be read", f"not checked: {names}", change)
        return
    for rule in rules:
        value = actual.get(rule.setting)
        if value is not None and rule.bad(value, config):
            change = rule.change or f"set {rule.setting}={wanted[rule.setting]}"
            yield Finding(name, rule.severity, f"{rule.setting} = {value}", rule.costs, change)


async def inspect(config: Config) -> Cluster:
    """Read what ``grade`` needs; what we may not read is None there.

    Raises:
        UnavailableError: Kafka does not answer.
    """
    admin = make_admin(config)
    try:
        async with asyncio.timeout(ADMIN_TIMEOUT_S):
            await admin.start()
            described = {topic["topic"]: topic for topic in await admin.describe_topics() if not topic["error_code"]}
            names = [name for name in wanted_topics(config, described) if name in described]
            configs = await _configs(admin, ConfigResourceType.TOPIC, names)
            node = str((await admin.describe_cluster())["brokers"][0]["node_id"])
            cluster = await _configs(admin, ConfigResourceType.BROKER, [node])
    except (TimeoutError, KafkaError, OSError) as error:
        raise unreachable(config, error) from error
    finally:
        await admin.close()
    return Cluster(
        {name: _actual(described[name]["partitions"], configs.get(name)) for name in names}, cluster.get(node)
    )


def _actual(partitions: list[dict[str, Any]], values: Mapping[str, str] | None) -> ActualTopic:
    return ActualTopic(len(partitions), min(len(partition["replicas"]) for partition in partitions), values)


async def _configs(admin: AIOKafkaAdminClient, kind: ConfigResourceType, names: list[str]) -> dict[str, dict[str, str]]:
    """Settings by resource; without those that may not be read."""
    try:
        replies: Any = await admin.describe_configs([ConfigResource(kind, name) for name in names]) if names else []
    except KafkaError:
        return {}
    found = [resource for reply in replies for resource in reply.to_object()["resources"]]
    return {
        resource["resource_name"]: {
            entry["config_names"]: entry["config_value"]
            for entry in resource["config_entries"]
            if entry["config_value"] is not None
        }
        for resource in found
        if not resource["error_code"]
    }

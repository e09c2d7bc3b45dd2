from __future__ import annotations

from dataclasses import replace

import pytest

from modelless.config import Config, load_config
from modelless.topic_settings import ActualTopic, Cluster, Finding, grade, setting_of, settings

CONFIG = load_config(broker={"topics": ("bank.scores",)})
SETTINGS = {
    "auto.create.topics.enable": "false",
    "group.min.session.timeout.ms": "6000",
    "group.max.session.timeout.ms": "1800000",
    "offsets.retention.minutes": "10080",
    "offset.metadata.max.bytes": "4096",
}


def as_created(config: Config = CONFIG) -> Cluster:
    wanted = settings(config) | {name: setting_of(config, "queries") for name in config.broker.topics}
    topics = {name: ActualTopic(s.partitions, s.replication_factor, s.config) for name, s in wanted.items()}
    return Cluster(topics, SETTINGS)


def with_topic(name: str, partitions: int | None = None, replicas: int | None = None, **values: str) -> list[Finding]:
    """Findings after changing one topic; a setting's name is spelt with underscores."""
    cluster = as_created()
    topic = cluster.topics[name]
    changed = ActualTopic(
        topic.partitions if partitions is None else partitions,
        topic.replicas if replicas is None else replicas,
        {**(topic.config or {}), **{key.replace("_", "."): value for key, value in values.items()}},
    )
    return grade(CONFIG, Cluster({**cluster.topics, name: changed}, cluster.settings))


def test_what_we_create_has_no_findings() -> None:
    assert grade(CONFIG, as_created()) == []


def test_three_replicas_are_created_so_that_two_must_have_a_record() -> None:
    config = load_config(kafka={"replication_factor": 3})
    assert settings(config)["modelless.queries"].config["min.insync.replicas"] == "2"
    assert grade(config, as_created(config)) == []


@pytest.mark.parametrize("name", sorted(settings(CONFIG)))
def test_a_missing_topic_blocks_and_says_how_to_create_it(name: str) -> None:
    cluster = as_created()
    rest = {topic: actual for topic, actual in cluster.topics.items() if topic != name}
    [finding] = grade(CONFIG, Cluster(rest, SETTINGS))
    assert (finding.topic, finding.severity) == (name, "blocks")
    assert "--create" in finding.change


def test_a_missing_topic_that_is_not_ours_is_the_operators_to_create() -> None:
    cluster = as_created()
    rest = {topic: actual for topic, actual in cluster.topics.items() if topic != "bank.scores"}
    [finding] = grade(CONFIG, Cluster(rest, SETTINGS))
    assert "broker.topics" in finding.change


@pytest.mark.parametrize(
    ("topic", "setting", "value", "severity"),
    [
        ("modelless.queries", "cleanup.policy", "compact", "blocks"),
        ("modelless.queries", "cleanup.policy", "compact,delete", "blocks"),
        ("modelless.registry", "cleanup.policy", "delete", "blocks"),
        ("modelless.plan", "cleanup.policy", "compact,delete", "blocks"),
        ("modelless.queries", "retention.ms", "60000", "blocks"),
        ("modelless.queries", "retention.ms", "7200000", "weakens"),
        ("modelless.queries", "retention.bytes", "1000000", "weakens"),
        ("modelless.queries.offline", "message.timestamp.type", "CreateTime", "weakens"),
        ("bank.scores", "message.timestamp.type", "CreateTime", "weakens"),
        ("modelless.fleet", "message.timestamp.type", "CreateTime", "weakens"),
        ("modelless.queries", "compression.type", "producer", "weakens"),
        ("modelless.replies", "max.message.bytes", "1000000", "weakens"),
        ("modelless.replies", "min.insync.replicas", "2", "blocks"),
    ],
)
def test_each_setting_is_judged_and_the_change_is_named(topic: str, setting: str, value: str, severity: str) -> None:
    [finding] = with_topic(topic, **{setting.replace(".", "_"): value})
    assert (finding.topic, finding.severity, finding.what.split(" = ")[0]) == (topic, severity, setting)
    assert setting in finding.change


@pytest.mark.parametrize("value", ["-1", "604800000"])
def test_unlimited_and_long_retention_are_fine(value: str) -> None:
    assert with_topic("modelless.queries", retention_ms=value) == []


def test_the_plan_has_one_partition() -> None:
    [finding] = with_topic("modelless.plan", partitions=2)
    assert finding.severity == "blocks"


def test_fewer_partitions_than_brokers_weaken() -> None:
    config = load_config(broker={"brokers": 5})
    assert {finding.topic for finding in grade(config, as_created(config))} == {
        "modelless.queries",
        "modelless.queries.offline",
    }


def test_fewer_replicas_than_wanted_weaken() -> None:
    config = load_config(kafka={"replication_factor": 2})
    cluster = as_created(config)
    one = replace(cluster.topics["modelless.queries"], replicas=1)
    [finding] = grade(config, Cluster({**cluster.topics, "modelless.queries": one}, SETTINGS))
    assert (finding.severity, finding.topic) == ("weakens", "modelless.queries")


@pytest.mark.parametrize(
    ("setting", "value", "severity"),
    [
        ("auto.create.topics.enable", "true", "weakens"),
        ("group.min.session.timeout.ms", "30000", "blocks"),
        ("group.max.session.timeout.ms", "5000", "blocks"),
        ("offsets.retention.minutes", "60", "weakens"),
        ("offset.metadata.max.bytes", "1024", "weakens"),
    ],
)
def test_the_clusters_settings_are_judged(setting: str, value: str, severity: str) -> None:
    [finding] = grade(CONFIG, Cluster(as_created().topics, {**SETTINGS, setting: value}))
    assert (finding.topic, finding.severity) == ("cluster", severity)


def test_what_may_not_be_read_is_unknown_and_blocks_nothing() -> None:
    topics = {name: replace(topic, config=None) for name, topic in as_created().topics.items()}
    findings = grade(CONFIG, Cluster(topics, None))
    assert {finding.severity for finding in findings} == {"unknown"}
    assert len(findings) == len(topics) + 1
    assert "auto.create.topics.enable" in findings[0].costs


def test_topics_by_task_and_other_reply_topics_are_judged_as_their_kind() -> None:
    bad = ActualTopic(4, 1, {"compression.type": "producer", "retention.ms": "1000"})
    extra = {"modelless.queries.digits": bad, "modelless.replies.bank": bad, "elsewhere": bad}
    findings = grade(CONFIG, Cluster({**as_created().topics, **extra}, SETTINGS))
    assert [(f.topic, f.severity) for f in findings] == [
        ("modelless.queries.digits", "blocks"),
        ("modelless.queries.digits", "weakens"),
        ("modelless.replies.bank", "weakens"),
    ]

from __future__ import annotations

import re

import pytest

from modelless.topics import ReplyTopicRule, Topics

TOPICS = Topics("ml")


def test_every_name_starts_with_the_prefix() -> None:
    names = [getattr(TOPICS, name) for name, kind in vars(Topics).items() if isinstance(kind, property)]
    assert len(names) >= 9
    assert all(name.lstrip("^").replace("\\", "").startswith("ml.") for name in names)


@pytest.mark.parametrize(
    ("topic", "task"),
    [
        ("ml.queries.digits", "digits"),
        ("ml.queries.a.b", "a.b"),
        ("ml.queries", None),
        ("ml.queries.", None),
        ("ml.queries.offline", None),
        ("other.queries.digits", None),
    ],
)
def test_task_of(topic: str, task: str | None) -> None:
    assert TOPICS.task_of(topic) == task
    if task is not None:
        assert TOPICS.task_queries(task) == topic


def test_query_pattern() -> None:
    for topic in ("ml.queries", "ml.queries.offline", "ml.queries.digits"):
        assert re.match(TOPICS.query_pattern, topic)
    for topic in ("mlxqueries", "ml.queriesx", "aml.queries", "ml.replies", "ml.queries."):
        assert not re.match(TOPICS.query_pattern, topic)


@pytest.mark.parametrize("topic", ["ml.replies", "ml.replies.team-a", "ml.replies.a.b"])
def test_reply_topics_of_ours_are_allowed(topic: str) -> None:
    assert ReplyTopicRule(TOPICS).allows(topic)


HOSTILE = [
    "",
    ".",
    "..",
    "../x",
    "__consumer_offsets",
    "__transaction_state",
    "ml",
    "ml.queries",
    "ml.queries.digits",
    "ml.registry",
    "ml.plan",
    "ml.dead-letter",
    "ml.repliesx",
    "ml.replies.é",
    "ml.replies." + "x" * 300,
    "ml.replies.a\n",
    "ml.replies.a b",
]


@pytest.mark.parametrize("topic", [*HOSTILE, "orders"])
def test_everything_else_is_not(topic: str) -> None:
    assert not ReplyTopicRule(TOPICS).allows(topic)


@pytest.mark.parametrize("topic", HOSTILE)
def test_no_configuration_allows_damage(topic: str) -> None:
    assert not ReplyTopicRule(TOPICS, [topic, "*", "ml.*", "__*", "_*"]).allows(topic)


def test_configured_names_and_prefixes() -> None:
    rule = ReplyTopicRule(TOPICS, ["orders", "team-a.*"])
    assert [rule.allows(topic) for topic in ("orders", "team-a.x", "team-a.", "orders2", "team-b.x")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_a_prefix_of_our_prefix_is_foreign() -> None:
    assert ReplyTopicRule(TOPICS, ["mlx.*"]).allows("mlx.queries")

"""Queries that are read together: when one is given what another one was."""

from __future__ import annotations

from typing import Any

import pytest
from broker_builders import Bench, entry, model, profile

from broker.alike import GIVEN_MS_MAX, Alike
from broker.catalog import Target
from broker.core import Reply, Send
from broker.fairness import Account
from broker.ledger import Entry
from broker.selector import Chosen, Parked

NOW_MS = 1000.0
ASKED = {"arrival_ms": 990.0, "latency_ms_max": 100.0}
"""They have 90 ms left."""


def chosen(missed: tuple[str, ...] = ()) -> Chosen:
    bench = Bench((model(), [profile(model())]))
    (candidate,) = bench.core.catalog.candidates()
    return Chosen(candidate, missed, candidate)


CHOICE, TARGET = chosen(), Target("t")


def known(choice: Any = CHOICE, **asked: Any) -> Alike:
    alike = Alike(NOW_MS)
    alike.learn(entry(**ASKED | asked), TARGET, 0.9, choice)
    return alike


def test_who_asks_for_the_same_is_given_the_same_and_wants_nothing_more() -> None:
    assert known().find(entry(1, **ASKED), TARGET, 0.9) == CHOICE._replace(wanted=None)
    assert known(latency_ms_max=None).find(entry(1, arrival_ms=5.0), TARGET, 0.9) is None, "it has a deadline"


def test_who_has_no_deadline_is_given_what_another_one_without_was() -> None:
    def offline(offset: int) -> Entry:
        made = entry(offset, arrival_ms=offset)
        made.latency_deadline_ms = made.deadline_ms = None
        return made

    alike = Alike(NOW_MS)
    alike.learn(offline(1), TARGET, 0.9, CHOICE)
    assert alike.find(offline(2), TARGET, 0.9) is not None


@pytest.mark.parametrize(
    "other",
    [
        {"latency_ms_max": 99.0},
        {"cost_max": 1.0},
        {"prefer": "accuracy"},
        {"on_miss": "late"},
        {"rows": 2},
        {"width": 5},
    ],
    ids=str,
)
def test_who_asks_for_anything_else_is_not(other: dict[str, Any]) -> None:
    assert known().find(entry(1, **ASKED | other), TARGET, 0.9) is None


def test_nor_who_names_another_target_or_has_another_floor_or_pays_from_another_account() -> None:
    assert known().find(entry(1, **ASKED), Target("t"), 0.9) is None
    assert known().find(entry(1, **ASKED), TARGET, 0.8) is None
    apart = entry(1, **ASKED)
    apart.account = Account("another topic")
    assert known().find(apart, TARGET, 0.9) is None


def test_a_choice_holds_until_its_group_was_given_too_much() -> None:
    asked = {"arrival_ms": 990.0, "latency_ms_max": 10_000.0}
    alike = known(**asked)
    alike.gave("another", 100 * GIVEN_MS_MAX)
    alike.gave("cpu", GIVEN_MS_MAX)
    assert alike.find(entry(1, **asked), TARGET, 0.9) is not None
    alike.gave("cpu", 0.01)
    assert alike.find(entry(1, **asked), TARGET, 0.9) is None
    alike.learn(entry(1, **asked), TARGET, 0.9, CHOICE)
    assert alike.find(entry(2, **asked), TARGET, 0.9) is not None, "from then on it counts anew"


def test_what_was_given_and_the_time_that_was_lost_are_little_of_its_slack() -> None:
    alike, little_ms = known(), 0.5
    assert alike.find(entry(1, **ASKED | {"arrival_ms": 990.0 - little_ms}), TARGET, 0.9) is not None
    assert alike.find(entry(1, **ASKED | {"arrival_ms": 990.0 - 2 * little_ms}), TARGET, 0.9) is None
    alike.gave("cpu", little_ms)
    assert alike.find(entry(1, **ASKED | {"arrival_ms": 990.0 - little_ms}), TARGET, 0.9) is None
    assert alike.find(entry(1, **ASKED), TARGET, 0.9) is not None
    alike.gave("cpu", little_ms)
    assert alike.find(entry(1, **ASKED), TARGET, 0.9) is None


@pytest.mark.parametrize("choice", [chosen(("accuracy",)), Parked()], ids=["degraded", "parked"])
def test_what_gave_something_up_is_decided_for_each(choice: Any) -> None:
    assert known(choice).find(entry(1, **ASKED), TARGET, 0.9) is None


def outcome(bench: Bench, alike: Alike | None, **asked: Any) -> tuple[int, list[str]]:
    """Queries that are sent at once, and what those are told that are refused."""
    for _ in range(400):
        bench.admit(0.0, alike, **asked)
    instructions = bench.poll(0.0)
    refused = [each.status for each in instructions if isinstance(each, Reply)]
    return sum(len(each.batch.items) for each in instructions if isinstance(each, Send)), refused


def test_as_many_are_admitted_as_one_by_one() -> None:
    """A row takes 0.5 ms, so that 60 ms are enough for some 120."""

    def loaded() -> Bench:
        bench = Bench((model(), [profile(model(), curve=((1, 1.0), (8, 4.0)))]))
        bench.worker("m:1/onnx-fp32")
        return bench

    alone = outcome(loaded(), None, latency_ms_max=60.0)
    together = outcome(loaded(), Alike(0.0), latency_ms_max=60.0)
    assert 0 < len(alone[1]) < 400
    assert abs(len(together[1]) - len(alone[1])) <= 2


def test_groups_that_are_alike_still_share_the_work() -> None:
    groups = ("one", "other")
    bench = Bench((model(), [profile(model(), group=group, curve=((1, 1.0), (8, 4.0))) for group in groups]))
    for group in groups:
        bench.worker("m:1/onnx-fp32", group=group)
    alike = Alike(0.0)
    for _ in range(100):
        bench.admit(0.0, alike, latency_ms_max=60_000.0, prefer="latency")
    rows = [sum(queue.rows for queue in group.queues.values()) for group in bench.core.groups.values()]
    assert max(rows) - min(rows) <= 4

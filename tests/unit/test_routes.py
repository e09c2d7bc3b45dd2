"""Where the plan wants queries: its shares are followed row by row, and nothing grows."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from broker import routes as module
from broker.routes import BEHIND_MAX, Routes, Shares
from modelless.messages import Query, Route


def query(**asked: Any) -> Query:
    return Query("q", (), task=asked.pop("task", "t"), **asked)


def route(latency_ms: float | None = 100.0, accuracy_min: float = 0.8, *, by_accuracy: bool = False) -> Route:
    return Route("t", latency_ms, accuracy_min, by_accuracy, {"a@g": 1.0})


# --- shares -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [(0.5, 0.5), (0.7, 0.2, 0.1), (0.999, 0.001), (0.6, 0.13), (0.01, 0.02), (1.0,)])
def test_they_are_followed_within_a_row_or_so(parts: tuple[float, ...]) -> None:
    """In proportion too where the plan cannot serve all."""
    shares = Shares({f"{index}@g": part for index, part in enumerate(parts)})
    took: Counter[str] = Counter()
    for number in range(1, 5001):
        first = shares.order()[0]
        shares.took(first, 1)
        took[first] += 1
        for index, part in enumerate(parts):
            assert abs(took[f"{index}@g"] - number * part / sum(parts)) <= 1 + 1e-6 or len(parts) > 2
            assert abs(took[f"{index}@g"] - number * part / sum(parts)) < 2


def test_rows_count_and_not_queries() -> None:
    draw, shares, took = random.Random(1), Shares({"a@g": 0.8, "b@g": 0.2}), Counter[str]()
    for _ in range(2000):
        first, rows = shares.order()[0], draw.choice((1, 1, 8, 32))
        shares.took(first, rows)
        took[first] += rows
    assert took["a@g"] / took.total() == pytest.approx(0.8, abs=0.002)


def test_what_has_none_is_no_choice() -> None:
    assert Shares({"a@g": 1.0, "b@g": 0.0}).order() == ["a@g"]
    assert Shares({"a@g": 0.0}).order() == []
    assert Shares({}).order() == []


def test_what_could_not_be_had_for_long_is_made_up_for_briefly() -> None:
    shares = Shares({"a@g": 0.5, "gone@g": 0.5})
    for _ in range(100_000):
        shares.took("a@g", 1)
    firsts = []
    for _ in range(1000):
        firsts.append(shares.order()[0])
        shares.took(firsts[-1], 1)
    in_a_row = firsts.index("a@g")
    assert BEHIND_MAX <= in_a_row <= 4 * BEHIND_MAX
    assert abs(Counter(firsts[in_a_row:])["a@g"] - (1000 - in_a_row) / 2) <= 1


def test_what_goes_elsewhere_changes_nothing() -> None:
    shares = Shares({"a@g": 0.75, "b@g": 0.25})
    shares.took("a@g", 1)
    before = dict(shares._behind)
    shares.took("c@g", 1000)
    assert shares._behind == before


# --- which route ------------------------------------------------------------------------------------------------------


def test_the_class_that_is_most_like_it_and_asks_for_no_less() -> None:
    tight, loose, floor = route(50.0), route(100.0), route(100.0, 0.9)
    routes = Routes([route(None), tight, loose, floor, route(200.0)])
    found = {
        (latency_ms, accuracy): routes.of(query(), latency_ms, accuracy)
        for latency_ms in (40.0, 60.0, 150.0)
        for accuracy in (0.7, 0.85)
    }
    of = {id(shares): each for each, shares in routes._by_kind["t", False]}
    which = {key: shares and of[id(shares)] for key, shares in found.items()}
    assert which[40.0, 0.7] is None
    assert which[60.0, 0.7] == tight
    assert which[150.0, 0.7] == loose
    assert which[150.0, 0.85] == floor
    assert routes.of(query(task="u"), 100.0, 0.7) is None
    assert routes.of(query(), 150.0, 0.95) is None


def test_each_preference_has_its_own() -> None:
    routes = Routes([route(), route(by_accuracy=True)])
    cost, accuracy = (shares[0][1] for shares in routes._by_kind.values())
    assert routes.of(query(), 100.0, 0.8) is cost
    assert routes.of(query(prefer="accuracy"), 100.0, 0.8) is accuracy
    assert routes.of(query(prefer="latency"), 100.0, 0.8) is None


def test_a_bounded_number_of_classes_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLASSES_MAX", 10)
    routes = Routes([route()])
    found = {routes.of(query(), 100.0 + number, 0.7) for number in range(1000)}
    assert len(routes._known) == 10
    assert len(found) == 1

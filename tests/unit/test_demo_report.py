"""Figures and verdict say what the answers say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelless.demo.report import Answer, Figures, as_dict, cost_ratios, figures, verdict
from modelless.demo.scenario import Policy, QueryClass

TIGHT = QueryClass("tight", 0.5, latency_ms_max=50, accuracy_min=0.95)
CHEAP = QueryClass("cheap", 0.5, latency_ms_max=2000, accuracy_min=0.9)
OURS, FIXED = Policy("ours"), Policy("fixed", {"tight": "big:1/x", "cheap": "big:1/x"})
CNN = "cnn:1/onnx-fp32"
GOOD = Answer(
    "ours", "tight", 0.0, 10.0, "OK", label=3, predicted=3, variant=CNN, accuracy=0.96, batch_size=4, cost=2e-6
)


def row(*answers: Answer, kind: str = "tight") -> Figures:
    rows = figures(answers, (TIGHT, CHEAP), (OURS, FIXED))
    return next(row for row in rows if (row.policy, row.kind) == ("ours", kind))


def test_a_good_answer_counts_everywhere() -> None:
    found = row(GOOD)
    assert (found.in_time, found.as_asked, found.right_in_time, found.accuracy) == (1, 1, 1, 1)
    assert (found.p50_ms, found.p99_ms) == (10, 10)
    assert found.cost_per_1000 == pytest.approx(2e-3)
    assert found.variants == {CNN: 1}
    assert found.batch_rows == 4
    assert found.not_ok == {}


@pytest.mark.parametrize(
    ("bad", "in_time", "as_asked", "right_in_time", "accuracy"),
    [
        (replace(GOOD, latency_ms=50.1), 0.5, 0.5, 0.5, 1.0),
        (replace(GOOD, accuracy=0.94), 1.0, 0.5, 1.0, 1.0),
        (replace(GOOD, predicted=4), 1.0, 1.0, 0.5, 0.5),
        (Answer("ours", "tight", 0.0, 5.0, "RESOURCE_EXHAUSTED", label=3), 0.5, 0.5, 0.5, 1.0),
        (replace(GOOD, accuracy=None), 1.0, 0.5, 1.0, 1.0),
    ],
)
def test_each_shortcoming_counts_where_it_belongs(
    bad: Answer, in_time: float, as_asked: float, right_in_time: float, accuracy: float
) -> None:
    found = row(GOOD, bad)
    assert (found.in_time, found.as_asked, found.right_in_time, found.accuracy) == (
        in_time,
        as_asked,
        right_in_time,
        accuracy,
    )


def test_refusals_are_no_latencies_and_are_counted_by_status() -> None:
    refused = Answer("ours", "tight", 0.0, 999.0, "RESOURCE_EXHAUSTED", label=1)
    found = row(GOOD, refused, refused)
    assert found.p99_ms == 10
    assert found.not_ok == {"RESOURCE_EXHAUSTED": 2}


def test_all_judges_every_query_by_its_own_class() -> None:
    slow = replace(GOOD, kind="cheap", latency_ms=1500, accuracy=0.91)
    found = row(GOOD, slow, kind="all")
    assert (found.queries, found.as_asked) == (2, 1.0)


def test_no_answers_at_all_are_figures_too() -> None:
    found = row()
    assert (found.queries, found.in_time, found.p50_ms, found.accuracy, found.cost_per_1000) == (0, 0, None, None, None)


def test_figures_are_plain_data() -> None:
    assert as_dict(figures([GOOD], (TIGHT,), (OURS,)))[0]["variants"] == {CNN: 1}


def test_the_verdict_says_who_was_ahead_and_by_how_much() -> None:
    fixed = replace(GOOD, policy="fixed", latency_ms=80, cost=8e-6)
    words = verdict(figures([GOOD, fixed], (TIGHT,), (OURS, FIXED)))
    assert words == (
        "ours: 100 % of 1 queries were answered as asked. fixed: 0.0 %, 100.0 points fewer, "
        "at 4 times the cost per answer."
    )


def test_the_verdict_admits_a_defeat() -> None:
    ours = replace(GOOD, latency_ms=80)
    fixed = replace(GOOD, policy="fixed", cost=None)
    assert "fixed: 100 %, 100.0 points more." in verdict(figures([ours, fixed], (TIGHT,), (OURS, FIXED)))


def test_nearly_all_is_not_rounded_up_to_all() -> None:
    late = replace(GOOD, latency_ms=80)
    words = verdict(figures([GOOD] * 1999 + [late], (TIGHT,), (OURS, FIXED)))
    assert "99.9 % of 2000" in words


def test_cost_ratios_weigh_each_class_by_its_queries() -> None:
    """Three tight ones at 2 and 4, one cheap one at 1 and 1 (millionths of a USD): 7 to 13."""
    ours = [GOOD, GOOD, GOOD, replace(GOOD, kind="cheap", cost=1e-6)]
    dear = [replace(answer, policy="fixed", cost=4e-6) for answer in ours[:3]]
    refused = Answer("fixed", "cheap", 0.0, 5.0, "RESOURCE_EXHAUSTED", label=3)
    fixed = [*dear, replace(ours[3], policy="fixed")]
    rows = figures([*ours, *fixed], (TIGHT, CHEAP), (OURS, FIXED))
    ratios = cost_ratios(rows, "ours", "ours", "fixed")
    assert (ratios.to_oracle, ratios.to_single) == (pytest.approx(1), pytest.approx(7 / 13))
    half = figures([*ours, *dear[:1], fixed[3]], (TIGHT, CHEAP), (OURS, FIXED))  # two of three refused: no cheaper
    assert cost_ratios(half, "ours", "ours", "fixed").to_single == pytest.approx(7 / 13)
    nothing = figures([*ours, *dear, refused], (TIGHT, CHEAP), (OURS, FIXED))
    assert cost_ratios(nothing, "ours", "ours", "fixed").to_single is None

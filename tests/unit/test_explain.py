"""Explanations: every candidate with what speaks against it, on request only, and what a command knows from outside."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from broker_builders import FLAT, Bench, entry, model, profile, source

from broker.core import Reply, Send
from broker.explain import asked, catalog_of, explain_asked
from broker.intake import Refusal
from broker.selector import Chosen
from modelless.headers import EXPLAIN
from modelless.messages import Condition, Correction, Labels, Member, Query

TINY, LARGE = model("tiny"), model("large")
PROFILES = (
    profile(TINY, curve=((1, 1.0), (8, 1.0)), accuracy=0.8),
    profile(LARGE, curve=((1, 40.0), (8, 40.0)), accuracy=0.95),
    profile(LARGE, "gpu", curve=((1, 4.0), (8, 4.0)), accuracy=0.95, price_per_hour=360.0),
)


def member(name: str, group: str, *variants: str, backlog_ms: float = 0.0) -> Member:
    return Member(
        "worker", name, f"{name}-1", "ready", group=group, variants=variants, statistics={"backlog_ms": backlog_ms}
    )


WORKERS = (member("c", "cpu", "tiny:1/onnx-fp32", "large:1/onnx-fp32"), member("g", "gpu", "large:1/onnx-fp32"))


def why(
    constraints: dict[str, Any],
    workers: tuple[Member, ...] = WORKERS,
    **backlog_ms: float,
) -> tuple[str, list[str]]:
    """(the decision, ``name@group: why`` of each candidate)."""
    catalog = catalog_of([TINY, LARGE], PROFILES, [], [], [], workers, None)
    query = Query("q", (), task="t", **constraints)
    target = catalog.resolve(query)
    assert target is not None
    _, said = explain_asked(asked(query, 1, 30_000), target, catalog, backlog_ms, 0.02)
    return said.decision, [f"{each.variant.partition(':')[0]}@{each.group}: {each.why}" for each in said.candidates]


def test_every_candidate_says_what_speaks_against_it() -> None:
    decision, candidates = why({"latency_ms_max": 30, "accuracy_min": 0.9})
    assert decision == "large:1/onnx-fp32 on gpu: the cheapest that answers in time"
    assert candidates == ["tiny@cpu: accuracy 0.8000 < 0.9", "large@cpu: needs 40 ms > 30", "large@gpu: chosen"]
    _, candidates = why({"latency_ms_max": 30, "cost_max": 0.01}, cpu=50.0)
    assert candidates == [
        "tiny@cpu: accuracy 0.8000 < 0.93; 50 ms of work before it make it late",
        "large@cpu: needs 40 ms > 30",
        "large@gpu: costs 0.05 > 0.01",
    ]


@pytest.mark.parametrize(
    ("prefer", "behind"),
    [
        ("cost", ["tiny@cpu: chosen", "large@cpu: costs 40 times as much", "large@gpu: costs 400 times as much"]),
        ("accuracy", ["large@cpu: chosen", "large@gpu: as good, but later or not as cheap or accurate",
                      "tiny@cpu: less accurate by 0.1500"]),
        ("latency", ["tiny@cpu: chosen", "large@gpu: would answer later", "large@cpu: would answer later"]),
    ],
)  # fmt: skip
def test_what_would_do_says_why_another_one_is_better(prefer: str, behind: list[str]) -> None:
    assert why({"accuracy_min": 0.5, "prefer": prefer})[1] == behind


def test_refusals_waits_and_wants_are_in_the_decision() -> None:
    decision, _ = why({"accuracy_min": 0.99})
    assert decision.startswith("FAILED_PRECONDITION: no variant has accuracy >= 0.99")
    decision, candidates = why({"accuracy_min": 0.9}, ())
    assert decision == (
        "waits until somebody has loaded what it needs; large:1/onnx-fp32 on cpu would be better, and is not loaded"
    )
    assert candidates[1] == "large@cpu: wanted: not loaded"
    decision, _ = why({"accuracy_min": 0.9, "latency_ms_max": 2, "on_miss": "degrade"})
    assert decision == "tiny:1/onnx-fp32 on cpu: gives up accuracy"


def test_the_price_of_device_time_is_named() -> None:
    asked: dict[str, Any] = {"latency_ms_max": 200, "accuracy_min": 0.9, "on_miss": "degrade", "prefer": "accuracy"}
    decision, candidates = why(asked, WORKERS[:1], cpu=155.0)
    assert decision.startswith("tiny:1/onnx-fp32 on cpu: gives up accuracy, the best for its device time under load")
    assert {
        "tiny@cpu: chosen, although accuracy 0.8000 < 0.9",
        "large@cpu: under load not as good for its device time",
    } <= set(candidates)
    decision, candidates = why({"latency_ms_max": 200}, WORKERS[:1], cpu=20.0)
    assert decision == "large:1/onnx-fp32 on cpu: the best for its device time under load"


def test_a_command_knows_what_a_broker_would() -> None:
    two = replace(model("large", 2), digest="two")
    newer = replace(profile(two, curve=FLAT), digest="two")
    corrected = Correction("tiny:1/onnx-fp32", TINY.digest, 10, 5, 0.6, 0.5, 0.7)
    slow = Condition("tiny:1/onnx-fp32", "cpu", TINY.digest, "interfered", 3.0, 3.0, 0.0, 1.0)
    stale = Condition("large:1/onnx-fp32", "cpu", "another", "interfered", 3.0, 3.0, 0.0, 1.0)
    labels = Labels("large", stable=2)
    workers = (*WORKERS, member("d", "cpu", "large:2/onnx-fp32"))
    catalog = catalog_of([TINY, LARGE, two], [*PROFILES, newer], [corrected], [slow, stale], [labels], workers, None)
    target = catalog.resolve(Query("q", (), task="t"))
    assert target is not None
    found = {each.key: (each.accuracy, each.lat_ms(1), each.workers) for each in target.ranking.candidates}
    assert found == {"tiny:1/onnx-fp32@cpu": (0.6, 3.0, 1), "large:2/onnx-fp32@cpu": (0.9, 10.0, 1)}
    choice, _ = explain_asked(asked(Query("q", (), task="t", accuracy_min=0.8), 1, 100.0), target, catalog, {}, 0.02)
    assert isinstance(choice, Chosen)


# --- on request -------------------------------------------------------------------------------------------------------


def explained(headers: tuple[tuple[str, bytes], ...]) -> dict[str, Any]:
    (value,) = [value for name, value in headers if name == EXPLAIN]
    said: dict[str, Any] = json.loads(value)
    return said


def test_a_reply_carries_it_when_its_query_asks_for_it_and_only_then() -> None:
    bench = Bench((LARGE, [profile(LARGE)]))
    bench.worker("large:1/onnx-fp32", window_ms=1000)
    bench.admit()
    bench.admit().explains = True
    silent, asked_for = entry(10), entry(11)
    asked_for.explains = True
    asked_for.address.echo = (("traceparent", b"x"),)
    for each in (silent, asked_for):
        bench.core.ledger.arrived(each.record)
        bench.core.admit(each, 0)
    (send,) = [each for each in bench.poll() if isinstance(each, Send)]
    items = {item.record: item for item in send.batch.items}
    assert items[silent.record].headers == ()
    headers = items[asked_for.record].headers
    assert headers[0] == ("traceparent", b"x")
    said = explained(headers)
    assert said["decision"] == "large:1/onnx-fp32 on cpu: the cheapest that answers in time"
    assert said["candidates"][0] | {"why": "chosen", "chosen": True, "workers": 1} == said["candidates"][0]


def test_what_is_decided_again_is_explained_again() -> None:
    bench = Bench((LARGE, [profile(LARGE)]))
    waiting = entry(0)
    waiting.explains = True
    bench.core.ledger.arrived(waiting.record)
    bench.core.admit(waiting, 0)
    assert explained(waiting.address.echo)["decision"].startswith("waits until")
    bench.worker("large:1/onnx-fp32")
    assert explained(waiting.address.echo)["decision"].startswith("large:1/onnx-fp32 on cpu")


def test_a_refusal_carries_it_and_it_is_short() -> None:
    many = [(of, [profile(of)]) for of in (model(f"m{number}") for number in range(200))]
    bench = Bench(*many)
    refused = entry(0, accuracy_min=0.99)
    refused.explains = True
    bench.core.ledger.arrived(refused.record)
    bench.core.admit(refused, 0)
    (reply,) = bench.poll()
    assert isinstance(reply, Reply)
    said = explained(reply.entry.address.echo)
    assert said["decision"].startswith("FAILED_PRECONDITION: no variant has accuracy >= 0.99")
    assert (len(said["candidates"]), said["left_out"]) == (16, 184)
    assert len(reply.entry.address.echo[0][1]) < 4096


def test_intake_reads_the_request() -> None:
    from broker_builders import _intake

    from modelless.codec import encode_query

    value = encode_query(entry(0).query)
    for header, explains in ((b"1", True), (b"0", False)):
        made = _intake.read(source(value, headers=[(EXPLAIN, header)]))
        assert getattr(made, "explains", None) is explains
    assert isinstance(_intake.read(source(value, headers=[(EXPLAIN, b"yes")])), Refusal)

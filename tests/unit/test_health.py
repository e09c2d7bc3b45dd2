"""What `modelless status` says: states of variants, what is still to be measured, what is wrong, each thing once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelless.health import ScalingView, drifts, notes, overloads, scaling_views, to_measure, variant_views, warnings
from modelless.messages import (
    Assignment,
    BatchTime,
    Condition,
    Correction,
    Evaluation,
    GroupTarget,
    Member,
    ModelVersion,
    Plan,
    Profile,
)

VARIANT = "m:1/onnx-fp32"
MODEL = ModelVersion("m", 1, "t", "onnx", "file:///m.onnx", "0" * 64, 1, (), (), Evaluation(0.9), "digest")
READY = Profile(VARIANT, "cpu", "ready", "digest", batches=(BatchTime(1, 1.0, 2.0),))
FAILED = Profile(VARIANT, "cpu", "failed", "digest", reason="needs 3 GB")
BROKER = Member("broker", "broker-0", "1", "ready")


def worker(group: str = "cpu", *variants: str, name: str | None = None, **errors: str) -> Member:
    return Member("worker", name or f"{group}-0", "1", "ready", group=group, variants=variants, errors=errors)


@pytest.mark.parametrize(
    ("members", "profiles", "expected"),
    [
        ((), (), ["no broker is alive, 7 queries wait", "no worker is alive"]),
        ((BROKER, worker()), (), ["m:1 is not served: it was not measured yet"]),
        ((BROKER, worker()), (FAILED,), ["failed on group cpu: needs 3 GB", "m:1 is not served: it failed everywhere"]),
        ((BROKER, worker("cpu", "m:1/onnx-fp32")), (READY,), []),
        (
            (BROKER, worker("cpu", VARIANT, **{VARIANT: "out of memory"})),
            (READY,),
            ["cpu-0: m:1/onnx-fp32: out of memory"],
        ),
    ],
)
def test_warnings(members: tuple[Member, ...], profiles: tuple[Profile, ...], expected: list[str]) -> None:
    found = warnings(members, (MODEL,), profiles, {"modelless.queries": 7})
    assert len(found) == len(expected)
    for words, part in zip(found, expected, strict=True):
        assert part in words


def test_a_variant_that_drifted_is_a_warning_once() -> None:
    drifted = Correction("m:1/onnx-fp32", "digest", 1000.0, 600.0, 0.61, 0.58, 0.64, drifted=True)
    fine = Correction("m:1/torch-int8", "digest", 1000.0, 900.0, 0.9, 0.88, 0.92)

    (found,) = drifts([drifted, drifted, fine])  # on two groups
    assert found.startswith("m:1/onnx-fp32 has drifted: 60.0% of 1,000 labelled rows were right")


def test_one_builders_reason_for_many_models_is_told_once() -> None:
    other = replace(FAILED, variant="n:1/onnx-fp32")
    elsewhere = replace(FAILED, variant="o:1/onnx-fp32", reason="no such operator")
    found = warnings([BROKER, worker()], [], [FAILED, other, elsewhere], {})
    assert "onnx-fp32 failed on group cpu for m:1, n:1: needs 3 GB" in found
    assert "o:1/onnx-fp32 failed on group cpu: no such operator" in found


def test_a_builders_refusal_is_a_note_once_for_all_workers() -> None:
    refusal = {"tensorrt-fp16": "it needs tensorrt"}
    members = [BROKER, worker(name="cpu-0", **refusal), worker(name="cpu-1", **refusal)]
    assert notes(members) == ("tensorrt-fp16 makes no variants on cpu-0, cpu-1: it needs tensorrt",)
    assert not any("tensorrt" in words for words in warnings(members, [MODEL], [READY], {}))


def plan(load: tuple[str, ...] = (), reasons: tuple[str, ...] = (), **rest: object) -> Plan:
    return Plan(1, "broker-0", 0.0, {"cpu-0": Assignment(load, **rest)}, reasons)  # type: ignore[arg-type]


def test_what_is_loaded_shows_its_condition() -> None:
    slow = Condition(VARIANT, "cpu", "digest", "interfered", p50_scale=3.0, p99_scale=4.0, rows_per_second=7.0)
    (view,) = variant_views([BROKER, worker("cpu", VARIANT)], [READY], [slow], plan((VARIANT,)))
    assert (view.state, view.p50_ms, view.p99_ms, view.rows_per_second) == ("interfered", 3.0, 8.0, 7.0)
    assert view.workers == ("cpu-0",)
    (fresh,) = variant_views([worker("cpu", VARIANT)], [READY], [replace(slow, state="inactive")], None)
    assert (fresh.state, fresh.p50_ms) == ("active", None), "the leader did not write yet"


def test_what_is_not_loaded_is_loading_inactive_or_failed_and_says_why() -> None:
    reason = f"{VARIANT} is not loaded on cpu: m:1/x is faster"
    old = Condition(VARIANT, "cpu", "digest", "active")
    (loading,) = variant_views([worker()], [READY], [old], plan((VARIANT,)))
    (inactive,) = variant_views([worker()], [READY], [old], plan(reasons=(reason,)))
    (elsewhere,) = variant_views([worker("gpu")], [replace(READY, group="gpu")], [], plan(reasons=(reason,)))
    (failed,) = variant_views([worker()], [FAILED], [], None)
    assert [(v.state, v.why_not) for v in (loading, inactive, elsewhere, failed)] == [
        ("loading", None),
        ("inactive", reason),
        ("inactive", None),
        ("failed", "needs 3 GB"),
    ]


def test_offline_work_that_is_too_long_is_told_with_what_to_do() -> None:
    short, long = (
        Member("broker", name, name, "ready", statistics={"withheld_ms.g": ms, "withheld_ms_max.g": 20.0})
        for name, ms in (("broker-0", 50.0), ("broker-1", 1234.0))
    )
    (words,) = [each for each in warnings([short, long, worker()], [], [], {}) if "offline" in each]
    assert "1,234 ms run on g only now and then" in words
    assert "20 ms" in words
    assert "--rows-per-query" in words


def test_what_is_still_to_be_measured() -> None:
    told = plan(measure=(VARIANT, "n:1/onnx-fp32"), outdated={"o:1/onnx-fp32": 5.0, "p:1/onnx-fp32": 5.0})
    done = [
        READY,
        replace(READY, variant="o:1/onnx-fp32", measured_ms=6.0),
        replace(READY, variant="p:1/onnx-fp32", measured_ms=5.0),
    ]
    members = [BROKER, worker(), worker("gpu")]
    assert to_measure(members, done, told) == {"cpu-0": ("n:1/onnx-fp32", "p:1/onnx-fp32 (again)")}
    assert to_measure(members, done, None) == {}


def test_an_overload_names_task_share_topic_and_reason() -> None:
    before = {"asked.digits": 100.0, "shed.load q digits": 10.0, "read": 5.0}
    now = {
        "asked.digits": 300.0,
        "asked.faces": 1000.0,
        "shed.load q digits": 30.0,
        "shed.share q.a digits": 60.0,
        "shed.expired q faces": 1.0,
        "read": 9.0,
    }
    (said,) = overloads(before, now)
    assert said.startswith("digits is overloaded, 40% of its queries are shed (30% of q.a would have been late, since ")
    assert "; 10% of q would have been late)" in said
    assert overloads(now, now) == ()


def test_a_quota_that_is_used_up_is_no_overload() -> None:
    now = {"asked.digits": 100.0, "shed.quota shop digits": 30.0, "shed.quota shop faces": 5.0}
    (said,) = overloads({}, now)
    assert said.startswith("shop has used up its quota, 35 of its queries were refused")


def in_group(name: str, state: str) -> Member:
    return Member("worker", name, name, state, group="g")  # type: ignore[arg-type]


def test_groups_show_what_the_plan_wants_and_what_there_is() -> None:
    targets = {"g": GroupTarget(3, ("g-0",), "demand has risen"), "none": GroupTarget(0)}
    wanted = Plan(1, "broker-0", 0.0, {}, (), targets)
    members = [
        in_group("g-0", "ready"),
        in_group("g-1", "ready"),
        in_group("g-2", "starting"),
        in_group("g-3", "draining"),
    ]
    assert scaling_views(members, wanted) == (
        ScalingView("g", 3, ready=1, starting=1, draining=2, reason="demand has risen"),
        ScalingView("none", 0, 0, 0, 0, ""),
    )
    assert scaling_views(members, None) == ()


def test_no_worker_is_no_alarm_where_none_is_wanted_and_somebody_would_start_one() -> None:
    idle = Plan(1, "broker-0", 0.0, {}, (), {"g": GroupTarget(0, (), "nobody asks")})
    provisioner = Member("provisioner", "local", "i", "ready")
    alarm = "no worker is alive"
    assert not any(alarm in each for each in warnings([provisioner], [], [], {}, idle))
    assert any(alarm in each for each in warnings([], [], [], {}, idle))
    assert any(alarm in each for each in warnings([provisioner], [], [], {}, None))


def test_what_a_provisioner_cannot_start_is_a_warning() -> None:
    member = Member("provisioner", "local", "i", "ready", errors={"g": "g-0 died: exit status 1"})
    assert "local: g: g-0 died: exit status 1" in warnings([member], [], [], {})

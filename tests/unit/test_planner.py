"""The planner: everything that fits, measured once per group, and no new plan for nothing."""

from __future__ import annotations

from dataclasses import replace

from broker_builders import model, profile

from broker.planner import ABSENCE_MS_MAX, PlannedWorker, Planner, variants
from modelless.messages import Assignment, ModelVersion, Plan, Profile

MIB = 1 << 20


def worker(name: str = "cpu-0", group: str = "cpu", memory_mb: int = 100) -> PlannedWorker:
    return PlannedWorker(name, group, memory_mb * MIB, (("onnx", "onnx-fp32"), ("safetensors", "torch-fp32")))


def plan(
    models: list[ModelVersion],
    profiles: list[Profile],
    workers: list[PlannedWorker],
    previous: Plan | None = None,
    planner: Planner | None = None,
    now_ms: float = 0.0,
) -> Plan | None:
    return (planner or Planner()).plan(
        previous, {m.key: m for m in models}, {p.key: p for p in profiles}, workers, "broker-0", now_ms
    )


def ready(of: ModelVersion, memory_mb: int = 10, group: str = "cpu") -> Profile:
    return replace(profile(of, group), memory_bytes=memory_mb * MIB)


def test_what_has_no_profile_is_measured_by_one_worker_of_each_group() -> None:
    made = plan([model()], [], [worker("cpu-1"), worker("cpu-0"), worker("gpu-0", "gpu")])
    assert made is not None
    assert (made.epoch, made.leader) == (1, "broker-0")
    measure = Assignment(measure=("m:1/onnx-fp32",))
    assert made.workers == {"cpu-0": measure, "cpu-1": Assignment(), "gpu-0": measure}


def test_a_profile_of_another_digest_is_measured_again_and_a_failed_one_is_not() -> None:
    stale, failed = replace(ready(model("a")), digest="x"), replace(ready(model("b")), status="failed")
    made = plan([model("a"), model("b")], [stale, failed], [worker()])
    assert made is not None
    assert made.workers["cpu-0"] == Assignment(measure=("a:1/onnx-fp32",))


def test_everything_that_fits_is_loaded_newest_versions_first() -> None:
    models = [model("a"), model("a", 2), model("b")]
    made = plan(models, [ready(m, 40) for m in models], [worker()])
    assert made is not None
    assert made.workers["cpu-0"].load == ("a:2/onnx-fp32", "b:1/onnx-fp32")
    assert made.reasons == ("a:1/onnx-fp32 does not fit on cpu-0: it needs 40 MiB",)


def test_a_small_one_behind_a_large_one_still_fits() -> None:
    models = [model("a"), model("b")]
    made = plan(models, [ready(models[0], 200), ready(models[1], 10)], [worker()])
    assert made is not None
    assert made.workers["cpu-0"].load == ("b:1/onnx-fp32",)


def test_there_is_no_new_plan_while_the_old_one_says_the_same() -> None:
    first = plan([model()], [ready(model())], [worker()])
    assert first is not None
    assert plan([model()], [ready(model())], [worker()], first) is None
    assert plan([model()], [ready(model())], [worker()], replace(first, leader="another")) is not None
    more = plan([model(), model("b")], [ready(model())], [worker()], first)
    assert more is not None
    assert more.epoch == 2


def test_a_worker_that_left_a_moment_ago_keeps_what_it_loads_but_somebody_else_measures() -> None:
    planner = Planner()
    both = [worker("cpu-0"), worker("cpu-1")]
    first = plan([model(), model("b")], [ready(model())], both, planner=planner)
    assert first is not None
    assert first.workers["cpu-0"] == Assignment(("m:1/onnx-fp32",), ("b:1/onnx-fp32",))
    second = plan([model(), model("b")], [ready(model())], both[1:], first, planner, 1000)
    assert second is not None
    assert second.workers["cpu-0"] == Assignment(("m:1/onnx-fp32",))
    assert second.workers["cpu-1"].measure == ("b:1/onnx-fp32",)
    third = plan([model(), model("b")], [ready(model())], both[1:], second, planner, ABSENCE_MS_MAX)
    assert third is not None
    assert list(third.workers) == ["cpu-1"]


def test_every_exit_is_a_variant() -> None:
    pairs = (("safetensors", "torch-fp32"), ("onnx", "onnx-fp32"))
    names = variants(replace(model(), format="safetensors", exits=3), pairs)
    assert names == ["m:1/torch-fp32", "m:1/torch-fp32.exit1", "m:1/torch-fp32.exit2"]

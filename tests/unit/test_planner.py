"""The planner: the most valuable that fits, nothing in use evicted, measured once per group, no plan for nothing."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from broker_builders import model
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import placement
from broker.keeping import IN_THE_WAY_MS_MAX
from broker.loading import LOADED_MAX
from broker.measured import variants
from broker.measuring import REMEASURE_PATIENCE_MS, REMEASURE_PERIOD_MS
from broker.planner import ABSENCE_MS_MAX, IN_USE_MS, REASONS_MAX, SETTLING_MS, WANTED_MS, Planner
from broker.scaler import Scaling
from broker.situation import PlannedWorker, Situation
from modelless.messages import (
    Assignment,
    BatchTime,
    Correction,
    Demanded,
    GroupTarget,
    Labels,
    ModelVersion,
    Plan,
    Profile,
)

MIB = 1 << 20
BUILDERS = (("onnx", "onnx-fp32"), ("onnx", "onnx-int8"), ("onnx", "openvino-fp32"), ("safetensors", "torch-fp32"))


def worker(
    name: str = "cpu-0", group: str = "cpu", memory_mb: int = 100, builders: tuple[tuple[str, str], ...] = BUILDERS[:1]
) -> PlannedWorker:
    return PlannedWorker(name, group, memory_mb * MIB, builders)


def ready(
    of: ModelVersion,
    memory_mb: int = 10,
    group: str = "cpu",
    builder: str = "onnx-fp32",
    accuracy: float = 0.9,
    ms: float = 10.0,
    price: float = 1.0,
    measured_ms: float = 0.0,
) -> Profile:
    return Profile(
        f"{of.key}/{builder}",
        group,
        "ready",
        of.digest,
        memory_bytes=memory_mb * MIB,
        accuracy_low=accuracy,
        batches=(BatchTime(1, ms, 2 * ms),),
        price_per_hour=price,
        measured_ms=measured_ms,
    )


class Play:
    """A planner in the course of time: what it was told last stays, and its plan is what it goes on from."""

    def __init__(self, models: list[ModelVersion], profiles: list[Profile], workers: list[PlannedWorker]) -> None:
        self.situation = Situation({m.key: m for m in models}, {p.key: p for p in profiles}, workers)
        self.planner = Planner()
        self.plan: Plan | None = None

    def next(self, now_ms: float = 0.0, **changes: Any) -> dict[str, Assignment]:
        """The assignments once ``changes`` are known."""
        self.situation = replace(self.situation, **changes)
        self.plan = self.planner.plan(self.plan, self.situation, "broker-0", now_ms) or self.plan
        assert self.plan is not None
        return dict(self.plan.workers)

    def loaded(self, now_ms: float = 0.0, of: str = "cpu-0", **changes: Any) -> set[str]:
        return set(self.next(now_ms, **changes)[of].load)

    def profiled(self, *profiles: Profile) -> dict[str, Profile]:
        return {**self.situation.profiles, **{p.key: p for p in profiles}}


# --- measuring --------------------------------------------------------------------------------------------------------


def test_what_has_no_profile_is_measured_by_one_worker_of_each_group() -> None:
    play = Play([model()], [], [worker("cpu-1"), worker("cpu-0"), worker("gpu-0", "gpu")])
    measure = Assignment(measure=("m:1/onnx-fp32",))
    assert play.next() == {"cpu-0": measure, "cpu-1": Assignment(), "gpu-0": measure}
    assert play.plan is not None
    assert (play.plan.epoch, play.plan.leader) == (1, "broker-0")


def test_a_profile_of_another_digest_is_measured_again_and_a_failed_one_is_not() -> None:
    stale, failed = replace(ready(model("a")), digest="x"), replace(ready(model("b")), status="failed")
    play = Play([model("a"), model("b")], [stale, failed], [worker()])
    assert play.next()["cpu-0"] == Assignment(measure=("a:1/onnx-fp32",))


def test_models_are_spread_over_the_workers_and_stay_where_they_are_measured() -> None:
    models = [model(name) for name in "abc"]
    both = [worker("cpu-0", builders=BUILDERS), worker("cpu-1", builders=BUILDERS)]
    play = Play(models, [], both)
    first = {name: assignment.measure for name, assignment in play.next().items()}
    assert sorted(len(measure) for measure in first.values()) == [3, 6], "the variants of one model by one worker"
    assert {v[0] for v in first["cpu-0"]} & {v[0] for v in first["cpu-1"]} == set()
    measured = first["cpu-0"][0]
    done = ready(model(measured[0]), builder=measured.partition("/")[2])
    later = play.next(profiles={done.key: done}, models={m.key: m for m in [*models, model("d")]})
    for name in first:
        assert set(first[name]) - {measured} <= set(later[name].measure), "nobody takes over what somebody else does"


def test_the_quickest_of_a_new_model_goes_first_then_model_by_model() -> None:
    models = [replace(model("a"), registered_ms=1), replace(model("b"), registered_ms=2)]
    play = Play(models, [], [worker(builders=BUILDERS[2::-1])])
    order = play.next()["cpu-0"].measure
    assert order[:2] == ("b:1/onnx-fp32", "a:1/onnx-fp32")
    assert order[2:] == ("b:1/onnx-int8", "b:1/openvino-fp32", "a:1/onnx-int8", "a:1/openvino-fp32")


def test_only_who_can_make_it_measures_it() -> None:
    both = [worker("cpu-0", builders=BUILDERS[:1]), worker("cpu-1", builders=BUILDERS[:3])]
    plan = Play([model()], [], both).next()
    assert plan["cpu-0"].measure == ("m:1/onnx-fp32",)
    assert set(plan["cpu-1"].measure) == {"m:1/onnx-int8", "m:1/openvino-fp32"}


def test_every_exit_is_a_variant() -> None:
    pairs = (("safetensors", "torch-fp32"), ("onnx", "onnx-fp32"))
    names = variants(replace(model(), format="safetensors", exits=3), pairs)
    assert names == ["m:1/torch-fp32", "m:1/torch-fp32.exit1", "m:1/torch-fp32.exit2"]


LATER_MS = 2 * REMEASURE_PERIOD_MS


def test_what_has_drifted_is_measured_again_one_at_a_time_and_not_too_often() -> None:
    models = [model("a"), model("b")]
    play = Play(models, [ready(m) for m in models], [worker("cpu-0"), worker("cpu-1")])
    drifted = frozenset({"a:1/onnx-fp32@cpu", "b:1/onnx-fp32@cpu"})

    def asked(now_ms: float, **changes: Any) -> list[dict[str, float]]:
        return [dict(a.outdated) for a in play.next(now_ms, **changes).values() if a.outdated]

    assert asked(REMEASURE_PERIOD_MS / 2, drifted=drifted) == [], "measured a moment ago"
    assert asked(LATER_MS) == [{"a:1/onnx-fp32": 0.0}]
    assert asked(LATER_MS + 1000) == [{"a:1/onnx-fp32": 0.0}]
    done = replace(ready(models[0]), measured_ms=LATER_MS + 2000)
    assert asked(LATER_MS + 3000, profiles=play.profiled(done)) == [{"b:1/onnx-fp32": 0.0}]
    assert asked(LATER_MS + 3000 + REMEASURE_PATIENCE_MS) == [], "it was not done; not asked again before long"
    assert asked(LATER_MS + 3000 + REMEASURE_PERIOD_MS) == [{"b:1/onnx-fp32": 0.0}], "the oldest profile first"


def test_what_is_new_is_measured_before_what_is_outdated() -> None:
    play = Play([model("a")], [ready(model("a"))], [worker()])
    drifted = frozenset({"a:1/onnx-fp32@cpu"})
    assert play.next(LATER_MS, drifted=drifted)["cpu-0"].outdated
    new = play.next(LATER_MS + 1, models={m.key: m for m in (model("a"), model("b"))})["cpu-0"]
    assert (new.measure, new.outdated) == (("b:1/onnx-fp32",), {})


def test_an_old_profile_is_measured_again_where_an_age_is_configured() -> None:
    old = Play([model()], [ready(model())], [worker()])
    assert not old.next(LATER_MS)["cpu-0"].outdated
    old.planner = Planner(profile_age_ms_max=LATER_MS)
    assert not old.next(LATER_MS - 1)["cpu-0"].outdated
    assert old.next(LATER_MS)["cpu-0"].outdated == {"m:1/onnx-fp32": 0.0}


# --- loading ----------------------------------------------------------------------------------------------------------


def test_what_answers_is_loaded_and_an_older_version_is_not() -> None:
    models = [model("a"), model("a", 2), model("b")]
    play = Play(models, [ready(m, 40) for m in models], [worker()])
    assert play.loaded() == {"a:2/onnx-fp32", "b:1/onnx-fp32"}
    assert play.plan is not None
    assert play.plan.reasons == ("a:1/onnx-fp32 is not loaded on cpu: another version of a answers",)


def test_a_version_answers_until_a_newer_one_is_measured_and_as_labels_say() -> None:
    old, new = model("a"), model("a", 2)
    play = Play([old, new], [ready(old)], [worker(builders=BUILDERS[:2])])
    assert play.loaded() == {"a:1/onnx-fp32"}
    fresh = Play([old, new], [ready(old), ready(new), ready(old, builder="onnx-int8")], [worker(builders=BUILDERS[:2])])
    assert fresh.loaded(labels={"a": Labels("a", stable=1, canary=2, canary_weight=0.1)}) >= {
        "a:1/onnx-fp32",
        "a:2/onnx-fp32",
    }
    shadowed = Play([old, new], [ready(old, accuracy=0.8), ready(new)], [worker(builders=BUILDERS[:2])])
    assert shadowed.loaded(labels={"a": Labels("a", shadow="a:1/onnx-fp32")}) == {"a:1/onnx-fp32", "a:2/onnx-fp32"}


def test_the_newest_version_is_loaded_although_another_one_is_stable() -> None:
    models = [model("a"), model("a", 2), model("a", 3)]
    play = Play(models, [ready(m, 40) for m in models], [worker()])
    assert play.loaded(labels={"a": Labels("a", stable=1)}) == {"a:1/onnx-fp32", "a:3/onnx-fp32"}


def test_the_version_that_answers_stays_beside_the_first_of_the_next_one_until_that_takes_over() -> None:
    old, new = model("a"), model("a", 2)
    of = [
        ready(version, 40, builder=builder, accuracy=accuracy, ms=ms)
        for version in (old, new)
        for builder, accuracy, ms in (("onnx-fp32", 0.9, 10.0), ("openvino-fp32", 0.8, 5.0))
    ]
    play = Play([old, new], of, [worker(memory_mb=130, builders=BUILDERS)])
    both = {"a:1/onnx-fp32", "a:2/onnx-fp32", "a:1/openvino-fp32"}
    assert play.loaded(served={"a": "a:1"}) == both
    assert play.loaded(10 * IN_USE_MS) == both
    assert play.loaded(20 * IN_USE_MS, served={"a": "a:2"}) == {"a:2/onnx-fp32", "a:2/openvino-fp32", "a:1/onnx-fp32"}


def test_a_small_one_behind_a_large_one_still_fits() -> None:
    models = [model("a"), model("b")]
    play = Play(models, [ready(models[0], 200), ready(models[1], 10)], [worker()])
    assert play.loaded() == {"b:1/onnx-fp32"}
    assert play.plan is not None
    (reason,) = play.plan.reasons
    assert reason.startswith("a:1/onnx-fp32 does not fit on cpu: it needs 200 MiB")


def test_a_variant_that_another_of_its_model_beats_is_not_loaded_and_the_reason_says_so() -> None:
    profiles = [
        ready(model()),
        ready(model(), builder="onnx-int8", accuracy=0.89, ms=12),
        ready(model(), builder="openvino-fp32", accuracy=0.85, ms=4),
    ]
    play = Play([model()], profiles, [worker(builders=BUILDERS)])
    assert play.loaded() == {"m:1/onnx-fp32", "m:1/openvino-fp32"}
    assert play.plan is not None
    assert play.plan.reasons == (
        "m:1/onnx-int8 is not loaded on cpu: m:1/onnx-fp32 is more accurate, faster and cheaper",
    )


def test_what_labels_of_answers_say_counts_more_than_the_profile() -> None:
    profiles = [ready(model()), ready(model(), builder="onnx-int8", accuracy=0.89, ms=12)]
    correction = Correction("m:1/onnx-fp32", model().digest, 100, 80, 0.8, 0.75, 0.85)
    play = Play([model()], profiles, [worker(builders=BUILDERS)])
    assert play.loaded(corrections={"m:1/onnx-fp32": correction}) == {"m:1/onnx-fp32", "m:1/onnx-int8"}


def test_every_model_has_something_loaded_before_any_has_everything() -> None:
    """A model that another one beats in everything is asked for by name all the same."""
    weak, strong = model("weak"), model("strong")
    profiles = [ready(weak, 30, accuracy=0.5, ms=50)]
    profiles += [
        ready(strong, 30, builder=name, accuracy=0.9 + n / 100, ms=10.0 + n) for n, (_, name) in enumerate(BUILDERS[:3])
    ]
    play = Play([weak, strong], profiles, [worker(builders=BUILDERS)])
    assert play.loaded() == {"weak:1/onnx-fp32", "strong:1/onnx-fp32", "strong:1/openvino-fp32"}


def test_with_little_memory_a_group_holds_more_before_it_holds_anything_twice() -> None:
    models = [model("a"), model("b"), model("c")]
    play = Play(models, [ready(m, 60) for m in models], [worker("cpu-0"), worker("cpu-1")])
    plan = play.next()
    assert len(plan["cpu-0"].load) == len(plan["cpu-1"].load) == 1
    assert plan["cpu-0"].load != plan["cpu-1"].load
    both = Play(models[:1], [ready(models[0], 60)], [worker("cpu-0"), worker("cpu-1")]).next()
    assert both["cpu-0"].load == both["cpu-1"].load == ("a:1/onnx-fp32",)


def test_what_is_wanted_is_loaded_for_a_while_in_the_place_of_what_is_idle() -> None:
    models = [model("a"), model("b"), model("c")]
    play = Play(models, [ready(m, 40) for m in models], [worker()])
    assert play.loaded() == {"a:1/onnx-fp32", "b:1/onnx-fp32"}
    wants = {"c:1/onnx-fp32@cpu": 5.0}
    assert play.loaded(1000, wants=wants) == {"a:1/onnx-fp32", "b:1/onnx-fp32"}, "what was just loaded gets its chance"
    assert "c:1/onnx-fp32" in play.loaded(SETTLING_MS + 1000, wants=wants)
    kept = play.loaded(SETTLING_MS + 1000 + WANTED_MS - 1, wants={})
    assert "c:1/onnx-fp32" in kept


def test_what_is_idle_does_not_change_places_with_what_is_worth_the_same() -> None:
    models = [model(name, task=name) for name in "abc"]
    play = Play(models, [ready(m, 40) for m in models], [worker()])
    play.next(wants={"b:1/onnx-fp32@cpu": 1.0, "c:1/onnx-fp32@cpu": 1.0})
    for minute in range(1, 10):
        assert play.loaded(minute * IN_USE_MS, wants={}) == {"b:1/onnx-fp32", "c:1/onnx-fp32"}


def test_nothing_in_use_is_evicted_for_what_is_wanted() -> None:
    models = [model("a"), model("b"), model("c")]
    play = Play(models, [ready(m, 40) for m in models], [worker()])
    used = {"a:1/onnx-fp32@cpu": 3.0, "b:1/onnx-fp32@cpu": 0.5}
    assert play.loaded(rates=used) == {"a:1/onnx-fp32", "b:1/onnx-fp32"}
    now_ms = 10 * IN_USE_MS
    wants = {"c:1/onnx-fp32@cpu": 100.0}
    assert play.loaded(now_ms, wants=wants) == {"a:1/onnx-fp32", "b:1/onnx-fp32"}
    assert play.loaded(now_ms + IN_USE_MS - 1, rates={}) == {"a:1/onnx-fp32", "b:1/onnx-fp32"}, "it ran a moment ago"
    assert play.loaded(now_ms + IN_USE_MS, rates={"a:1/onnx-fp32@cpu": 3.0}) == {"a:1/onnx-fp32", "c:1/onnx-fp32"}
    assert play.plan is not None
    assert play.plan.reasons[0].startswith("b:1/onnx-fp32 does not fit on cpu")


def asked(task: str, rows_per_second: float = 1.0, accuracy_min: float = 0.0) -> Demanded:
    return Demanded(task, 1000.0, accuracy_min, "accuracy", True, rows_per_second)


def test_any_worker_has_what_is_quickest_for_each_class_of_demand_and_what_is_named_stays() -> None:
    """Before what else is in use: it is what bursts are served with."""
    models = [model("quick"), model("slow"), model("named", task="u")]
    kinds = {"quick": (0.7, 1.0), "slow": (0.9, 50.0), "named": (0.9, 5.0)}
    profiles = [ready(each, 40, accuracy=kinds[each.name][0], ms=kinds[each.name][1]) for each in models]
    play = Play(models, profiles, [worker()])
    quick, slow, named = (f"{each.key}/onnx-fp32" for each in models)
    used = {f"{variant}@cpu": 1.0 for variant in (slow, named)}
    assert play.loaded(models={m.key: m for m in models[1:]}, rates=used) == {slow, named}
    now_ms = 10 * IN_USE_MS
    everything = {m.key: m for m in models}
    assert play.loaded(now_ms, models=everything, rates=used) == {slow, named}, "it is in use"
    assert play.loaded(now_ms + 1, demand=[asked("t", 1000.0)]) == {quick, named}
    assert play.next(now_ms + 2)["cpu-0"].load[0] == quick, "and is loaded first"


def test_who_needs_accuracy_has_the_quickest_that_is_accurate_everywhere() -> None:
    models = [model("quick"), model("slow")]
    profiles = [ready(models[0], 60, accuracy=0.7, ms=1.0), ready(models[1], 60, accuracy=0.9, ms=50.0)]
    workers = [worker(f"cpu-{number}") for number in range(3)]
    asks = Demanded("t", 1000.0, 0.8, "cost", False, 1.0)
    loads = [each.load for each in Play(models, profiles, workers).next(demand=[asks]).values()]
    assert loads == [("slow:1/onnx-fp32",)] * 3


def test_the_last_that_is_ready_stays_until_something_else_is() -> None:
    """The demand grows: another variant is worth the room, but until it is loaded somebody has to answer."""
    models = [model("quick"), model("slow")]
    profiles = [ready(models[0], 60, accuracy=0.9, ms=1.0), ready(models[1], 60, accuracy=0.9, ms=50.0)]
    quick, slow = (f"{each.key}/onnx-fp32" for each in models)
    asks = Demanded("t", 1000.0, 0.8, "cost", False, 500.0)
    has_slow, empty = replace(worker(), ready=frozenset({slow})), worker("cpu-1")
    play = Play(models, profiles, [has_slow, empty])
    loads = play.next(demand=[asks])
    assert (loads["cpu-0"].load, loads["cpu-1"].load) == ((slow,), (quick,))
    both = [has_slow, replace(empty, ready=frozenset({quick}))]
    loads = play.next(1.0, workers=both)
    assert (loads["cpu-0"].load, loads["cpu-1"].load) == ((quick,), (quick,))


def test_the_last_that_is_ready_goes_if_nothing_can_replace_it_while_it_stays() -> None:
    models = [model("quick"), model("slow")]
    profiles = [ready(models[0], 60, accuracy=0.9, ms=1.0), ready(models[1], 60, accuracy=0.9, ms=50.0)]
    quick, slow = (f"{each.key}/onnx-fp32" for each in models)
    asks = Demanded("t", 1000.0, 0.8, "cost", False, 1500.0)  # enough for two workers
    has_slow = replace(worker(), ready=frozenset({slow}))
    assert Play(models, profiles, [has_slow]).next(demand=[asks])["cpu-0"].load == (quick,), "there is no other worker"
    play = Play(models, profiles, [has_slow, worker("cpu-1")])
    assert play.next(demand=[asks])["cpu-0"].load == (slow,)
    assert play.next(IN_THE_WAY_MS_MAX - 1)["cpu-0"].load == (slow,)
    assert play.next(IN_THE_WAY_MS_MAX)["cpu-0"].load == (quick,), "cpu-1 does not get ready"
    assert play.next(IN_THE_WAY_MS_MAX + 1)["cpu-0"].load == (quick,)


def test_bursts_that_come_again_and_again_do_not_move_what_is_loaded() -> None:
    """There is room for one. Every burst alone would have the quick one loaded, every calm the good one."""
    models = [model("quick"), model("good")]
    profiles = [ready(models[0], 60, accuracy=0.7, ms=1.0), ready(models[1], 60, accuracy=0.9, ms=10.0)]
    play = Play(models, profiles, [worker()])
    asks = Demanded("t", 1000.0, 0.85, "accuracy", True, 20.0)
    loads = []
    for second in range(90):
        rate = 600.0 if second % 10 == 9 else 20.0
        loads.append(play.loaded(1000.0 * second, demand=[replace(asks, rows_per_second=rate)]))
    assert loads[0] == {"good:1/onnx-fp32"}
    assert loads[30:] == [{"quick:1/onnx-fp32"}] * 60


def test_while_nothing_is_asked_for_what_is_quick_is_loaded_first_and_other_tasks_on_other_workers() -> None:
    models = [model(f"{task}{kind}", task=task) for task in "abc" for kind in (0, 1)]
    profiles = [ready(m, 10, accuracy=0.9 if "1" in m.name else 0.7, ms=50.0 if "1" in m.name else 1.0) for m in models]
    plan = Play(models, profiles, [worker(f"cpu-{number}") for number in range(3)]).next()
    firsts = [[variant[:2] for variant in each.load[:3]] for each in plan.values()]
    assert firsts == [["a0", "b0", "c0"], ["b0", "c0", "a0"], ["c0", "a0", "b0"]]


def test_what_is_loaded_and_beaten_or_old_stays_until_its_memory_is_needed_or_it_is_gone() -> None:
    old, new = model("a"), model("a", 2)
    play = Play([old], [ready(old, 40)], [worker()])
    play.next()
    later_ms = 10 * IN_USE_MS
    models, profiles = {m.key: m for m in (old, new)}, play.profiled(ready(new, 40))
    assert play.loaded(later_ms, models=models, profiles=profiles) == {"a:1/onnx-fp32", "a:2/onnx-fp32"}
    other = model("b")
    models, profiles = {**models, other.key: other}, play.profiled(ready(other, 40))
    assert play.loaded(2 * later_ms, models=models, profiles=profiles) == {"a:2/onnx-fp32", "b:1/onnx-fp32"}
    assert play.loaded(3 * later_ms, models={new.key: new}) == {"a:2/onnx-fp32"}


def test_a_new_leader_takes_what_is_loaded_to_be_in_use() -> None:
    models = [model("a"), model("b"), model("c")]
    first = Play(models, [ready(m, 40) for m in models], [worker()])
    first.next(rates={"b:1/onnx-fp32@cpu": 3.0}, wants={"c:1/onnx-fp32@cpu": 1.0})
    second = Play(models, [ready(m, 40) for m in models], [worker()])
    second.plan = first.plan
    assert second.loaded(5000) == {"b:1/onnx-fp32", "c:1/onnx-fp32"}
    wants = {"a:1/onnx-fp32@cpu": 1.0}
    assert second.loaded(4000 + IN_USE_MS, wants=wants) == {"b:1/onnx-fp32", "c:1/onnx-fp32"}
    assert "a:1/onnx-fp32" in second.loaded(5000 + IN_USE_MS, wants=wants)


def test_there_is_no_new_plan_while_the_old_one_says_the_same() -> None:
    situation = Situation({"m:1": model()}, {ready(model()).key: ready(model())}, [worker()])
    planner = Planner()
    first = planner.plan(None, situation, "broker-0", 0)
    assert first is not None
    assert planner.plan(first, situation, "broker-0", 500) is None
    another = planner.plan(first, situation, "broker-1", 500)
    assert another is not None
    assert (another.epoch, another.leader) == (2, "broker-1")
    assert planner.plan(first, replace(situation, models={"m:1": model(), "b:1": model("b")}), "broker-0", 500)


def test_rates_and_wishes_that_change_the_order_alone_are_no_new_plan() -> None:
    models = [model(name) for name in "abc"]
    play = Play(models, [ready(m) for m in models], [worker("cpu-0"), worker("cpu-1")])
    play.next()
    for step, key in enumerate(("c", "b", "c", "a")):
        play.next(step * 500.0, rates={f"{key}:1/onnx-fp32@cpu": 7.0}, wants={"b:1/onnx-fp32@cpu": step * 1.0})
    assert play.plan is not None
    assert play.plan.epoch == 1


def test_a_worker_that_left_a_moment_ago_keeps_what_it_loads_but_somebody_else_measures() -> None:
    both = [worker("cpu-0"), worker("cpu-1")]
    play = Play([model(), model("b")], [ready(model())], both)
    assert play.next()["cpu-0"] == Assignment(("m:1/onnx-fp32",), ("b:1/onnx-fp32",))
    second = play.next(1000, workers=both[1:])
    assert second["cpu-0"] == Assignment(("m:1/onnx-fp32",))
    assert second["cpu-1"].measure == ("b:1/onnx-fp32",)
    assert list(play.next(ABSENCE_MS_MAX)) == ["cpu-1"]


# --- what holds always ------------------------------------------------------------------------------------------------

MODELS = [model(name, version) for name in "ab" for version in (1, 2)]
_builder = st.sampled_from([name for _, name in BUILDERS[:2]])
_few = st.sampled_from([0.5, 0.6, 0.8, 0.9])
profiles = st.builds(
    ready,
    st.sampled_from(MODELS),
    memory_mb=st.sampled_from([20, 30, 70]),
    group=st.sampled_from(["cpu", "gpu"]),
    builder=_builder,
    accuracy=_few,
    ms=_few,
    price=_few,
)
workers = st.builds(
    worker,
    st.sampled_from(["w-0", "w-1", "w-2"]),
    st.sampled_from(["cpu", "gpu"]),
    st.sampled_from([50, 100]),
    st.sampled_from([BUILDERS[:1], BUILDERS[:2]]),
)
_keys = st.builds(
    lambda m, b, g: f"{m.key}/{b}@{g}", st.sampled_from(MODELS), _builder, st.sampled_from(["cpu", "gpu"])
)
_rates = st.dictionaries(_keys, st.sampled_from([0.1, 1.0, 9.0]), max_size=3)
steps = st.lists(
    st.tuples(
        st.sampled_from([500, SETTLING_MS, IN_USE_MS - 1, 2 * IN_USE_MS]),
        st.lists(profiles, max_size=12),
        st.lists(workers, max_size=3, unique_by=lambda w: w.name),
        st.lists(st.sampled_from(MODELS), min_size=2, unique_by=lambda m: m.key),
        _rates,
        _rates,
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=200, deadline=None)
@given(steps)
def test_memory_is_never_exceeded_nothing_in_use_evicted_and_the_same_input_gives_the_same_plan(history: Any) -> None:
    one, other = Play([], [], []), Play([], [], [])
    now_ms, used_ms, loaded = 0.0, dict[str, float](), dict[str, set[str]]()
    known: dict[str, Profile] = {}
    for passed_ms, fresh, present, registered, rates, wants in history:
        now_ms += passed_ms
        known = {**{p.key: p for p in fresh}, **known}  # a profile keeps its memory
        changes = {
            "models": {m.key: m for m in registered},
            "profiles": known,
            "workers": present,
            "rates": rates,
            "wants": wants,
        }
        plan = one.next(now_ms, **changes)
        assert other.next(now_ms, **dict(reversed(changes.items()))) == plan
        used_ms.update(dict.fromkeys(rates, now_ms))
        for each in present:
            load = plan[each.name].load
            assert len(set(load)) == len(load) <= LOADED_MAX
            assert sum(known[f"{v}@{each.group}"].memory_bytes for v in load) <= each.memory_bytes_max
            makes = {v for m in registered for v in variants(m, each.builders)}
            assert set(load) <= makes
            possible = {v for v in makes if f"{v}@{each.group}" in known}
            in_use = {v for v in possible if now_ms - used_ms.get(f"{v}@{each.group}", -1e9) < IN_USE_MS}
            before = loaded.get(f"{each.name}@{each.group}@{each.memory_bytes_max}", set())
            assert before & in_use <= set(load)
        loaded = {f"{w.name}@{w.group}@{w.memory_bytes_max}": set(plan[w.name].load) for w in present}
        for group in ("cpu", "gpu"):
            measured = [v for w in present if w.group == group for v in plan[w.name].measure]
            assert len(measured) == len(set(measured))
            able = {v for w in present if w.group == group for m in registered for v in variants(m, w.builders)}
            assert set(measured) == {v for v in able if f"{v}@{group}" not in known}


def test_a_thousand_variants_on_fifty_workers_are_planned_in_time() -> None:
    models = [replace(model(f"m{number}"), registered_ms=number) for number in range(334)]
    profiles = [
        ready(of, 20, builder=name, accuracy=0.5 + number % 97 / 200, ms=1.0 + number % 89 + place)
        for number, of in enumerate(models)
        for place, (_, name) in enumerate(BUILDERS[:3])
    ]
    fleet = [worker(f"cpu-{number:02}", memory_mb=4000, builders=BUILDERS) for number in range(50)]
    play = Play(models, profiles, fleet)
    began_s = time.process_time()
    play.next()
    took_s = time.process_time() - began_s
    assert play.plan is not None
    assert len(play.plan.workers["cpu-00"].load) == 200
    assert len(play.plan.reasons) == REASONS_MAX
    assert took_s < 2.0, "about 0.1 s on a core of its own"


@pytest.mark.parametrize("names", [("b", "a"), ("a", "b")])
def test_the_order_of_what_is_known_does_not_matter(names: tuple[str, str]) -> None:
    models = [model(name) for name in names]
    play = Play(models, [ready(m, 60) for m in models], [worker()])
    assert play.loaded() == {"a:1/onnx-fp32"}


# --- how many workers ------------------------------------------------------------------------------------------------

SCALING = Scaling(0, 5, 100.0, 1.0, start_ms=4_000.0)


def cheaply(rows_per_second: float, task: str = "t") -> tuple[Demanded, ...]:
    return (Demanded(task, 1000.0, 0.0, "cost", False, rows_per_second),)


def there(name: str, *loaded: str, draining: bool = False) -> PlannedWorker:
    return replace(worker(name), ready=frozenset(loaded), draining=draining)


def fleet_of(play: Play) -> GroupTarget:
    assert play.plan is not None
    return play.plan.fleet["cpu"]


def test_a_group_whose_number_is_fixed_is_not_spoken_of() -> None:
    play = Play([model()], [ready(model())], [worker()])
    play.next(demand=cheaply(500.0))
    assert play.plan is not None and play.plan.fleet == {}


def test_a_group_without_workers_gets_some_when_something_is_asked_that_it_could_serve() -> None:
    play = Play([model()], [ready(model())], [])
    assert play.next(scaling={"cpu": SCALING}) == {}
    assert fleet_of(play).workers == 0
    play.next(500.0, demand=cheaply(150.0))
    assert fleet_of(play).workers == 2
    play.next(1000.0, demand=cheaply(1.0, "another"))
    assert fleet_of(play).workers == 2


def test_offline_work_starts_somebody_and_nobody_for_its_amount() -> None:
    play = Play([model()], [ready(model())], [])
    play.next(scaling={"cpu": SCALING}, demand=(Demanded("t", None, 0.0, "cost", False, 10_000.0),))
    assert fleet_of(play).workers == 1
    play.next(6000.0, demand=(Demanded("t", None, 0.0, "cost", False, 10_000.0), *cheaply(150.0)))
    assert fleet_of(play).workers == 2


def test_a_model_that_is_asked_for_by_its_name_gets_workers_too() -> None:
    play = Play([model()], [ready(model())], [])
    play.next(scaling={"cpu": SCALING})
    play.next(500.0, wants={"m:1/onnx-fp32@cpu": 0.2})
    assert fleet_of(play).workers == 1
    assert "the model m:1" in fleet_of(play).reason
    play.next(1000.0, wants={}, rates={"m:1/onnx-fp32@cpu": 150.0})
    assert fleet_of(play).workers == 2


def test_a_group_without_workers_gets_one_that_measures_what_is_registered() -> None:
    play = Play([model()], [], [])
    play.next(scaling={"cpu": SCALING})
    assert fleet_of(play).workers == 1
    assert "measure m:1" in fleet_of(play).reason
    only_fp32 = Play([model()], [ready(model())], [], )  # fmt: skip
    only_fp32.next(scaling={"cpu": SCALING})
    assert fleet_of(only_fp32).workers == 0, "what is measured at all is taken to be all that can be"
    only_fp32.next(500.0, workers=[worker(builders=BUILDERS)])
    assert "onnx-int8" in fleet_of(only_fp32).reason


def test_who_is_to_go_keeps_what_it_has_until_the_others_have_what_is_used() -> None:
    models = [model("a", task="s"), model("b")]
    play = Play(models, [ready(of, memory_mb=60) for of in models], [worker("cpu-0"), worker("cpu-1")])
    play.next(scaling={"cpu": replace(SCALING, workers_min=2)})
    before = {name: set(play.loaded(of=name)) for name in ("cpu-0", "cpu-1")}
    assert before == {"cpu-0": {"a:1/onnx-fp32"}, "cpu-1": {"b:1/onnx-fp32"}}
    workers = [there(name, *variants) for name, variants in before.items()]
    used = {f"{variant}@cpu": 1.0 for variants in before.values() for variant in variants}
    play.next(1000.0, workers=workers, rates=used)
    one = {"cpu": replace(SCALING, workers_max=1)}
    play.next(2000.0, scaling=one)
    assert fleet_of(play).leaving == () and fleet_of(play).workers == 2, "what they have is used, by its name"
    play.next(3000.0, rates={"b:1/onnx-fp32@cpu": 1.0})
    assert fleet_of(play).leaving == () or fleet_of(play).leaving == ("cpu-0",)
    play.next(4000.0, rates={})
    assert len(fleet_of(play).leaving) == fleet_of(play).workers == 1
    gone = fleet_of(play).leaving[0]
    assert set(play.next(5000.0)[gone].load) == before[gone]


def test_loads_are_planned_for_those_who_stay() -> None:
    models = [model("a"), model("b", task="u")]
    workers = [there("cpu-0", "a:1/onnx-fp32"), there("cpu-1", "b:1/onnx-fp32")]
    play = Play(models, [ready(of, memory_mb=40) for of in models], workers)
    both = (*cheaply(10.0), *cheaply(10.0, "u"))
    play.next(demand=both, scaling={"cpu": replace(SCALING, workers_max=1)},
              rates={"a:1/onnx-fp32@cpu": 10.0, "b:1/onnx-fp32@cpu": 10.0})  # fmt: skip
    assert fleet_of(play).workers == 2, "the one that stays has to load something first"
    going = next(name for name in ("cpu-0", "cpu-1") if name not in play.next(500.0))
    stays = "cpu-1" if going == "cpu-0" else "cpu-0"
    assert play.loaded(1000.0, stays) == {"a:1/onnx-fp32", "b:1/onnx-fp32"}
    done = [there(stays, "a:1/onnx-fp32", "b:1/onnx-fp32"), next(w for w in workers if w.name == going)]
    play.next(1500.0, workers=done)
    assert (fleet_of(play).workers, fleet_of(play).leaving) == (1, (going,))


def test_who_is_being_started_finds_what_to_load_and_counts_for_nothing_yet() -> None:
    play = Play([model()], [ready(model())], [there("cpu-0", "m:1/onnx-fp32")])
    play.next(scaling={"cpu": SCALING}, demand=cheaply(150.0))
    assert fleet_of(play).workers == 2
    play.next(500.0, coming={"cpu-1": "cpu", "gpu-0": "gpu"})
    assert play.plan is not None and play.plan.workers.keys() == {"cpu-0", "cpu-1"}
    assert play.loaded(of="cpu-1") == {"m:1/onnx-fp32"}
    assert fleet_of(play).workers == 2
    play.next(1000.0, coming={}, workers=[there("cpu-0", "m:1/onnx-fp32"), there("cpu-1")])
    assert play.loaded(1000.0, "cpu-1") == {"m:1/onnx-fp32"}


def test_who_drains_gets_nothing_new() -> None:
    play = Play([model()], [], [there("cpu-0", draining=True), worker("cpu-1")])
    play.next(scaling={"cpu": SCALING})
    assert play.plan is not None
    assert set(play.plan.workers) == {"cpu-1"}


def test_a_fleet_is_used_as_far_as_it_was_sized_for() -> None:
    planned: list[float] = []

    def place(*args: Any) -> placement.Allocation:
        planned.append(args[3].utilisation_max)
        return placement.place(*args)

    play = Play([model()], [ready(model())], [worker()])
    play.planner = Planner(place=place)
    play.next(demand=cheaply(50.0))
    play.next(6000.0, scaling={"cpu": SCALING})
    assert planned == [0.8, 0.9]


def test_another_reason_alone_is_no_plan() -> None:
    play = Play([model()], [ready(model())], [])
    play.next(scaling={"cpu": SCALING}, demand=cheaply(150.0))
    assert play.plan is not None
    epoch, reason = play.plan.epoch, fleet_of(play).reason
    play.next(6000.0, demand=cheaply(140.0))
    assert (play.plan.epoch, fleet_of(play).reason) == (epoch, reason)

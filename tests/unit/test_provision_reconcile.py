"""What a provisioner does next: how many, under which names, who goes, who is tried again and when."""

from __future__ import annotations

import pytest

from modelless.messages import GroupTarget, Member
from modelless.provision.reconcile import (
    KILL_AFTER_MS,
    STRANGER_MS,
    Action,
    Group,
    Instance,
    Kill,
    Reconciler,
    Start,
    Stop,
)

DRAIN_MS = 20_000.0


class World:
    """Instances that do what they are told at once; leavers go with :meth:`gone`."""

    def __init__(self, *groups: Group) -> None:
        self.reconciler = Reconciler(groups, DRAIN_MS)
        self.now_ms = 0.0
        self.there: dict[str, Instance] = {}
        self.members: dict[str, Member] = {}
        self.broken: set[str] = set()
        """Names that cannot be started."""
        self._lives = 0

    def step(self, *ended: Instance) -> list[Action]:
        actions = self.reconciler.decide([*ended, *self.there.values()], list(self.members.values()), self.now_ms)
        for action in actions:
            if isinstance(action, Start) and action.name in self.broken:
                why = f"{action.name} cannot be started: no such device"
                self.reconciler.failed(action.name, action.group, why, self.now_ms)
            elif isinstance(action, Start):
                self.there[action.name] = Instance(action.name, action.group)
            elif isinstance(action, Kill):
                del self.there[action.name]
        return actions

    def ready(self, *names: str, group: str = "g") -> None:
        for name in names:
            self._lives += 1
            self.members[name] = Member("worker", name, f"i{self._lives}", "ready", group=group)

    def gone(self, name: str, how: str | None = None, *, killed: bool = False) -> list[Action]:
        """It ends; the fleet may take it for alive for a while."""
        instance = self.there.pop(name)
        return self.step(Instance(name, instance.group, ended=how or "exit status 0", was_killed=killed))

    def plan(self, workers: int, *leaving: str, group: str = "g") -> list[Action]:
        self.reconciler.plan({group: GroupTarget(workers, leaving)})
        return self.step()


@pytest.fixture
def world() -> World:
    return World(Group("g", 1, 4))


def test_before_a_plan_there_are_as_few_as_may_be() -> None:
    world = World(Group("g", 1, 4), Group("idle", 0, 4), Group("fixed", 2, 2))
    assert world.step() == [Start("g", "g-0"), Start("fixed", "fixed-0"), Start("fixed", "fixed-1")]
    assert world.step() == []
    assert world.reconciler.wanted == {"g-0", "fixed-0", "fixed-1"}


def test_follows_the_plan_up_and_down(world: World) -> None:
    world.step()
    assert world.plan(3) == [Start("g", "g-1"), Start("g", "g-2")]
    assert world.plan(1, "g-0", "g-2") == [Stop("g-0"), Stop("g-2")]
    assert world.step() == []  # nobody is asked twice: a second SIGTERM would not drain
    assert world.reconciler.wanted == {"g-1"}
    assert world.gone("g-0") == []
    assert world.gone("g-2") == []
    assert world.plan(2) == [Start("g", "g-0")]


def test_a_name_is_free_when_its_worker_is_gone_and_no_plan_has_it_among_the_leaving(world: World) -> None:
    world.step()
    world.plan(2)
    assert world.plan(2, "g-0") == [Stop("g-0"), Start("g", "g-2")]
    assert world.gone("g-0") == []
    assert world.plan(3, "g-0") == [Start("g", "g-3")]
    assert world.plan(4) == [Start("g", "g-0")]


def test_bounds_hold_whatever_a_plan_says(world: World) -> None:
    assert len(world.plan(100)) == 4
    world.plan(0)
    assert len(world.reconciler.wanted) == 1
    assert world.plan(7, group="unknown") == []


def test_a_plan_that_does_not_speak_of_a_group_changes_nothing(world: World) -> None:
    world.plan(3)
    world.reconciler.plan({})
    assert world.step() == []


def test_a_fixed_group_does_not_scale() -> None:
    world = World(Group("g", 2, 2))
    world.step()
    assert world.plan(5, "g-0") == []


def test_who_died_is_replaced_at_once_under_its_name(world: World) -> None:
    world.plan(2)
    world.ready("g-0", "g-1")
    world.step()
    world.now_ms = 60_000
    assert world.gone("g-1", "killed by SIGKILL", killed=True) == [Start("g", "g-1")]
    assert world.reconciler.errors() == {"g": "g-1 died: killed by SIGKILL"}
    world.step()
    assert world.reconciler.errors(), "who is still announced is the one that died"
    world.ready("g-1")
    world.step()
    assert world.reconciler.errors() == {}


def test_who_keeps_dying_waits_longer_and_longer_and_the_others_do_not(world: World) -> None:
    world.plan(2)
    delays = []
    for _ in range(8):
        actions = world.gone("g-1", "exit status 1: no such device")
        before_ms = world.now_ms
        if not actions:
            wake_at_ms = world.reconciler.wake_at_ms()
            assert wake_at_ms is not None
            world.now_ms = wake_at_ms - 1
            assert world.step() == []
            world.now_ms += 1
            actions = world.step()
        assert actions == [Start("g", "g-1")]
        delays.append(world.now_ms - before_ms)
    assert delays == [0, 500, 1000, 2000, 4000, 8000, 16000, 30000]
    assert world.reconciler.errors() == {"g": "g-1 died: exit status 1: no such device"}
    assert world.gone("g-0") == [Start("g", "g-0")]
    assert world.plan(3) == [Start("g", "g-2")]


def test_what_cannot_be_started_is_reported_and_tried_again(world: World) -> None:
    world.broken.add("g-0")
    assert world.step() == [Start("g", "g-0")]
    assert world.step() == [Start("g", "g-0")]  # the first time at once
    assert world.step() == []
    assert world.reconciler.errors() == {"g": "g-0 cannot be started: no such device"}
    assert world.reconciler.wanted == {"g-0"}
    world.now_ms = 500
    world.broken.clear()
    assert world.step() == [Start("g", "g-0")]
    assert world.reconciler.errors(), "started is not yet ready"
    world.ready("g-0")
    world.step()
    assert world.reconciler.errors() == {}


def test_several_failures_of_a_group_are_one_report(world: World) -> None:
    world.broken |= {"g-0", "g-1", "g-2"}
    world.plan(3)
    assert world.reconciler.errors() == {"g": "g-0 cannot be started: no such device; and 2 more"}


def test_what_is_not_wanted_any_more_is_no_error(world: World) -> None:
    world.ready("g-0")
    world.broken.add("g-1")
    world.plan(2)
    assert world.reconciler.errors()
    world.plan(1)
    assert world.reconciler.errors() == {}
    assert world.reconciler.wake_at_ms() is None


def test_trouble_that_is_seen_from_outside_is_reported_while_it_lasts(world: World) -> None:
    world.there["g-0"] = Instance("g-0", "g", trouble="no node has 4 CPUs")
    world.step()
    assert world.reconciler.errors() == {"g": "g-0: no node has 4 CPUs"}
    world.there["g-0"] = Instance("g-0", "g")
    world.step()
    assert world.reconciler.errors() == {}


def test_who_does_not_go_is_killed(world: World) -> None:
    world.plan(2)
    world.plan(1, "g-1")
    assert world.reconciler.wake_at_ms() == DRAIN_MS + KILL_AFTER_MS
    world.now_ms = DRAIN_MS + KILL_AFTER_MS - 1
    assert world.step() == []
    world.now_ms += 1
    assert world.step() == [Kill("g-1")]
    assert world.gone("g-0") == [Start("g", "g-0")]
    assert "g-1" not in world.there


def test_who_could_not_be_asked_is_asked_again(world: World) -> None:
    world.plan(2)
    assert world.plan(1, "g-1") == [Stop("g-1")]
    world.reconciler.not_asked("g-1")
    assert world.step() == [Stop("g-1")]


def test_orphans_are_adopted_as_far_as_they_are_wanted() -> None:
    world = World(Group("g", 1, 4), Group("fixed", 1, 1))
    for name, group in (("g-0", "g"), ("g-7", "g"), ("g-2", "g"), ("old-0", "old"), ("fixed-3", "fixed")):
        world.there[name] = Instance(name, group)
    world.there["g-9"] = Instance("g-9", "g", is_leaving=True)
    world.ready("g-2", "g-7")
    assert world.plan(2) == [Stop("g-0"), Stop("old-0")], "who is ready stays, and who leaves already is left alone"
    assert world.reconciler.wanted == {"g-2", "g-7", "fixed-3"}


def test_one_that_was_asked_by_an_earlier_provisioner_and_is_gone_has_not_failed(world: World) -> None:
    assert world.step(Instance("g-0", "g", ended="exit status 0", is_leaving=True)) == [Start("g", "g-0")]
    assert world.reconciler.errors() == {}


def test_strangers_count_once_they_have_proved_to_be_alive(world: World) -> None:
    world.step()
    world.ready("hand-made", "g-1")
    assert world.plan(3) == [Start("g", "g-1"), Start("g", "g-2")], "the dead are announced for a while"
    world = World(Group("g", 1, 4))
    world.ready("hand-made", "g-1")
    assert world.step() == [Start("g", "g-0")]
    world.now_ms = STRANGER_MS
    assert world.plan(4) == [Start("g", "g-2")]
    assert world.plan(4, "hand-made") == [Start("g", "g-3")]


def test_ours_are_no_strangers_when_they_are_dead(world: World) -> None:
    world.plan(2)
    world.ready("g-0", "g-1")
    world.step()
    world.now_ms = 60_000
    assert world.gone("g-0", "exit status 0") == [Start("g", "g-0")]


def test_all_leave_and_are_killed_when_that_takes_too_long(world: World) -> None:
    world.plan(2)
    world.reconciler.leave()
    assert world.step() == [Stop("g-0"), Stop("g-1")]
    assert world.gone("g-0") == []
    world.now_ms = DRAIN_MS + KILL_AFTER_MS
    assert world.step() == [Kill("g-1")]
    assert world.step() == []


def test_a_second_signal_kills_at_once(world: World) -> None:
    world.plan(2)
    world.reconciler.leave()
    world.step()
    world.reconciler.leave(now=True)
    assert world.step() == [Kill("g-0"), Kill("g-1")]
    assert world.step() == []


def test_who_could_not_be_started_and_is_there_after_all_is_not_waited_for(world: World) -> None:
    world.broken.add("g-0")
    world.step()
    world.step()
    world.there["g-0"] = Instance("g-0", "g")
    assert world.step() == []
    assert world.reconciler.wake_at_ms() is None

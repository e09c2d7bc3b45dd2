"""What the leader plans by: how the groups do whose number of workers is the planner's choice."""

from __future__ import annotations

from broker.leader import PLAN_SAVED_S, PLAN_SHARE_MAX, START_MS_DEFAULT, Share, scalings
from broker.scaler import Scaling
from modelless.config import GroupConfig
from modelless.messages import Member

GROUPS = (
    GroupConfig(name="fixed", workers=3),
    GroupConfig(name="cpu", workers_min=0, workers_max=9, price_per_hour=0.5, memory_mb_max=512),
    GroupConfig(name="gpu", workers_max=2),
)


def worker(name: str, group: str, **statistics: float) -> Member:
    return Member("worker", name, name, "ready", group=group, statistics=statistics)


def broker(name: str, **statistics: float) -> Member:
    told = {key.replace("__", "."): value for key, value in statistics.items()}
    return Member("broker", name, name, "ready", statistics=told)


def test_planning_takes_its_share_of_the_processor_and_what_it_saved() -> None:
    share, planned, took_s = Share(), 0, 0.1
    for tenth in range(1000):
        if share.is_left(tenth / 10):
            share.spend(took_s)
            planned += 1
        if tenth == 5:
            assert planned == 6, "one after another, as long as something is left"
    assert abs(planned * took_s - (PLAN_SHARE_MAX * 100 + PLAN_SAVED_S)) <= took_s


def test_start_times_are_medians_and_are_remembered() -> None:
    start_ms: dict[str, float] = {}
    assert scalings(GROUPS, [], start_ms) == {
        "cpu": Scaling(0, 9, 512, 0.5, START_MS_DEFAULT),
        "gpu": Scaling(1, 2, 2048, 0.0, START_MS_DEFAULT),
    }
    times = [("cpu", 3000.0), ("cpu", 5000.0), ("cpu", 90_000.0), ("gpu", 8000.0)]
    members = [worker(f"w{i}", group, start_ms=ms) for i, (group, ms) in enumerate(times)]
    for told in ([*members, worker("w9", "cpu")], []):
        found = scalings(GROUPS, told, start_ms)
        assert (found["cpu"].start_ms, found["gpu"].start_ms) == (5000.0, 8000.0)


def test_what_waits_is_that_of_all_brokers_together() -> None:
    brokers = [
        broker("b0", backlog_ms__cpu=100.0, oldest_ms__cpu=40.0),
        broker("b1", backlog_ms__cpu=10.0, oldest_ms__cpu=70.0, backlog_ms__fixed=1.0),
    ]
    found = scalings(GROUPS, brokers, {})
    assert (found["cpu"].backlog_ms, found["cpu"].oldest_ms) == (110.0, 70.0)
    assert (found["gpu"].backlog_ms, found["gpu"].oldest_ms) == (0.0, 0.0)


def test_a_provisioner_says_what_it_cannot_start() -> None:
    provisioner = Member("provisioner", "local", "p", "ready", errors={"gpu": "no such device"})
    found = scalings(GROUPS, [provisioner], {})
    assert (found["cpu"].failing, found["gpu"].failing) == ("", "no such device")

"""Which of two groups is the cheaper does not hang on which one happened to run the larger batches."""

from __future__ import annotations

from simulator.arrivals import generate
from simulator.facts import GroupSpec, Portfolio, VariantProfile, group_of
from simulator.ours import Ours
from simulator.scenario import Scenario, play
from simulator.world import Fault

SIZES = (1, 2, 4, 8)
FLEET = (GroupSpec("strong", 2, 100.0, 1.0), GroupSpec("weak", 2, 100.0, 0.4))
WEAK = ("weak-0", "weak-1")


def profile(group: str, factor: float) -> VariantProfile:
    times_ms = tuple(factor * (30.0 + 10.0 * size) for size in SIZES)
    return VariantProfile("t", "m", "v", group, 0.9, 300.0, 40.0, SIZES, times_ms, times_ms)


def test_after_a_stall_the_cheaper_group_fills_its_batches_again() -> None:
    """At 80 % of capacity; full batches are cheaper on the weak group, its small ones dearer than the strong one's."""
    portfolio = Portfolio((profile("strong", 1.0), profile("weak", 2.0)))
    queries = generate(["poisson:rate=174,seconds=30,task=t,latency_ms_max=600"], 7)
    stall = [Fault(at_ms, "slow", worker, value) for at_ms, value in ((8e3, 2.0), (11e3, 1.0)) for worker in WEAK]
    placement = {name: ("v",) for spec in FLEET for name in spec.worker_names}
    played = play(Scenario(FLEET, portfolio, queries, faults=stall), Ours(), placement=placement)

    def on_weak(from_ms: float, to_ms: float) -> float:
        groups = [group_of(query.worker) for query in played.queries if from_ms <= query.arrival_ms < to_ms]
        return groups.count("weak") / len(groups)

    assert on_weak(3e3, 8e3) > 0.33
    assert on_weak(15e3, 30e3) > 0.33

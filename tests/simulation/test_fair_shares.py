"""Fair shares between query topics, whole: the real core, batcher, planner and device queues in virtual time.

What a topic gets is the device time of its rows, in the warm part of a run. Two workers do about 1,780 digits a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest

from simulator.arrivals import generate
from simulator.facts import GroupSpec, Portfolio, SimulatedQuery, VariantProfile
from simulator.ours import Ours
from simulator.scenario import Scenario, play

WARM_MS = 1000.0
SECONDS = 4
SIZES = (1, 2, 4, 8, 16, 32)


def variant(name: str, task: str, accuracy: float, fixed_ms: float, row_ms: float) -> VariantProfile:
    times = tuple(fixed_ms + row_ms * size for size in SIZES)
    return VariantProfile(task, f"m-{task}", name, "gpu", accuracy, 50.0, 100.0, SIZES, times, times)


DIGITS = [variant("fast", "digits", 0.9, 4.0, 1.0)]
TASKS = [*DIGITS, variant("face", "faces", 0.85, 10.0, 6.0)]
FAMILY = [variant("small", "digits", 0.8, 2.0, 0.4), variant("large", "digits", 0.93, 6.0, 3.0)]


def asked(
    topic: str, rate: float, latency_ms: float = 200, task: str = "digits", seconds: float = SECONDS, **more: object
) -> str:
    rest = "".join(f",{name}={value}" for name, value in more.items())
    return f"poisson:rate={rate},seconds={seconds},task={task},latency_ms_max={latency_ms},topic={topic}{rest}"


@dataclass(frozen=True)
class Got:
    in_time: float
    goodness: float
    part: float
    """Of the device time that all topics got."""


def played(
    texts: Sequence[str], profiles: Sequence[VariantProfile] = DIGITS, weights: Mapping[str, float] | None = None
) -> dict[str, Got]:
    fleet = (GroupSpec("gpu", 2, 10_000.0, 1.0),)
    scenario = Scenario(fleet, Portfolio(tuple(profiles)), generate(texts, 7), 7)
    queries = [query for query in play(scenario, Ours(topic_weights=weights)).queries if query.arrival_ms > WARM_MS]
    all_ms = sum(map(device_ms, queries))
    found = {}
    for topic in {query.topic for query in queries}:
        own = [query for query in queries if query.topic == topic]
        good = [query.accuracy for query in own if query.outcome == "in_time"]
        part = sum(map(device_ms, own)) / all_ms
        found[topic] = Got(len(good) / len(own), sum(good) / len(own), part)
    return found


def device_ms(query: SimulatedQuery) -> float:
    return (query.end_ms - query.start_ms) / query.batch if query.batch else 0.0


@pytest.mark.parametrize(
    ("mine", "flood", "profiles"),
    [
        (asked("mine", 445), asked("flood", 8900), DIGITS),
        (asked("mine", 445, 60), asked("flood", 8900, 2000), DIGITS),
        (asked("mine", 445), asked("flood", 8900, on_miss="late"), DIGITS),
        (asked("mine", 75, task="faces"), asked("flood", 8900), TASKS),
        (
            asked("mine", 150, on_miss="degrade", prefer="accuracy"),
            asked("flood", 8900, on_miss="degrade", prefer="accuracy"),
            FAMILY,
        ),
    ],
    ids=["alike", "its latencies are long", "it waits for ever", "another task", "it degrades"],
)
def test_who_asks_for_half_its_share_keeps_it_beside_a_flood(
    mine: str, flood: str, profiles: Sequence[VariantProfile]
) -> None:
    alone, beside = played([mine], profiles)["mine"], played([mine, flood], profiles)["mine"]
    assert alone.in_time > 0.99
    assert beside.in_time >= 0.99 * alone.in_time
    assert beside.goodness >= 0.99 * alone.goodness


@pytest.mark.parametrize(
    ("first", "second", "profiles", "weight"),
    [
        (asked("first", 8900), asked("second", 1800), DIGITS, 1.0),
        (asked("first", 8900), asked("second", 3600), DIGITS, 3.0),
        (asked("first", 8900, 100), asked("second", 1800, 400), DIGITS, 1.0),
        (asked("first", 8900, seconds=8), asked("second", 1000, task="faces", seconds=8), TASKS, 1.0),
    ],
    ids=["alike", "by weight", "of unlike latency", "of unlike cost"],
)
def test_floods_get_device_time_by_weight(
    first: str, second: str, profiles: Sequence[VariantProfile], weight: float
) -> None:
    """In the long run, within 5 %: a lead of some batches at the beginning counts for less and less."""
    got = played([first, second], profiles, {"second": weight})
    assert got["first"].part == pytest.approx(1 / (1 + weight), rel=0.05)
    assert got["second"].part == pytest.approx(weight / (1 + weight), rel=0.05)


def test_what_one_topic_leaves_is_shared_by_the_others() -> None:
    got = played([asked("first", 8900), asked("second", 2400), asked("third", 300)])
    assert got["third"].in_time > 0.99
    assert got["first"].part == pytest.approx(got["second"].part, rel=0.05)


def test_with_capacity_to_spare_nobody_is_limited() -> None:
    got = played([asked("quick", 700, 50), asked("slow", 350, 1000)])
    assert got["quick"].in_time > 0.99
    assert got["slow"].in_time == 1.0

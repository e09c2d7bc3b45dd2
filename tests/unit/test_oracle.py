"""The choice against brute force over the same table: many variants, groups, ready workers, backlogs, constraints.

The oracle looks at every candidate and knows nothing of orders, sets and classes. The ranking has lived before it is
asked: candidates came and went, were loaded and unloaded, and learned other latencies.

Bugs that were planted one by one in :mod:`broker.ranking`, :mod:`broker.view` and :mod:`broker.selector`, and found
here: one bucket too few for what is within a limit, or a whole bucket taken for it; keep a view of fronts that have
changed; leave in the front who went; forget whom who went had dominated; let one team's wait count for another; look
among the fronts only although somebody refused; let time pass before the log time; confuse what is not loaded with a
class; stop at the first class that answers.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from math import expm1
from operator import le
from typing import Any
from unittest.mock import patch

from broker_builders import entry, model
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import ranking, view
from broker.catalog import Candidate, Target
from broker.ledger import Entry
from broker.prices import Prices
from broker.profiles import LatencyTable
from broker.selector import THRIFT, Choice, Chosen, Parked, Refused, Selector
from modelless.messages import BatchTime

INF = float("inf")
SLACK = 0.02
GROUPS = ("cpu", "gpu", "edge")
NOW_MS = 1_700_000_000_000.0


@dataclass
class Life:
    """A target whose candidates have changed in every way, drawn from a seed; ``coarse`` makes many of them equal."""

    seed: int
    number: int
    coarse: bool
    target: Target = field(init=False)
    candidates: list[Candidate] = field(default_factory=list)
    ahead_ms: dict[str, float] = field(default_factory=dict)
    """Of each worker."""

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.target = Target("t")
        workers = [f"{group}-{n}" for group in GROUPS for n in range(5)]
        idle = self.draw.random() < 0.2
        self.ahead_ms = {
            worker: 0.0 if idle else self.draw.choice((0.0, 3.0, self.draw.uniform(0, 200))) for worker in workers
        }
        for _ in range(self.number):
            self.come()
        for _ in range(self.draw.choice((0, 10, self.number))):
            self.draw.choice((self.come, self.go, self.load, self.load, self.learn))()
            if self.draw.random() < 0.1:
                self.ask()  # so that there is something to go stale
        if not self.candidates:
            self.come()

    def value(self, low: float, high: float) -> float:
        return self.draw.choice((low, (low + high) / 2, high)) if self.coarse else self.draw.uniform(low, high)

    def come(self) -> None:
        sizes = sorted(self.draw.sample((1, 2, 3, 4, 8, 16, 20, 64, 128), self.draw.choice((1, 2, 4))))
        ms = self.value(0.5, 50)
        batches = tuple(BatchTime(size, ms * (1 + size * self.value(0.01, 1)), 1000.0) for size in sizes)
        low = self.value(0.3, 0.99)
        candidate = Candidate(
            f"m:1/b{self.draw.random()}",
            self.draw.choice(GROUPS),
            model(),
            low + 0.01,
            low,
            LatencyTable(batches),
            self.draw.choice((0.0, 1.0, 3.0)) / 3_600_000,
        )
        candidate.team = self.team(candidate.group)
        self.candidates.append(candidate)
        self.target.ranking.add(candidate)

    def team(self, group: str) -> frozenset[str]:
        """Who has it ready: nobody, or some of five."""
        return frozenset(f"{group}-{n}" for n in self.draw.sample(range(5), self.draw.choice((0, 0, 1, 1, 2, 5))))

    def wait_ms(self, group: str, team: frozenset[str]) -> float:
        return min(self.ahead_ms[incarnation] for incarnation in team)

    def go(self) -> None:
        if self.candidates:
            self.target.ranking.remove(self.candidates.pop(self.draw.randrange(len(self.candidates))))

    def load(self) -> None:
        if self.candidates:
            candidate = self.draw.choice(self.candidates)
            candidate.team = self.team(candidate.group)
            self.target.ranking.reclass(candidate)

    def learn(self) -> None:
        if self.candidates:
            candidate = self.draw.choice(self.candidates)
            candidate.table.scale = self.draw.choice((0.5, 1.0, 3.0))
            if candidate.is_outdated(None, 0.0):
                self.target.ranking.remove(candidate)
                candidate.sample()
                self.target.ranking.add(candidate)

    def asked(self) -> Entry:
        draw = self.draw
        constraints: dict[str, Any] = {
            "latency_ms_max": draw.choice((None, 1.0, 20.0, 100.0, draw.uniform(0.1, 300))),
            "accuracy_min": draw.choice((None, 0.3, 0.645, 0.99, draw.random())),
            "cost_max": draw.choice((None, None, 0.0, 10 ** draw.uniform(-6, -2))),
            "prefer": draw.choice(("cost", "accuracy", "latency")),
            "on_miss": draw.choice(("reject", "late", "degrade")),
        }
        made = entry(
            0,
            arrival_ms=NOW_MS - draw.choice((0, 0, 5, -5)),
            rows=draw.choice((1, 1, 8, draw.randint(1, 64))),
            **constraints,
        )
        if draw.random() < 0.2 and constraints["on_miss"] != "late" and self.candidates:
            made.refused_by = tuple(draw.sample(self.candidates, min(2, len(self.candidates))))
        return made

    def ask(self) -> tuple[Entry, Choice]:
        asked = self.asked()
        if not self.candidates:
            return asked, Parked()
        waits = lambda teams, *_: [self.wait_ms(of.group, team) for of in teams for team in of.teams]  # noqa: E731
        groups = {candidate.group for candidate in self.candidates}
        prices = Prices({group: self.target.ranking.price_range(group) for group in groups})
        return asked, Selector(SLACK, prices).choose(asked, self.target, NOW_MS, waits)


class Oracle:
    """Everything about one query that the table of ``on_miss`` asks for, by looking at each candidate."""

    def __init__(self, life: Life, asked: Entry) -> None:
        self.life, self.asked, query = life, asked, asked.query
        everybody = life.candidates
        self.floor = query.accuracy_min
        if self.floor is None:
            self.floor = max(c.accuracy_low for c in everybody) - SLACK
        deadline_ms = asked.latency_deadline_ms or INF
        self.latency_ms = deadline_ms - asked.source.arrival_ms
        self.slack_ms = deadline_ms - max(NOW_MS, asked.source.arrival_ms)
        self.affordable = [c for c in everybody if query.cost_max is None or c.cost_per_1000_usual <= query.cost_max]
        self.accurate = [c for c in self.affordable if c.accuracy_low >= self.floor]
        self.feasible = [c for c in self.accurate if self.lat_ms(c) <= self.latency_ms]
        self.fast = [c for c in self.affordable if self.lat_ms(c) <= self.latency_ms]

    def lat_ms(self, candidate: Candidate) -> float:
        return candidate.lat_ms(self.asked.rows)

    def wait_ms(self, candidate: Candidate) -> float:
        return self.life.wait_ms(candidate.group, candidate.team)

    def loaded(self, candidates: list[Candidate]) -> list[Candidate]:
        return [c for c in candidates if c.workers and c not in self.asked.refused_by]

    def in_time(self, candidates: list[Candidate]) -> list[Candidate]:
        return [c for c in self.loaded(candidates) if self.lat_ms(c) <= self.slack_ms - self.wait_ms(c)]

    def rank(self, candidate: Candidate, prefer: str, *, idle: bool = False) -> tuple[float, float]:
        cost, accuracy = candidate.cost_per_1000_usual, candidate.accuracy_low
        wait_ms = 0.0 if idle else self.wait_ms(candidate)
        by_latency = wait_ms + self.lat_ms(candidate), cost
        return {"cost": (cost, -accuracy), "accuracy": (-accuracy, cost), "latency": by_latency}[prefer]

    def assert_best(self, choice: Choice, of: list[Candidate], prefer: str, missed: tuple[str, ...] = ()) -> None:
        assert isinstance(choice, Chosen), choice
        assert choice.candidate in of
        assert self.rank(choice.candidate, prefer) == min(self.rank(c, prefer) for c in of)
        assert choice.missed == missed

    def check(self, choice: Choice) -> None:
        """The table of ``on_miss``."""
        prefer, on_miss = self.asked.query.prefer, self.asked.query.on_miss
        if self.pays(choice) or self.degrades(choice):
            pass
        elif not self.is_scarce and (ready := self.in_time(self.feasible)):
            self.assert_best(choice, ready, prefer)
        elif on_miss == "late" and self.accurate:
            if waiting := self.loaded(self.accurate):
                self.assert_best(choice, waiting, "latency" if self.feasible else prefer)
            else:
                assert isinstance(choice, Parked)
        elif on_miss == "degrade" and self.fast:
            assert not self.in_time(self.fast)
            if any(c.workers for c in self.fast):
                assert isinstance(choice, Refused)
                assert choice.status == "DEADLINE_EXCEEDED"
            else:
                assert isinstance(choice, Parked)
        elif self.feasible:
            self.check_overload(choice)
        else:
            assert isinstance(choice, Refused)
            assert choice.status == "FAILED_PRECONDITION"
            self.check_nearest(choice.message)
        self.check_wanted(choice)

    def degrades(self, choice: Choice) -> bool:
        """Whether it goes below the floor, since nothing above it is in time."""
        ready = self.in_time(self.fast)
        if self.asked.query.on_miss != "degrade" or not ready or self.in_time(self.feasible):
            return False
        self.assert_best(choice, ready, "accuracy", ("accuracy",))
        return True

    @property
    def is_scarce(self) -> bool:
        """Whether device time has a price, and this query goes by it."""
        if self.asked.query.prefer == "latency" or not 0 < self.slack_ms < INF:
            return False
        return any(self.worth(c) > 0 for c in self.life.candidates if c.workers)

    def pays(self, choice: Choice) -> bool:
        """Whether it is answered by what is worth its device time."""
        degrades = self.asked.query.on_miss == "degrade"
        if not self.is_scarce:
            return False
        if self.asked.query.prefer == "cost" and (thrifty := self.thrifty()):
            assert isinstance(choice, Chosen), choice
            assert (choice.candidate, choice.missed) in [(c, ()) for c in thrifty]
            return True
        ready = self.in_time(self.fast if degrades else self.feasible)
        left = {c: c.accuracy_low - self.worth(c) for c in ready}
        if not left:
            return False
        assert isinstance(choice, Chosen), choice
        assert choice.candidate in ready
        assert left[choice.candidate] == max(left.values())
        assert choice.missed == (("accuracy",) if choice.candidate.accuracy_low < self.floor else ())
        assert choice.by == "price"
        return True

    def thrifty(self) -> list[Candidate]:
        """Of each team the cheapest, if its answer is worth its time; of these who take hardly more than need be."""
        teams: dict[tuple[str, frozenset[str]], list[Candidate]] = defaultdict(list)
        for each in self.in_time(self.feasible):
            teams[each.group, each.team].append(each)
        cheapest, certain = list[Candidate](), True
        for team in teams.values():
            rank = min((*self.rank(c, "cost"), self.lat_ms(c)) for c in team)
            equal = [c for c in team if (*self.rank(c, "cost"), self.lat_ms(c)) == rank]
            cheapest += equal
            certain = certain and len({c.row_ms for c in equal}) == 1
        left_min = 0.0 if self.asked.query.on_miss == "degrade" else -INF
        worths = {c: self.worth(c) for c in cheapest if c.accuracy_low - self.worth(c) > left_min}
        if not certain:  # equals that take other times: whichever of them the view has
            return [c for c in cheapest if c in worths]
        frugal = [c for c, worth in worths.items() if worth <= min(worths.values()) + THRIFT]
        ranks = {c: (*self.rank(c, "cost"), float(f"{worths[c]:.12g}")) for c in frugal}  # two ways to multiply
        return [c for c, rank in ranks.items() if rank == min(ranks.values())]

    def worth(self, candidate: Candidate) -> float:
        """Of a row's time: exponential in the share of the slack that is waited, 0 of an idle device."""
        of = self.life.target.ranking.price_range(candidate.group)
        share = min(self.wait_ms(candidate) / self.slack_ms, 10.0)
        return of.most * expm1(of.log_ratio * share) / expm1(of.log_ratio) * candidate.row_ms

    def check_overload(self, choice: Choice) -> None:
        late = [self.wait_ms(c) + self.lat_ms(c) - self.slack_ms for c in self.loaded(self.feasible)]
        late += [self.lat_ms(c) for c in self.asked.refused_by if isinstance(c, Candidate) and c.workers]
        if not late or self.slack_ms == INF:
            assert isinstance(choice, Parked)
        else:
            assert isinstance(choice, Refused)
            assert (choice.status, choice.retry_after_ms) == ("RESOURCE_EXHAUSTED", min(late))

    def check_nearest(self, message: str) -> None:
        """The nearest that is feasible is named with its number."""
        everybody, query = self.life.candidates, self.asked.query
        accurate = everybody
        if query.on_miss != "degrade":
            accurate = [c for c in everybody if c.accuracy_low >= self.floor]
        affordable = [c for c in accurate if c in self.affordable]
        if not accurate:
            best = max(c.accuracy_low for c in everybody)
            assert f"has {best:.4f}" in message
        elif not affordable:
            assert message.endswith(f"costs {min(c.cost_per_1000_usual for c in accurate):.3g}")
        else:
            assert f"needs {min(self.lat_ms(c) for c in affordable):.3g} ms" in message

    def check_wanted(self, choice: Choice) -> None:
        """The best of what is not loaded, allowed, and better than what was chosen."""
        query, chosen = self.asked.query, choice.candidate if isinstance(choice, Chosen) else None
        prefer, pool = query.prefer, self.unloaded(self.feasible)
        gives_up = isinstance(choice, Chosen) and choice.missed != ()
        if gives_up or not self.in_time(self.feasible):
            if pool:
                chosen = None  # whatever is chosen, it gives something up
            elif query.on_miss == "late" and not self.feasible:
                pool = self.unloaded(self.accurate)
            elif query.on_miss == "degrade":
                prefer, pool = "accuracy", self.unloaded(self.fast)
        ranks = {c: self.rank(c, prefer, idle=True) for c in pool}
        if chosen is not None:
            own = self.rank(chosen, prefer, idle=True)
            ranks = {c: rank for c, rank in ranks.items() if rank < own}
        assert (choice.wanted is None) == (not ranks)
        if choice.wanted is not None:
            assert ranks[choice.wanted] == min(ranks.values())

    def unloaded(self, candidates: list[Candidate]) -> list[Candidate]:
        return [c for c in candidates if not c.workers and c not in self.asked.refused_by]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.one_of(st.integers(1, 12), st.integers(1, 500)), st.booleans())
def test_the_choice_is_the_oracles(seed: int, number: int, coarse: bool) -> None:
    assert_oracles(Life(seed, number, coarse))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 200), st.booleans(), st.integers(1, 40))
def test_it_is_however_large_the_fronts(seed: int, number: int, coarse: bool, most: int) -> None:
    """What is done for thousands that nobody dominates, done for a few."""
    with (
        patch.multiple(view, EXACT_MAX=most, BUCKETS_MAX=1 + most // 2),
        patch.multiple(ranking, EXACT_MAX=most, FRONT_MAX=most // 2, BLOCK=1 + most // 4, SCANS_MAX=1),
    ):
        assert_oracles(Life(seed, number, coarse))


def assert_oracles(life: Life) -> None:
    for _ in range(8):
        asked, choice = life.ask()
        Oracle(life, asked).check(choice)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 300), st.booleans())
def test_the_front_is_what_no_other_one_of_its_class_dominates(seed: int, number: int, coarse: bool) -> None:
    life = Life(seed, number, coarse)
    ranked = life.target.ranking
    assert ranked.fastest(1, -INF, INF) is not None
    front = {c for slots in ranked._fronts.values() for c in ranked._candidates[slots].tolist()}
    class_of = lambda c: (c.team, c.group if c.team else "")  # noqa: E731
    losses = {c: (-c.accuracy_low, c.cost_per_1000_usual, *c.lat_sampled_ms) for c in life.candidates}
    for each in life.candidates:
        rivals = [c for c in front if c is not each and class_of(c) == class_of(each)]
        dominated = any(all(map(le, losses[c], losses[each])) for c in rivals)
        assert dominated == (each not in front)

"""Workers stop for a while, one after another, and go on: nobody is told, their links stay.

Of three workers of one group each stalls in turn. What it holds should be answered by the others in time, and nearly
nothing twice.
"""

from __future__ import annotations

from simulated_facts import TOPIC, fail
from simulated_system import World
from simulated_worker import Worker

from broker.ledger import Source
from broker.stragglers import BURST
from modelless.codec import encode_query
from modelless.messages import Query, RecordId

OVER_MS = 60_000.0
EVERY_MS, STALL_MS = 2_000.0, 700.0
LATENCY_MS = 300.0
ASKED_EVERY_MS = 8.0
IN_TIME_MIN = 0.998


class Stalls(World):
    """A broker, three workers of a group that it needs half of, and no faults but the stalls."""

    def __init__(self, seed: int, hedge_share_max: float = 0.02) -> None:
        super().__init__(seed, faults=0)
        self.tells, self.labels, self.reads_ms = True, None, (1.0, 3.0)
        self.hedge_share_max = hedge_share_max
        self.victims = 0

    def run(self) -> None:
        self.workers = [Worker(self, f"worker-{index}", "cpu") for index in range(3)]
        for worker in self.workers:
            worker.window_ms = 20.0
            worker.start()
        self.start_broker("broker-0")
        self.ask()
        self.after(EVERY_MS, self.stall)
        self.after(OVER_MS, self.calm)
        self.play()
        self.check_end()
        if self.hedged > self.hedge_share_max * len(self.asked) + BURST:
            fail(f"{self.hedged} of {len(self.asked)} queries were hedged")
        if self.duplicates() > self.hedged / 2:
            fail(f"{self.duplicates()} of {self.hedged} hedged queries were answered twice")

    def stall(self) -> None:
        self.workers[self.victims % len(self.workers)].stall(STALL_MS)
        self.victims += 1
        if self.now_ms < OVER_MS - EVERY_MS:
            self.after(EVERY_MS, self.stall)

    def ask(self) -> None:
        if self.now_ms > OVER_MS:
            return
        partition = self.random.randrange(len(self.logs))
        log = self.logs[partition]
        record = RecordId(TOPIC, partition, log.end)
        query = Query(f"q{record}", self.rows(), task="t", accuracy_min=0.85, latency_ms_max=LATENCY_MS)
        self.asked[record] = query
        log.put(Source(record, None, encode_query(query), (), self.now_ms))
        self.after(self.random.expovariate(1 / ASKED_EVERY_MS), self.ask)

    def duplicates(self) -> int:
        return sum(len(outcomes) - 1 for outcomes in self.outcomes.values() if outcomes)

    def in_time(self) -> float:
        """Share of the queries that could be answered."""
        first = {record: outcomes[0] for record, outcomes in self.outcomes.items() if outcomes}
        good = [record for record, of in first.items() if of.status == "OK" and of.at_ms <= self.deadline_ms(record)]
        return len(good) / len(first)

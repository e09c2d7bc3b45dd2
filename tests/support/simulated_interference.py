"""A neighbour takes the GPU's time for a while: its batches take three times as long, and nobody is told.

Every query may be answered by ``large`` on the GPU, the fastest, or by ``small`` on the CPU, which is nearly as fast.
So what is interfered should be left for the CPU until the neighbour is gone, and then be used again.
"""

from __future__ import annotations

from collections import Counter

from simulated_facts import TOPIC, fail
from simulated_system import World
from simulated_worker import Link, Worker

from broker.ledger import Source
from modelless import frames
from modelless.codec import encode_query
from modelless.messages import Query, RecordId

BEGINS_MS, ENDS_MS, OVER_MS = 20_000.0, 60_000.0, 180_000.0
NOTICED_MS = 4_000.0
"""After it began: about 80 queries."""
RECOVERED_MS = 75_000.0
"""After it ended: what is not used is forgotten with a time constant of half a minute."""
VICTIM = "large:1/onnx-fp32@gpu"


class Interference(World):
    """Two brokers, a worker of each group, a query every 50 ms or so, and no faults but the one."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, faults=0)
        self.tells, self.labels, self.reads_ms = True, None, (10.0, 20.0)
        self.sent: Counter[tuple[str, str]] = Counter()
        """Queries by (phase, group)."""
        self.seen: dict[str, set[str]] = {"before": set(), "during": set(), "after": set()}
        """States of what is interfered, once they may be expected to be right."""

    def run(self) -> None:
        self.workers = [Worker(self, f"worker-{group}", group) for group in ("cpu", "gpu")]
        for worker in self.workers:
            worker.window_ms = 20.0
            worker.start()
        for index in range(2):
            self.start_broker(f"broker-{index}")
        self.ask()
        self.after(BEGINS_MS, lambda: self.slow(3.0))
        self.after(ENDS_MS, lambda: self.slow(1.0))
        self.after(OVER_MS, self.calm)
        self.look()
        self.play()
        self.check_end()
        self.check_choices()

    def slow(self, factor: float) -> None:
        self.workers[1].factor = factor

    def ask(self) -> None:
        if self.now_ms > OVER_MS:
            return
        partition = self.random.randrange(len(self.logs))
        log = self.logs[partition]
        record = RecordId(TOPIC, partition, log.end)
        self.asked[record] = Query(f"q{record}", self.rows(), task="t", accuracy_min=0.85, prefer="latency")
        log.put(Source(record, None, encode_query(self.asked[record]), (), self.now_ms))
        self.after(self.random.expovariate(1 / 50.0), self.ask)

    def look(self) -> None:
        """What brokers think of the victim, a while after something changed."""
        phase = self.phase()
        since_ms = {"before": 0.0, "during": BEGINS_MS + NOTICED_MS, "after": ENDS_MS + RECOVERED_MS}[phase]
        if self.now_ms >= since_ms + 1000:
            self.seen[phase] |= {broker.core.conditions.states().get(VICTIM, "inactive") for broker in self.brokers}
        others = {
            key: state
            for broker in self.brokers
            for key, state in broker.core.conditions.states().items()
            if key != VICTIM and state in ("interfered", "overloaded")
        }
        if others:
            fail(f"a false alarm at {self.now_ms:.0f}: {others}")
        if self.now_ms < OVER_MS:
            self.after(500, self.look)

    def phase(self) -> str:
        if self.now_ms < BEGINS_MS:
            return "before"
        return "during" if self.now_ms < ENDS_MS else "after"

    def check_send(self, broker: object, link: Link, batch: frames.Batch) -> None:
        phase = self.phase()
        if phase != "after" or self.now_ms > ENDS_MS + RECOVERED_MS:
            self.sent[phase, link.worker.group] += len(batch.items)
        super().check_send(broker, link, batch)  # type: ignore[arg-type]

    def check_choices(self) -> None:
        share = {
            phase: self.sent[phase, "gpu"] / max(1, self.sent[phase, "gpu"] + self.sent[phase, "cpu"])
            for phase in self.seen
        }
        if self.seen["before"] != {"active"}:
            fail(f"it was {self.seen['before']} before anything happened")
        if self.seen["during"] != {"interfered"}:
            fail(f"it was {self.seen['during']} while it was interfered")
        if self.seen["after"] != {"active"}:
            fail(f"it was {self.seen['after']} after it had recovered")
        if share["before"] < 0.8 or share["during"] > 0.3 or share["after"] < 0.8:
            fail(f"shares of what went to the gpu: {share}")

"""The real system beside its simulation: the same arrivals, the same profiles, the same fleet.

    python -m benchmarks.real_simulated [--seconds 60] [--rounds 3] [--minutes 20] [--only TEXT] [--json FILE]

Two parts, each a system of its own (`modelless up`: Kafka, one broker, workers):

* ``emulated``: two groups of two emulated devices, which wait instead of computing, and two models of one task. One
  load is mixed and in bursts, so that answers are degraded; two ask steadily for the better model, at 40 % and 80 %
  of what all devices together can do with the largest batches that are in time.
* ``digits``: the demo's models on one CPU worker (one thread).

First, some queries one by one: ``reply_ms`` is the median time from the end of a query's batch to its reply's log time,
``intake_ms`` what else of its latency is not its batch, of each of them: a median alone would say nothing of a 95th
percentile. Then each load is sent ``--rounds`` times, with the same arrivals (from the seed) each time, and played once
for each time in the simulator: policy ``ours``, the profiles as the system measured them (from the profiles topic), the
fleet of the configuration, what was loaded when the load began, how much slower than its profile each variant was by
then (:func:`slowness`: a profile is measured one batch after another, and what runs now and then, on a processor that
sleeps or does something else meanwhile, takes longer), and the way of those first queries. All real times are Kafka's:
a query's and a reply's log times, in whole ms. The first :data:`WARM_UP_S` seconds of a load are in no figure.

Real and simulated agree where the shares in time differ by at most 1 point, and the 95th percentiles of latency by at
most 20 % of the real one, or by what the real rounds differ among themselves, whichever is more. Where they do not,
the rows below tell which part of the way takes longer: ``queue`` is from log time to the start of the batch, ``run``
the batch, ``run/profile`` the same as a multiple of the profile's median for its size (`p50/p95`), ``rest`` from its
end to the reply. ``sent late`` is how late this process was in sending. It, Kafka, the broker and the workers share
the machine's cores; the simulator does not know of that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from benchmarks.system import System, running_up
from modelless.catalog import CatalogView
from modelless.codec import decode_reply, encode_query
from modelless.config import Config
from modelless.demo.family import RECIPES, prepare
from modelless.fleet import FleetView
from modelless.messages import USUAL_SLOWNESS, Query, split_variant
from modelless.registration import register, wall_clock
from modelless.store import EMULATED_HEADER
from modelless.tensors import Tensor
from modelless.topics import Topics
from simulator.arrivals import generate
from simulator.facts import GroupSpec, Placement, Portfolio, SimulatedQuery, VariantProfile
from simulator.ours import Ours
from simulator.rivals import RIVALS
from simulator.scenario import Scenario, play
from simulator.world import Policy

SEED = 7
WARM_UP_S = 10.0
LONE_QUERIES, LONE_INTERVAL_S = 150, 0.08
"""To measure the way of a query that waits for nobody."""
SETTLE_S = 4.0
"""Between loads."""
DRAIN_S = 20.0
IN_TIME_MIN = 0.99
"""At 80 % of capacity."""
SHARE_POINTS_MAX = 1.0
P95_SHARE_MAX = 0.2
MS_MIN = 1.0
"""What log times can tell apart."""
REGISTER_S_MAX = 600.0
EXPIRED, REFUSED = ("DEADLINE_EXCEEDED", "UNAVAILABLE"), ("RESOURCE_EXHAUSTED", "FAILED_PRECONDITION")


# --- what is run --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    name: str
    sections: str
    """TOML."""
    make: Callable[[Path], Sequence[Path]]
    """Writes the models' specifications."""
    inputs: tuple[Tensor, ...]
    loads: Callable[[Known, float], dict[str, list[str]]]
    """By name, what to generate in so many seconds."""
    lone: str
    """The task that single queries are for."""
    names: Sequence[str]
    """Of its loads."""

    def wanted(self, only: str) -> list[str]:
        return [name for name in self.names if only in f"{self.name}, {name}"]


@dataclass(frozen=True)
class Known:
    """What the system says of itself."""

    portfolio: Portfolio
    fleet: tuple[GroupSpec, ...]

    def capacity(self, task: str, floor: float, latency_ms: float) -> float:
        """Rows a second, if every device ran nothing but the best batches that are in time for who starts one."""
        found = 0.0
        for group in self.fleet:
            here = [p for p in self.portfolio.by_task[task] if p.group == group.name and p.accuracy >= floor]
            times = [(b, ms) for p in here for b, ms in zip(p.sizes, p.p50_ms, strict=True) if ms <= latency_ms]
            found += group.workers * max((1000 * b / ms for b, ms in times), default=0.0)
        return found


LATENCY_MS, FLOOR = 600, 0.88
EASY, STEADY = "40 % of capacity", "80 % of capacity"
EASY_SHARE, STEADY_SHARE = 0.4, 0.8


def emulated_models(folder: Path) -> list[Path]:
    """``good`` and ``quick``; a batch of b rows takes a fixed part and one for each row, on ``weak`` twice as long."""
    found = []
    for name, accuracy, fixed_ms, row_ms in (("good", 0.9, 30.0, 10.0), ("quick", 0.8, 10.0, 3.0)):
        rows = [
            f"{group},{size},{ms},{ms},300,40"
            for group, factor in (("strong", 1), ("weak", 2))
            for size in (1, 2, 4, 8)
            for ms in [factor * (fixed_ms + row_ms * size)]
        ]
        (folder / f"{name}.csv").write_text("\n".join([EMULATED_HEADER, *rows, ""]))
        specification = folder / f"{name}.toml"
        specification.write_text(
            f'name = "{name}"\ntask = "images"\nartifact = "{name}.csv"\n'
            '[inputs.x]\ndatatype = "FP32"\nshape = [-1, 2]\n[outputs.logits]\ndatatype = "FP32"\nshape = [-1, 10]\n'
            f"[evaluation]\naccuracy = {accuracy}\n"
        )
        found.append(specification)
    return found


def emulated_loads(known: Known, seconds: float) -> dict[str, list[str]]:
    capacity = known.capacity("images", FLOOR, LATENCY_MS)
    degrade = "task=images,latency_ms_max=300|800,on_miss=degrade"
    floor = f"task=images,latency_ms_max={LATENCY_MS},accuracy_min={FLOOR}"
    return {
        "mixed": [
            f"bursts:rate=110,times=4,burst_s=1,calm_s=4,seconds={seconds},{degrade}",
            f"poisson:rate=30,seconds={seconds},{floor}",
        ],
        EASY: [f"poisson:rate={EASY_SHARE * capacity:.1f},seconds={seconds},{floor}"],
        STEADY: [f"poisson:rate={STEADY_SHARE * capacity:.1f},seconds={seconds},{floor}"],
    }


def digits_models(folder: Path) -> Sequence[Path]:
    print("training the digits models", flush=True)
    recipes = tuple(recipe for recipe in RECIPES if recipe.name in ("digits-linear", "digits-cnn", "digits-deep"))
    return prepare(folder, lambda *_: None, recipes).specifications


def digits_loads(known: Known, seconds: float) -> dict[str, list[str]]:
    return {
        "digits": [
            f"bursts:rate=80,times=3,burst_s=1,calm_s=4,seconds={seconds},task=digits,latency_ms_max=60|250,"
            "on_miss=degrade",
            f"poisson:rate=40,seconds={seconds},task=digits,latency_ms_max=100,prefer=accuracy",
        ]
    }


EMULATED = """
[worker]
measure_s = 4
batch_size_max = 8
[[groups]]
name = "strong"
device = "emulated"
workers = 2
memory_mb_max = 100
price_per_hour = 1.0
[[groups]]
name = "weak"
device = "emulated"
workers = 2
memory_mb_max = 100
price_per_hour = 0.4
"""
DIGITS = """
[worker]
measure_s = 3
batch_size_max = 32
factories_allowed = ["modelless.demo.factories"]
[[groups]]
name = "cpu"
device = "cpu"
threads = 1
workers = 1
price_per_hour = 0.17
builders = ["onnx-fp32", "torch-fp32"]
"""


def _tensor(name: str, *shape: int) -> Tensor:
    return Tensor.from_numpy(name, np.random.default_rng(1).random(shape, np.float32))


PARTS = (
    Part(
        "emulated", EMULATED, emulated_models, (_tensor("x", 1, 2),), emulated_loads, "images", ("mixed", EASY, STEADY)
    ),
    Part("digits", DIGITS, digits_models, (_tensor("pixels", 1, 1, 8, 8),), digits_loads, "digits", ("digits",)),
)


# --- the real system ----------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What became of a query, real or simulated."""

    outcome: str
    arrival_ms: float
    """From the load's beginning."""
    latency_ms: float = 0.0
    queue_ms: float = 0.0
    run_ms: float = 0.0
    batch: int = 0
    """0: it was never run; nor do the others hold then."""
    variant: str = ""
    group: str = ""


@dataclass
class Sent:
    """One load's way through the real system."""

    answers: list[Answer]
    late_ms: list[float]
    """How late each query was sent."""
    load_average: float


@dataclass
class _Driver:
    """Sends queries at their times, and takes replies; one use."""

    config: Config
    inputs: tuple[Tensor, ...]
    queries: Sequence[SimulatedQuery]
    logged_ms: dict[int, float] = field(default_factory=dict)
    sent_late_ms: list[float] = field(default_factory=list)
    replies: dict[int, Message] = field(default_factory=dict)

    def run(self) -> Sent:
        topics = Topics(self.config.kafka.topic_prefix)
        quiet = {"bootstrap.servers": self.config.kafka.servers, "log_level": 0}
        consumer = Consumer(quiet | {"group.id": f"load-{time.time_ns()}", "fetch.wait.max.ms": 100})
        partition = TopicPartition(topics.replies, 0)
        consumer.assign([TopicPartition(topics.replies, 0, consumer.get_watermark_offsets(partition)[1])])
        consumer.consume(1, 1.0)
        sender = threading.Thread(target=self._send, args=(topics, quiet))
        sender.start()
        end_s = None
        while len(self.replies) < len(self.queries) and (end_s is None or time.monotonic() < end_s):
            if end_s is None and not sender.is_alive():
                end_s = time.monotonic() + DRAIN_S
            first = consumer.poll(0.1)
            for message in [] if first is None else [first, *consumer.consume(500, 0)]:
                if not message.error():
                    name = dict(message.headers() or ()).get("modelless-id", b"").decode()
                    with suppress(ValueError):
                        self.replies[int(name)] = message
        sender.join()
        consumer.close()
        missing = len(self.queries) - len(self.replies)
        if missing or len(self.logged_ms) < len(self.queries):
            raise RuntimeError(f"{missing} of {len(self.queries)} queries were never answered")
        answers = [self._answer(query) for query in self.queries]
        return Sent(answers, self.sent_late_ms, os.getloadavg()[0])

    def _send(self, topics: Topics, quiet: dict[str, Any]) -> None:
        producer = Producer(quiet | {"acks": "all", "linger.ms": 0})
        bodies: dict[tuple[object, ...], tuple[str, bytes]] = {}

        def logged(index: int) -> Callable[[object, Message], None]:
            def note(error: object, message: Message) -> None:
                if error is None:
                    self.logged_ms[index] = message.timestamp()[1]

            return note

        begin_s = time.perf_counter()
        for query in self.queries:
            key = (query.task, query.latency_ms_max, query.accuracy_min, query.on_miss, query.prefer)
            if key not in bodies:
                asked = Query(
                    "template",
                    self.inputs,
                    task=query.task,
                    latency_ms_max=query.latency_ms_max,
                    accuracy_min=query.accuracy_min,
                    on_miss=query.on_miss,
                    prefer=query.prefer,
                    reply_partition=0,
                )
                bodies[key] = topics.task_queries(query.task), encode_query(asked)
            topic, value = bodies[key]
            due_s = begin_s + query.arrival_ms / 1000
            while (wait_s := due_s - time.perf_counter()) > 0:
                producer.poll(min(wait_s, 0.02)) if wait_s > 0.003 else time.sleep(wait_s)
            self.sent_late_ms.append(1000 * (time.perf_counter() - due_s))
            headers = [("modelless-id", str(query.index).encode())]
            producer.produce(topic, value, headers=headers, on_delivery=logged(query.index))
            producer.poll(0)
        producer.flush(10)

    def _answer(self, query: SimulatedQuery) -> Answer:
        message = self.replies[query.index]
        reply = decode_reply(message.value())
        latency_ms = message.timestamp()[1] - self.logged_ms[query.index]
        if reply.status != "OK":
            if reply.status not in (*EXPIRED, *REFUSED):
                raise RuntimeError(f"{reply.status}: {reply.message}")
            return Answer("expired" if reply.status in EXPIRED else "refused", query.arrival_ms)
        assert reply.queue_ms is not None and reply.execute_ms is not None and reply.batch_size is not None
        outcome = "in_time" if latency_ms <= query.latency_ms_max else "late"
        where = reply.variant or "", reply.group or ""
        return Answer(outcome, query.arrival_ms, latency_ms, reply.queue_ms, reply.execute_ms, reply.batch_size, *where)


def drive(system: System, part: Part, queries: Sequence[SimulatedQuery]) -> Sent:
    return _Driver(system.config, part.inputs, queries).run()


def alone(system: System, part: Part) -> tuple[list[float], float, list[Answer]]:
    """``intake_ms`` of each, ``reply_ms``, and the answers that they are of."""
    queries = [
        SimulatedQuery(index, part.lone, index * LONE_INTERVAL_S * 1000, 5000.0) for index in range(2 * LONE_QUERIES)
    ]
    answers = drive(system, part, queries).answers[LONE_QUERIES:]  # Kafka's Java has hardly run before
    ways_ms = [answer.latency_ms - answer.run_ms for answer in answers]
    reply_ms = float(np.median([answer.latency_ms - answer.queue_ms - answer.run_ms for answer in answers]))
    reply_ms = min(max(0.0, reply_ms), min(ways_ms))  # what a worker takes for Kafka's time can be off by a millisecond
    return [max(0.0, way_ms - reply_ms) for way_ms in ways_ms], reply_ms, answers


async def known(config: Config) -> Known:
    """Profiles as the system measured them, the fleet as it was configured."""
    view = CatalogView(config)
    await view.start()
    await view.stop()
    profiles = [
        VariantProfile(
            model.task,
            model.key,
            profile.variant,
            profile.group,
            profile.accuracy_low or 0.0,  # what is chosen by
            profile.load_ms,
            profile.memory_bytes / 2**20,
            tuple(batch.batch_size for batch in profile.batches),
            tuple(batch.p50_ms for batch in profile.batches),
            tuple(max(batch.p50_ms, batch.p99_ms) for batch in profile.batches),
        )
        for model in view.catalog.models()
        for profile in view.catalog.profiles(model)
        if profile.is_usable
    ]
    fleet = [GroupSpec(g.name, g.workers, float(g.memory_mb_max), g.price_per_hour) for g in config.groups]
    return Known(Portfolio(tuple(profiles)), tuple(fleet))


async def loaded(config: Config) -> Placement:
    """What each worker has."""
    return {member.name: member.variants for member in (await _fleet(config)).workers()}


async def slowness(config: Config, facts: Known) -> dict[tuple[str, str], float]:
    """By (variant, group), times its profile that it took of late, by what the brokers have learned.

    What has not run is taken to be as slow as what has on its group, as they take it to be.
    """
    catalog = CatalogView(config)
    await catalog.start()
    await catalog.stop()
    brokers = (await _fleet(config)).brokers()
    usual = {name: value for broker in brokers for name, value in broker.statistics.items()}
    found = {profile.key: usual.get(f"{USUAL_SLOWNESS}{profile.group}", 1.0) for profile in facts.portfolio.profiles}
    return found | {(each.variant, each.group): each.p50_scale for each in catalog.catalog.conditions()}


async def _fleet(config: Config) -> FleetView:
    """As it was announced lately."""
    view = FleetView(config, wall_clock())
    await view.start()
    await asyncio.sleep(1.5)
    await view.stop()
    return view


# --- the simulator ------------------------------------------------------------------------------------------------


def simulate(scenario: Scenario, policy: Policy, placement: Placement) -> list[Answer]:
    played = play(scenario, policy, placement=placement)
    return [
        Answer(
            query.outcome or "",
            query.arrival_ms,
            query.end_ms - query.arrival_ms + scenario.reply_ms,
            query.start_ms - query.arrival_ms,
            query.end_ms - query.start_ms,
            query.batch,
            query.variant,
            query.worker.rpartition("-")[0],
        )
        if query.batch
        else Answer(query.outcome or "", query.arrival_ms)
        for query in played.queries
    ]


# --- figures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """Shares of all queries; ms of what was answered."""

    queries: int
    in_time: float
    late: float
    refused: float
    expired: float
    p50_ms: float
    p95_ms: float
    queue_ms: tuple[float, float]
    """p50, p95; likewise what follows."""
    run_ms: tuple[float, float]
    rest_ms: tuple[float, float]
    slowness: tuple[float, float]
    """Times of batches by the profile's median for their size."""
    batch: float
    """Mean rows of a query's batch."""
    variants: dict[str, float]
    """Share of the answers."""


def figures(answers: Sequence[Answer], portfolio: Portfolio) -> Figures:
    counted = [answer for answer in answers if answer.arrival_ms >= WARM_UP_S * 1000]
    outcomes = Counter(answer.outcome for answer in counted)
    ran = [answer for answer in counted if answer.batch]

    def quantiles(values: Sequence[float]) -> tuple[float, float]:
        p50, p95 = np.quantile(values, (0.5, 0.95)) if values else (0.0, 0.0)
        return float(p50), float(p95)

    def profiled_ms(answer: Answer) -> float:
        profile = portfolio.by_key[answer.variant, answer.group]
        return profile.lat_ms(min(answer.batch, profile.rows_max))

    total = max(1, len(counted))
    in_time, late, refused, expired = (outcomes[name] / total for name in ("in_time", "late", "refused", "expired"))
    p50_ms, p95_ms = quantiles([answer.latency_ms for answer in ran])
    variants = Counter(f"{split_variant(answer.variant)[0]}@{answer.group}" for answer in ran)
    return Figures(
        queries=len(counted),
        in_time=in_time,
        late=late,
        refused=refused,
        expired=expired,
        p50_ms=p50_ms,
        p95_ms=p95_ms,
        queue_ms=quantiles([answer.queue_ms for answer in ran]),
        run_ms=quantiles([answer.run_ms for answer in ran]),
        rest_ms=quantiles([answer.latency_ms - answer.queue_ms - answer.run_ms for answer in ran]),
        slowness=quantiles([answer.run_ms / profiled_ms(answer) for answer in ran]),
        batch=float(np.mean([answer.batch for answer in ran])) if ran else 0.0,
        variants={name: number / len(ran) for name, number in sorted(variants.items())},
    )


@dataclass
class Compared:
    """One load."""

    part: str
    load: str
    generated: list[str]
    intake_ms: list[float]
    reply_ms: float
    real: list[Figures] = field(default_factory=list)
    simulated: list[Figures] = field(default_factory=list)
    load_average: list[float] = field(default_factory=list)
    sent_late_ms: list[tuple[float, float]] = field(default_factory=list)
    best_tuned: Figures | None = None
    """At 80 % of capacity: fixed size and time, the best for these arrivals, simulated."""

    @property
    def share_points(self) -> float:
        """Simulated minus real."""
        return 100 * (_mean(self.simulated, "in_time") - _mean(self.real, "in_time"))

    @property
    def p95_share(self) -> float:
        return _mean(self.simulated, "p95_ms") / max(_mean(self.real, "p95_ms"), MS_MIN) - 1

    @property
    def p95_allowed(self) -> float:
        """The larger of a share and what the real rounds differ by, as a share."""
        values = [each.p95_ms for each in self.real]
        return max(P95_SHARE_MAX, (max(values) - min(values)) / max(_mean(self.real, "p95_ms"), MS_MIN))

    @property
    def agrees(self) -> bool:
        return abs(self.share_points) <= SHARE_POINTS_MAX and abs(self.p95_share) <= self.p95_allowed

    def plain(self) -> dict[str, Any]:
        found = asdict(self)
        for name in ("share_points", "p95_share", "p95_allowed", "agrees"):
            found[name] = getattr(self, name)
        return found


def _mean(figures_of: Sequence[Figures], name: str) -> float:
    return float(np.mean([getattr(each, name) for each in figures_of]))


# --- a part -------------------------------------------------------------------------------------------------------


def run_part(part: Part, seconds: float, rounds: int, until_s: float, only: str) -> list[Compared]:
    found: list[Compared] = []
    with running_up(part.sections) as system, tempfile.TemporaryDirectory(prefix="modelless-") as folder:
        for specification in part.make(Path(folder)):
            asyncio.run(register(system.config, specification, wait_all=True, timeout_s=REGISTER_S_MAX))
        facts = asyncio.run(known(system.config))
        _tell_profiles(facts)
        intake_ms, reply_ms, lone = alone(system, part)
        slow = figures([answer._replace(arrival_ms=WARM_UP_S * 1000) for answer in lone], facts.portfolio).slowness
        print(
            f"alone: intake {np.median(intake_ms):.1f} ms (p95 {np.quantile(intake_ms, 0.95):.1f}), "
            f"reply {reply_ms:.1f} ms, batches {slow[0]:.2f} times their profile (p95 {slow[1]:.2f})",
            flush=True,
        )
        loads = part.loads(facts, WARM_UP_S + seconds)
        for name in part.wanted(only):
            compared = Compared(part.name, name, loads[name], intake_ms, reply_ms)
            for number in range(rounds):
                if number and time.monotonic() + seconds + WARM_UP_S > until_s:
                    print(f"{name}: no time for more than {number} rounds", flush=True)
                    break
                _round(compared, number, system, part, facts)
            found.append(compared)
            _tell(compared)
    return found


def _round(compared: Compared, number: int, system: System, part: Part, facts: Known) -> None:
    time.sleep(SETTLE_S)
    queries = generate(compared.generated, SEED)
    placement, truth = asyncio.run(loaded(system.config)), asyncio.run(slowness(system.config, facts))
    sent = drive(system, part, queries)
    compared.real.append(figures(sent.answers, facts.portfolio))
    compared.load_average.append(sent.load_average)
    compared.sent_late_ms.append(tuple(np.quantile(sent.late_ms, (0.5, 0.99)).tolist()))
    scenario = Scenario(
        facts.fleet,
        facts.portfolio,
        queries,
        number,
        truth=truth,
        intake_ms=compared.intake_ms,
        reply_ms=compared.reply_ms,
    )
    compared.simulated.append(figures(simulate(scenario, Ours(), placement), facts.portfolio))
    if compared.load == STEADY and compared.best_tuned is None:
        compared.best_tuned = figures(simulate(scenario, RIVALS["best-tuned"](), placement), facts.portfolio)
    _tell_round(compared, number)


# --- words --------------------------------------------------------------------------------------------------------


def _tell_profiles(facts: Known) -> None:
    for profile in facts.portfolio.profiles:
        times = "  ".join(
            f"{b}: {p50:.1f}/{p99:.1f}"
            for b, p50, p99 in zip(profile.sizes, profile.p50_ms, profile.p99_ms, strict=True)
        )
        print(f"{profile.variant}@{profile.group}  accuracy >= {profile.accuracy:.3f}  ms by rows (p50/p99) {times}")


def _tell_round(compared: Compared, number: int) -> None:
    late = compared.sent_late_ms[-1]
    print(
        f"{compared.part}, {compared.load}, round {number + 1}: load average {compared.load_average[-1]:.1f}, "
        f"sent late {late[0]:.1f} ms (p99 {late[1]:.1f})"
    )
    _row("real", compared.real[-1])
    _row("simulated", compared.simulated[-1])


def _row(name: str, of: Figures) -> None:
    def pair(values: tuple[float, float], form: str = ".1f") -> str:
        return "/".join(format(value, form) for value in values)

    variants = " ".join(f"{variant} {share:.0%}" for variant, share in of.variants.items())
    print(
        f"  {name:<10} in time {of.in_time:7.2%}  late {of.late:.2%}  refused {of.refused:.2%}"
        f"  expired {of.expired:.2%}"
        f"  p50/p95 {of.p50_ms:.1f}/{of.p95_ms:.1f}  queue {pair(of.queue_ms)}  run {pair(of.run_ms)}"
        f"  run/profile {pair(of.slowness, '.2f')}  rest {pair(of.rest_ms)}  batch {of.batch:.1f}  {variants}",
        flush=True,
    )


def _tell(compared: Compared) -> None:
    if compared.best_tuned is not None:
        _row("best-tuned", compared.best_tuned)


def _table(found: Sequence[Compared]) -> None:
    print(
        f"\n{'load':<28}{'in time':>18} {'points':>7}   {'p95 ms':>16} {'apart':>7} {'allowed':>8}   agrees\n"
        f"{'':<28}{'real simulated':>18} {'':>7}   {'real simulated':>16}"
    )
    for each in found:
        name = f"{each.part}, {each.load}"
        print(
            f"{name:<28}{_mean(each.real, 'in_time'):>8.2%} {_mean(each.simulated, 'in_time'):>9.2%}"
            f" {each.share_points:>+7.2f}   {_mean(each.real, 'p95_ms'):>6.1f} {_mean(each.simulated, 'p95_ms'):>9.1f}"
            f" {each.p95_share:>+7.0%} {each.p95_allowed:>8.0%}   {'yes' if each.agrees else 'NO'}"
        )
        if each.best_tuned is not None:
            real = _mean(each.real, "in_time")
            print(
                f"  at least {IN_TIME_MIN:.0%} in time: {'yes' if real >= IN_TIME_MIN else 'NO'}; the best fixed size "
                f"and time, simulated: {each.best_tuned.in_time:.2%}, p95 {each.best_tuned.p95_ms:.1f} ms"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="of each round, after the warm-up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=20, help="in all; then one round of each load has to do")
    parser.add_argument("--only", default="", help="only loads whose `part, load` contains this")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/real_simulated.json"))
    arguments = parser.parse_args()
    until_s = time.monotonic() + 60 * arguments.minutes
    parts = [part for part in PARTS if part.wanted(arguments.only)]
    if not parts:
        everything = "; ".join(f"{part.name}, {name}" for part in PARTS for name in part.names)
        parser.error(f"--only: no load contains {arguments.only!r}; there are: {everything}")
    found: list[Compared] = []
    for part in parts:
        found += run_part(part, arguments.seconds, arguments.rounds, until_s, arguments.only)
    _table(found)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"platform": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}
    result = {"machine": machine, "seconds": arguments.seconds, "seed": SEED, "loads": [each.plain() for each in found]}
    arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

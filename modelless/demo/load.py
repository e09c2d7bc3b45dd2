"""Sends a scenario's queries through the client at their times, and writes down what became of each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from modelless.client import Ask, Client
from modelless.client_core import Result
from modelless.demo.family import TASK, Images
from modelless.demo.report import OK, Answer
from modelless.demo.scenario import Arrival, Policy, QueryClass, Scenario
from modelless.errors import ModellessError

WARM_UP_QUERIES = 20
"""Of each kind, before anything is counted in figures; they count in the verification."""


@dataclass(frozen=True, slots=True)
class Driven:
    answers: tuple[Answer, ...]
    lag_ms_max: float
    """How late this process was in sending a query, at worst: what is large casts doubt on the latencies."""


class Load:
    """One client's queries; ``submitted`` counts all of them."""

    def __init__(self, client: Client, images: Images) -> None:
        self._client = client
        self._images = images
        self.submitted = 0

    async def warm_up(self, asks: Sequence[Ask]) -> None:
        futures = [self._submit(i, ask) for ask in asks for i in range(WARM_UP_QUERIES)]
        await asyncio.wait(futures)
        for future in futures:
            future.exception()

    async def drive(
        self,
        scenario: Scenario,
        policy: Policy,
        arrivals: Sequence[Arrival],
        progress: Callable[[], None],
        from_s: float = 0.0,
    ) -> Driven:
        """Returns when every query has its outcome; the client's own time limits bound that.

        Args:
            arrivals: of the part of the load that begins at ``from_s``.
            progress: told of each query that was sent.
        """
        answers: list[Answer] = []
        outstanding: set[asyncio.Future[Result]] = set()
        begin_s = perf_counter() - from_s
        lag_s_max = 0.0
        for arrival in arrivals:
            ahead_s = begin_s + arrival.at_s - perf_counter()
            await asyncio.sleep(max(0.0, ahead_s))
            lag_s_max = max(lag_s_max, perf_counter() - begin_s - arrival.at_s)
            future = self._submit(arrival.image, ask_of(scenario.kind(arrival.kind), policy))
            outstanding.add(future)
            future.add_done_callback(self._writer(scenario, policy, arrival, answers, outstanding, begin_s))
            progress()
        while outstanding:
            await asyncio.wait(outstanding)
        return Driven(tuple(answers), lag_s_max * 1000)

    def _submit(self, image: int, ask: Ask) -> asyncio.Future[Result]:
        self.submitted += 1
        return self._client.submit({"pixels": self._images.pixels[image : image + 1]}, **ask)

    def _writer(
        self,
        scenario: Scenario,
        policy: Policy,
        arrival: Arrival,
        answers: list[Answer],
        outstanding: set[asyncio.Future[Result]],
        begin_s: float,
    ) -> Callable[[asyncio.Future[Result]], None]:
        sent_s = perf_counter()

        def write_down(future: asyncio.Future[Result]) -> None:
            outstanding.discard(future)
            answers.append(
                _answer(
                    future,
                    scenario,
                    policy=policy.name,
                    kind=arrival.kind,
                    at_s=sent_s - begin_s,
                    latency_ms=(perf_counter() - sent_s) * 1000,
                    label=int(self._images.labels[arrival.image]),
                )
            )

        return write_down


def ask_of(kind: QueryClass, policy: Policy) -> Ask:
    """A fixed choice keeps the deadline and what to do about it; the accuracy is its own, whatever was asked."""
    ask: Ask = {"latency_ms_max": kind.latency_ms_max, "on_miss": kind.on_miss}
    if policy.pins is not None:
        return ask | {"variant": policy.pins[kind.name]}
    return ask | {"task": TASK, "accuracy_min": kind.accuracy_min, "prefer": kind.prefer}


def _answer(
    future: asyncio.Future[Result],
    scenario: Scenario,
    *,
    policy: str,
    kind: str,
    at_s: float,
    latency_ms: float,
    label: int,
) -> Answer:
    error = future.exception()
    if error is not None:
        return Answer(policy, kind, at_s, latency_ms, status_of(error), label)
    result = future.result()
    return Answer(
        policy,
        kind,
        at_s,
        latency_ms,
        OK,
        label,
        predicted=int(result.output.argmax()),
        variant=result.variant,
        accuracy=scenario.accuracy(result.variant),
        batch_size=result.batch_size,
        cost=result.cost,
        missed=result.missed,
    )


def status_of(error: BaseException) -> str:
    """The reply's status; that of a bug in this process is raised, not counted."""
    if not isinstance(error, ModellessError):
        raise error
    return error.code

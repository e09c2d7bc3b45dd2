"""Requests to a leader, on a client whose answers are scripted: Kafka's own are in tests/kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, LeaderNotAvailableError, NotLeaderForPartitionError

from modelless.config import Config
from workers.produce import Requests

A, B = TopicPartition("replies", 0), TopicPartition("replies", 1)
Written = dict[TopicPartition, bytes]


class Leader:
    """Answers once ``answers`` is set, with an error code by partition; None: says nothing of that one."""

    def __init__(self, answer: Callable[[Written], dict[TopicPartition, int | None]], leader: int | None = 7) -> None:
        self.answer, self.asked, self.looks = answer, list[Written](), 0
        self.answers = asyncio.Event()
        self.cluster = SimpleNamespace(leader_for_partition=lambda _: leader)

    def force_metadata_update(self) -> None:
        self.looks += 1

    async def send(self, leader: int, request: Any) -> Any:
        assert leader == 7
        written = {TopicPartition(topic, part): data for topic, parts in request._topics for part, data in parts}
        self.asked.append(written)
        await self.answers.wait()
        codes = {key: code for key, code in self.answer(written).items() if code is not None}
        return SimpleNamespace(topics=[(key.topic, [(key.partition, code, 0)]) for key, code in codes.items()])


def to(leader: Leader) -> Requests:
    requests = Requests(Config())
    requests.client = leader  # type: ignore[assignment]
    return requests


def well(written: Written) -> dict[TopicPartition, int | None]:
    return dict.fromkeys(written, 0)


async def outcomes(*written: asyncio.Future[None]) -> list[Any]:
    async with asyncio.timeout(1):
        return [type(each) for each in await asyncio.gather(*written, return_exceptions=True)]


async def test_what_gathers_while_a_request_is_on_its_way_goes_with_the_next_one_batch_of_each_partition() -> None:
    leader = Leader(well)
    requests = to(leader)
    first = requests.send(A, b"1")
    await asyncio.sleep(0)
    rest = [requests.send(A, b"2"), requests.send(B, b"3"), requests.send(A, b"4")]
    await asyncio.sleep(0)
    assert leader.asked == [{A: b"1"}]
    leader.answers.set()
    assert await outcomes(first, *rest) == [type(None)] * 4
    assert leader.asked == [{A: b"1"}, {A: b"2", B: b"3"}, {A: b"4"}]


@pytest.mark.parametrize(("code", "error"), [(6, NotLeaderForPartitionError), (None, KafkaError)])
async def test_a_partition_that_fails_fails_alone_and_its_leader_is_looked_up(
    code: int | None, error: type[KafkaError]
) -> None:
    leader = Leader(lambda _: {A: 0, B: code})
    requests = to(leader)
    leader.answers.set()
    good, bad = await outcomes(requests.send(A, b"1"), requests.send(B, b"2"))
    assert good is type(None)
    assert issubclass(bad, error)
    assert leader.looks == 1


async def test_whatever_a_request_ends_with_nobody_waits_for_ever() -> None:
    def broken(written: Written) -> dict[TopicPartition, int | None]:
        raise ValueError(written)

    leader = Leader(broken)
    requests = to(leader)
    leader.answers.set()
    assert await outcomes(requests.send(A, b"1"), requests.send(B, b"2")) == [KafkaError, KafkaError]
    leader.answer = well
    assert await outcomes(requests.send(A, b"1")) == [type(None)], "and the next one is asked"


async def test_without_a_leader_it_is_looked_up() -> None:
    leader = Leader(well, leader=None)
    assert await outcomes(to(leader).send(A, b"1")) == [LeaderNotAvailableError]
    assert (leader.asked, leader.looks) == ([], 1)

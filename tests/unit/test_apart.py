"""Executors apart, with real children: used again, ended when something went wrong or nobody wants them."""

from __future__ import annotations

import asyncio
import os

import pytest

from workers import apart
from workers.apart import Apart
from workers.executor import ChildExecutor, ExecutionError, Executor


class Spawner:
    def __init__(self) -> None:
        self.spawned: list[ChildExecutor] = []

    async def __call__(self) -> Executor:
        self.spawned.append(await ChildExecutor.spawn("cpu", 1, lambda _: None))
        return self.spawned[-1]

    @property
    def alive(self) -> list[bool]:
        return [executor.alive for executor in self.spawned]


async def test_lent_again_until_something_goes_wrong_in_it() -> None:
    spawner = Spawner()
    ours = Apart(spawner)
    async with ours.lent() as first:
        await first.prepare(["onnx-fp32"])
    async with ours.lent() as again:
        assert again is first
    with pytest.raises(ExecutionError, match="not installed"):
        async with ours.lent() as executor:
            await executor.prepare(["nobody-has-it"])
    assert spawner.alive == [False]
    async with ours.lent() as fresh:
        assert fresh is not first
        fresh.kill()
    await asyncio.sleep(0.5)
    async with ours.lent():
        pass
    assert spawner.alive == [False, False, True]
    await ours.close()
    assert spawner.alive == [False, False, False]


async def test_ended_when_nobody_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "IDLE_S", 0.3)
    spawner = Spawner()
    ours = Apart(spawner)
    for _ in range(3):
        async with ours.lent():
            await asyncio.sleep(0.4)
        await asyncio.sleep(0.1)
    assert spawner.alive == [True]
    async with asyncio.timeout(10):
        while spawner.alive == [True]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await ours.close()


async def test_what_is_foreseen_is_there_when_it_is_needed() -> None:
    spawner = Spawner()
    ours = Apart(spawner)
    ours.foresee("onnx-fp32")
    ours.foresee("onnx-fp32")
    async with ours.lent():
        ours.foresee("onnx-fp32")
    ours.foresee("onnx-fp32")
    assert len(spawner.spawned) == 1
    await ours.close()
    ours.foresee("nobody-has-it")
    async with ours.lent() as executor:
        assert executor.alive
    await ours.close()
    ours.foresee("onnx-fp32")
    async with asyncio.timeout(10):
        while len(spawner.spawned) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await ours.close()
    assert spawner.alive == [False] * 3, "also while it still imports"


async def test_a_compiler_is_nicer_than_what_serves() -> None:
    spawner = Spawner()
    ours = Apart(spawner, niceness=7)
    async with ours.lent():
        niceness = os.getpriority(os.PRIO_PROCESS, spawner.spawned[0].pid)
        assert niceness == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 7)
    await ours.close()

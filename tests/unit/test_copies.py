"""Copies go where one more helps most."""

from __future__ import annotations

from collections import Counter

from broker.copies import Offer, spread
from broker.worth import Item
from modelless.frontier import Point
from modelless.messages import Demanded, Evaluation, ModelVersion
from modelless.tensors import TensorSpec

SPEC = (TensorSpec("x", "FP32", (-1, 1)),)


def item(name: str, ms: float, memory: int = 1, accuracy: float = 0.9, task: str = "", group: str = "g") -> Item:
    model = ModelVersion(name, 1, task or name, "onnx", "", "", 1, SPEC, SPEC, Evaluation(accuracy=accuracy), name)
    return Item(f"{name}:1/b", f"{name}:1/b@{group}", model, memory, Point(accuracy, ms, ms))


def asks(task: str, latency_ms: float | None, rate: float, floor: float = 0.0) -> Demanded:
    return Demanded(task, latency_ms, floor, "cost", False, rate)


def copies(
    items: list[Item], demand: list[Demanded], room: int, have: dict[str, tuple[int, int]] | None = None
) -> Counter[str]:
    """By key, of a memory that has room for so much."""
    left, found = room, Counter[str]()

    def put(of: Item) -> bool:
        nonlocal left
        if of.memory_bytes > left:
            return False
        left -= of.memory_bytes
        found[of.key] += 1
        return True

    spread([Offer(each, *(have or {}).get(each.key, (0, 0))) for each in items], demand, put)
    return found


def test_who_is_in_a_hurry_has_more_copies_than_who_can_wait() -> None:
    found = copies(
        [item("hurry", 100.0), item("calm", 100.0)], [asks("hurry", 150.0, 1.0), asks("calm", 3000.0, 8.0)], 6
    )
    assert found["hurry:1/b@g"] > found["calm:1/b@g"] >= 1


def test_what_can_wait_for_ever_has_one() -> None:
    assert copies([item("a", 100.0)], [asks("a", None, 100.0)], 9) == {"a:1/b@g": 1}


def test_what_does_not_do_is_not_loaded() -> None:
    slow, poor, other = item("slow", 500.0, task="t"), item("poor", 10.0, task="t", accuracy=0.5), item("other", 1.0)
    assert copies([slow, poor, other], [asks("t", 200.0, 5.0, 0.8)], 9) == {}


def test_a_group_that_does_it_well_leaves_the_other_its_memory() -> None:
    fast, slow, else_ = item("t", 5.0), item("t", 90.0, group="h"), item("u", 90.0, group="h")
    demand = [asks("t", 100.0, 4.0), asks("u", 100.0, 1.0)]
    assert copies([fast, slow, else_], demand, 2)["u:1/b@h"] == 1
    found = copies([slow, else_], demand, 2, {})
    assert found["t:1/b@h"] >= 1


def test_what_the_demand_has_already_counts() -> None:
    of, else_ = item("a", 100.0), item("b", 100.0)
    demand = [asks("a", 150.0, 1.0), asks("b", 150.0, 1.0)]
    assert copies([of, else_], demand, 3, {of.key: (3, 3)}) == {else_.key: 3}


def test_small_changes_move_nothing() -> None:
    a, b = item("a", 100.0), item("b", 100.0)
    loaded = {a.key: (0, 3), b.key: (0, 1)}
    for rate in (1.0, 1.3, 2.1):
        demand = [asks("a", 150.0, 2.0), asks("b", 150.0, rate)]
        assert copies([a, b], demand, 4, loaded) == {a.key: 3, b.key: 1}
    assert copies([a, b], [asks("a", 150.0, 1.0), asks("b", 150.0, 64.0)], 4, loaded)[b.key] > 1


def test_memory_is_what_it_costs() -> None:
    small, large = item("s", 100.0), item("l", 100.0, memory=4)
    found = copies([small, large], [asks("s", 150.0, 1.0), asks("l", 150.0, 1.0)], 4)
    assert found == {"s:1/b@g": 4}

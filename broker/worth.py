"""Which variants of a group are worth memory, the most valuable first. Pure.

Value comes from, in this order:

1. **used**: it ran lately;
2. **wanted**: a broker has queries that it would serve better than what is loaded;
3. the first choice of a task, then of each model: what a query would get that asks for nothing special;
4. the rest of each task's **frontier** on the group: what some constraints or other would make the choice;
5. the rest of each model's own frontier, for queries that name the model.

What is beaten by another variant of its model in accuracy, latency and cost at once, or is of a version that does not
answer any more, is worth nothing unless it is used or wanted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from enum import IntEnum
from typing import NamedTuple

from modelless.accuracy import accuracy_of
from modelless.frontier import Point, frontier
from modelless.labels import shadow_of
from modelless.messages import Correction, Labels, ModelVersion, Profile
from modelless.variants import best_batch


class Worth(IntEnum):
    """The most valuable first; see the module."""

    USED = 1
    WANTED = 2
    FIRST_OF_TASK = 3
    FIRST_OF_MODEL = 4
    FRONTIER_OF_TASK = 5
    FRONTIER_OF_MODEL = 6
    NOTHING = 7


class Item(NamedTuple):
    """A variant that a group could load."""

    variant: str
    key: str
    """``variant@group``."""
    model: ModelVersion
    memory_bytes: int
    point: Point


class Valued(NamedTuple):
    worth: Worth
    rank: float
    """Within its worth, the least first."""
    item: Item


def item(profile: Profile, model: ModelVersion, correction: Correction | None) -> Item:
    """What a profile that is usable says, and labels of answered queries where there are any."""
    best = best_batch(profile)
    assert best is not None
    point = Point(accuracy_of(model, profile, correction).interval.low, profile.batches[0].p50_ms, best.cost)
    return Item(profile.variant, profile.key, model, profile.memory_bytes, point)


def answering(
    models: Iterable[ModelVersion], ready: Set[str], labels: Mapping[str, Labels], served: Mapping[str, str]
) -> tuple[set[str], set[str]]:
    """(versions that answer for their task, versions that are needed besides), each as ``name:version``.

    Needed besides are those that are to answer next (which they do once they are loaded), canaries and shadows, and the
    newest, which was registered to be asked for, if only by its number.

    Args:
        ready: versions with a variant that is measured and ready somewhere.
        labels: by the model's name.
        served: likewise, the version that answers now.
    """
    versions: dict[str, list[ModelVersion]] = defaultdict(list)
    for model in models:
        versions[model.name].append(model)
    default, besides = set(), set()
    for name, own in versions.items():
        own.sort(key=lambda model: -model.version)
        says = labels.get(name, Labels(name))
        stable = f"{name}:{says.stable}"
        newest = next((model.key for model in own if model.key in ready), own[0].key)
        next_one = stable if stable in ready else newest
        now = served.get(name, next_one)
        default.add(now if now in ready else next_one)
        besides |= {next_one, newest}
        if says.canary is not None:
            besides.add(f"{name}:{says.canary}")
        shadow = shadow_of(says)
        if shadow is not None:
            besides.add(shadow[0])
    return default, besides - default


def standings(
    items: Sequence[Item], default: Set[str], besides: Set[str], accuracy_slack: float
) -> dict[str, tuple[Worth, float]]:
    """(worth, rank) by ``variant@group`` of the items of one group that are worth something, used and wanted or not.

    Args:
        default, besides: as of :func:`answering`.
        accuracy_slack: how much less accurate than the best a query may be answered that asks for nothing special.
    """
    of_task: dict[str, list[Item]] = defaultdict(list)
    of_model: dict[str, list[Item]] = defaultdict(list)
    for each in items:
        if each.model.key in default:
            of_task[each.model.task].append(each)
        if each.model.key in default or each.model.key in besides:
            of_model[each.model.key].append(each)
    best: dict[str, tuple[Worth, float]] = {}
    for first, rest, kinds in (
        (Worth.FIRST_OF_TASK, Worth.FRONTIER_OF_TASK, of_task),
        (Worth.FIRST_OF_MODEL, Worth.FRONTIER_OF_MODEL, of_model),
    ):
        for kind in kinds.values():
            for place, each in enumerate(_ordered(kind, accuracy_slack)):
                worth = rest if place else first
                if each.key not in best or worth < best[each.key][0]:
                    best[each.key] = worth, float(place)
    return best


def valued(
    items: Sequence[Item],
    standing: Mapping[str, tuple[Worth, float]],
    used: Set[str],
    wants: Mapping[str, float],
    loaded: Set[str],
) -> list[Valued]:
    """Every item of one group, the most valuable first.

    Args:
        standing: as of :func:`standings`.
        used: what ran lately, as ``variant@group``.
        wants: rows a second, by ``variant@group``.
        loaded: variants that are loaded; of two that are worth the same, the loaded one is worth more.
    """
    found = []
    for each in items:
        worth, rank = standing.get(each.key, (Worth.NOTHING, 0.0))
        if each.key in used:
            worth = Worth.USED
        elif each.key in wants:
            worth, rank = Worth.WANTED, -wants[each.key]
        found.append(Valued(worth, rank, each))

    def order(value: Valued) -> tuple[Worth, float, bool, int, str]:
        of = value.item
        return value.worth, value.rank, of.variant not in loaded, of.memory_bytes, of.variant

    return sorted(found, key=order)


def beaten_by(loser: Item, others: Iterable[Item]) -> str:
    """Who of the same model makes it worthless, in words: "m:1/onnx-fp32 is faster, cheaper and as accurate"."""
    for other in others:
        if other.model.key != loser.model.key or other.key == loser.key:
            continue
        mine, theirs = loser.point, other.point
        if theirs.accuracy >= mine.accuracy and theirs.latency_ms <= mine.latency_ms and theirs.cost <= mine.cost:
            words = (
                ("more accurate" if theirs.accuracy > mine.accuracy else "as accurate"),
                ("faster" if theirs.latency_ms < mine.latency_ms else "as fast"),
                ("cheaper" if theirs.cost < mine.cost else "as cheap"),
            )
            return f"{other.variant} is {words[0]}, {words[1]} and {words[2]}"
    return "others of its model are better"


def _ordered(items: Sequence[Item], accuracy_slack: float) -> list[Item]:
    """The frontier of items that answer the same queries: cheapest and fastest of the accurate, then by accuracy."""
    kept = [items[index] for index in frontier([each.point for each in items])]
    floor = max(each.point.accuracy for each in kept) - accuracy_slack
    accurate = [each for each in kept if each.point.accuracy >= floor]
    cheapest = min(accurate, key=lambda each: (each.point.cost, each.point.latency_ms, each.variant))
    fastest = min(accurate, key=lambda each: (each.point.latency_ms, each.point.cost, each.variant))
    rest = sorted(kept, key=lambda each: (-each.point.accuracy, each.point.cost, each.variant))
    return list({each.key: each for each in (cheapest, fastest, *rest)}.values())

"""What stays loaded meanwhile, though it is to make room: what alone is ready for some of the demand. Pure.

It stays beside what its worker is to load. If there is no room for both, it stays for a while in which another worker
may load something for that demand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set

from broker.situation import PlannedGroup
from broker.worth import Item
from modelless.messages import Demanded

IN_THE_WAY_MS_MAX = 30_000.0
"""So long what alone is ready may keep another variant from being loaded where it is."""


class Keeping:
    """Remembers since when what stays is in the way."""

    def __init__(self) -> None:
        self._since_ms: dict[tuple[str, str], float] = {}
        """By worker and variant."""

    def decide(
        self,
        groups: Sequence[PlannedGroup],
        default: Set[str],
        demand: Sequence[Demanded],
        allocated: Mapping[str, Sequence[str]],
        now_ms: float,
    ) -> dict[str, set[str]]:
        """What stays, by worker, though the allocation has something else in mind.

        Args:
            default: versions that answer for their tasks.
            allocated: by worker, what it is to load for the demand.
        """
        ready: dict[str, list[str]] = defaultdict(list)
        free_bytes: dict[str, int] = {}
        of_task: dict[str, list[Item]] = defaultdict(list)
        for group in groups:
            size = {each.variant: each.memory_bytes for each in group.items}
            for worker in group.workers:
                load = sum([size.get(variant, 0) for variant in allocated.get(worker.name, ())])
                free_bytes[worker.name] = worker.memory_bytes_max - load
                for variant in worker.ready:
                    ready[f"{variant}@{group.name}"].append(worker.name)
            for each in group.items:
                if each.key in ready and each.model.key in default:
                    of_task[each.model.task].append(each)
        keeping: dict[str, set[str]] = defaultdict(set)
        in_the_way: dict[tuple[str, str], float] = {}
        for asked in demand:
            floor, latency_ms = asked.bounds
            able = [
                each
                for each in of_task[asked.task]
                if each.point.accuracy >= floor and each.point.latency_ms <= latency_ms
            ]
            is_served = any(
                each.variant in allocated.get(worker, ()) or each.variant in keeping.get(worker, ())
                for each in able
                for worker in ready[each.key]
            )
            if not able or is_served:
                continue
            best = min(able, key=lambda each: (each.point.cost, each.key))
            first = max(ready[best.key], key=lambda worker: free_bytes[worker])
            if best.memory_bytes > free_bytes[first]:
                way = first, best.variant
                in_the_way[way] = self._since_ms.get(way, now_ms)
                if now_ms - in_the_way[way] >= IN_THE_WAY_MS_MAX or not free_bytes.keys() - keeping.keys() - {first}:
                    continue
            keeping[first].add(best.variant)
            free_bytes[first] -= best.memory_bytes
        self._since_ms = in_the_way
        return keeping

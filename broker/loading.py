"""What the workers of one group load, as it is decided, round by round. Pure.

See :mod:`broker.planner` for the rounds. Nothing goes where it does not fit or cannot be made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set

from broker.worth import Item, Valued, Worth

LOADED_MAX = 256
"""Variants of one worker."""


class Loading:
    """One group's.

    Args:
        memory_bytes: by worker; so are the next two.
        makes: variants that it can make.
        before: what it was to load until now.
        values: of the group, the most valuable first.
    """

    def __init__(
        self,
        memory_bytes: Mapping[str, int],
        makes: Mapping[str, Mapping[str, object]],
        before: Mapping[str, Set[str]],
        values: Sequence[Valued],
    ) -> None:
        self._free_bytes, self._makes, self._before = dict(memory_bytes), makes, before
        self._room_bytes = max(memory_bytes.values(), default=0)
        """Of the worker with the most memory left: what needs more has no place."""
        self._values, self._by_variant = values, {value.item.variant: value for value in values}
        self._load: dict[str, dict[str, Valued]] = {worker: {} for worker in memory_bytes}
        self.needed: dict[str, list[str]] = {worker: [] for worker in memory_bytes}
        """By worker, what the demand needs, in the order of its need."""
        self.copies: Counter[str] = Counter()
        self.before: Counter[str] = Counter(variant for worker in memory_bytes for variant in before[worker])

    def begin(
        self,
        used: Set[str],
        asked: Set[str],
        allocated: Mapping[str, Sequence[str]],
        keeping: Mapping[str, Set[str]],
    ) -> None:
        """What is in use by those who name models, and what serves the demand.

        Args:
            used: ``variant@group``.
            asked: tasks.
            allocated: by worker; so is the next one.
            keeping: what stays in any case.
        """
        for worker in self._load:
            for variant in sorted(keeping.get(worker, ())):
                self._put(worker, self._by_variant[variant])
        for value in self._values:
            if value.item.key in used and value.item.model.task not in asked:
                self._stay(value)
        for worker in self._load:
            for variant in allocated.get(worker, ()):
                if variant in self._by_variant:
                    self._put(worker, self._by_variant[variant])
                    self.needed[worker].append(variant)

    def add(self, of: Item) -> bool:
        """One more copy of it: where it is loaded already, or where there is most room. False: there is none."""
        if of.memory_bytes > self._room_bytes:
            return False
        variant, value = of.variant, self._by_variant[of.variant]
        able = [
            (variant not in self._before[worker], -free_bytes, worker)
            for worker, free_bytes in self._free_bytes.items()
            if of.memory_bytes <= free_bytes and variant not in self._load[worker]
        ]
        for _, _, worker in sorted(able):
            if self._put(worker, value):
                self.needed[worker].append(variant)
                return True
        return False

    def fill(self, used: Set[str]) -> dict[str, list[str]]:
        """The rest; by worker, all that it loads, the most valuable first."""
        worthy = [value for value in self._values if value.worth is not Worth.NOTHING]
        for value in self._values:
            if value.item.key in used:
                self._stay(value)
        for value in worthy:
            if value.worth <= Worth.WANTED:
                self._everywhere(value)
        for value in worthy:
            if not self.copies[value.item.variant]:
                self._somewhere(value)
        for value in worthy:
            self._everywhere(value)
        for value in self._values:
            self._stay(value)
        return {
            worker: [v.item.variant for v in sorted(known.values(), key=lambda v: (v.worth, v.rank, v.item.variant))]
            for worker, known in self._load.items()
        }

    def _put(self, worker: str, value: Valued) -> bool:
        of, known = value.item, self._load[worker]
        if of.variant in known or of.memory_bytes > self._free_bytes[worker] or of.variant not in self._makes[worker]:
            return False
        if len(known) == LOADED_MAX:
            return False
        known[of.variant] = value
        self._free_bytes[worker] -= of.memory_bytes
        self._room_bytes = max(self._free_bytes.values())
        self.copies[of.variant] += 1
        return True

    def _stay(self, value: Valued) -> None:
        if value.item.variant not in self.before:
            return
        for worker in self._load:
            if value.item.variant in self._before[worker]:
                self._put(worker, value)

    def _somewhere(self, value: Valued) -> None:
        if value.item.memory_bytes > self._room_bytes:
            return
        variant, free_bytes = value.item.variant, self._free_bytes
        for worker in sorted(self._load, key=lambda w: (variant not in self._before[w], -free_bytes[w], w)):
            if self._put(worker, value):
                return

    def _everywhere(self, value: Valued) -> None:
        if value.item.memory_bytes > self._room_bytes:
            return
        for worker in self._load:
            self._put(worker, value)

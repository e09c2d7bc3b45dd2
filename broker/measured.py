"""What is registered, what workers can make of it, and what that was measured to be. Pure.

The planner looks at all of it every time, and of some thousands of profiles hardly one changes in between: what follows
from them alone is worked out once, when it is first asked for, and holds until one changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set

from broker.placement_model import Choice
from broker.worth import Item, item
from modelless.messages import Correction, ModelVersion, Profile, split_variant

Builders = tuple[tuple[str, str], ...]
"""(model format, builder) pairs."""


class Measured:
    """Of one moment.

    Args:
        models: by ``name:version``.
        profiles: by ``variant@group``.
        corrections: by variant.
    """

    def __init__(
        self,
        models: Mapping[str, ModelVersion],
        profiles: Mapping[str, Profile],
        corrections: Mapping[str, Correction],
    ) -> None:
        self.models, self.profiles, self.corrections = models, profiles, corrections
        self._made: dict[Builders, dict[str, ModelVersion]] = {}
        self._items: dict[str, Item] = {}
        self._choices: dict[tuple[str, float], Choice] = {}
        self.current: dict[str, tuple[Profile, ModelVersion]] = {}
        """By ``variant@group``: profiles of models as they are now."""
        self.of_task: dict[str, set[str]] = defaultdict(set)
        """Variants that were tried, by their models' tasks."""
        self.usable: list[tuple[str, str, str]] = []
        """Of these, ``variant@group``, group and model of those that can be loaded."""
        self.ready: set[str] = set()
        """Models of which something is measured and can be loaded somewhere."""
        self._of_group: dict[str, set[str]] = defaultdict(set)
        for profile in profiles.values():
            model = models.get(split_variant(profile.variant)[0])
            if model is not None:
                self.of_task[model.task].add(profile.variant)
            if model is not None and profile.digest == model.digest:
                self.current[profile.key] = profile, model
                self._of_group[profile.group].add(model.key)
                if profile.is_usable:
                    self.usable.append((profile.key, profile.group, model.key))
                    self.ready.add(model.key)

    def holds(
        self,
        models: Mapping[str, ModelVersion],
        profiles: Mapping[str, Profile],
        corrections: Mapping[str, Correction],
    ) -> bool:
        """Whether it is still so."""
        return models == self.models and profiles == self.profiles and corrections == self.corrections

    def made(self, builders: Builders) -> Mapping[str, ModelVersion]:
        """What these builders can make: variants, and their models."""
        known = self._made.get(builders)
        if known is None:
            by_format: dict[str, list[tuple[str, str]]] = defaultdict(list)
            for pair in builders:
                by_format[pair[0]].append(pair)
            known = self._made[builders] = {
                variant: model
                for model in self.models.values()
                for variant in variants(model, by_format.get(model.format, ()))
            }
        return known

    def models_on(self, group: str) -> Set[str]:
        """Those that somebody tried to measure there."""
        return self._of_group.get(group, frozenset())

    def item(self, key: str) -> Item:
        """Of a profile that is usable."""
        known = self._items.get(key)
        if known is None:
            profile, model = self.current[key]
            known = self._items[key] = item(profile, model, self.corrections.get(profile.variant))
        return known

    def choice(self, key: str, slowness: float = 1.0) -> Choice:
        """Likewise; ``slowness``: so many times slower than its profile."""
        known = self._choices.get((key, slowness))
        if known is None:
            known = self._choices[key, slowness] = choice_of(self.item(key), self.profiles[key], slowness)
        return known


def choice_of(of: Item, profile: Profile, slowness: float = 1.0) -> Choice:
    """As the placement takes it; ``slowness``: so many times slower than its profile."""
    batches = profile.batches
    return Choice(
        of.variant,
        of.model.task,
        profile.group,
        of.point.accuracy,
        tuple(batch.batch_size for batch in batches),
        tuple(batch.p50_ms * slowness for batch in batches),
        tuple(batch.p99_ms * slowness for batch in batches),
        of.memory_bytes / 2**20,
        profile.load_ms,
    )


def variants(model: ModelVersion, builders: Sequence[tuple[str, str]]) -> list[str]:
    """The variants of a model that these builders can make."""
    names = [builder for format_name, builder in builders if format_name == model.format]
    exits = ["", *(f".exit{number}" for number in range(1, model.exits))]
    return [f"{model.key}/{name}{exit}" for name in names for exit in exits]

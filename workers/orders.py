"""What this worker is to do: the newest plan, and what the catalog says of the variants in it."""

from __future__ import annotations

from modelless.catalog import Catalog
from modelless.messages import Assignment, ModelVersion, Plan, Profile, split_variant

_NOTHING = Assignment()


class Orders:
    """Of the worker ``name`` of ``group``."""

    def __init__(self, group: str, name: str, catalog: Catalog) -> None:
        self.catalog = catalog
        self._group = group
        self._name = name
        self._plan: Plan | None = None

    def take(self, plan: Plan) -> bool:
        """Whether it is news: an older one than the present is ignored."""
        if self._plan is not None and plan.epoch < self._plan.epoch:
            return False
        self._plan = plan
        return True

    @property
    def epoch(self) -> int:
        return self._plan.epoch if self._plan is not None else 0

    @property
    def assignment(self) -> Assignment:
        return self._plan.workers.get(self._name, _NOTHING) if self._plan is not None else _NOTHING

    def model(self, variant: str) -> ModelVersion | None:
        return self.catalog.model(split_variant(variant)[0])

    def profile(self, variant: str) -> Profile | None:
        """How the variant runs on this group; None: nobody has measured it as it is now."""
        model = self.model(variant)
        profile = self.catalog.profile(variant, self._group)
        return profile if model is not None and profile is not None and profile.digest == model.digest else None

    def is_served(self, model: ModelVersion) -> bool:
        """Whether a variant of the model can be loaded on this group."""
        profiles = self.catalog.profiles(model)
        return any(profile.group == self._group and profile.status == "ready" for profile in profiles)

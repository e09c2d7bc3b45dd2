"""What the planner goes by: who is there, what is registered, measured and asked for; all of one moment. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from broker.loading import Loading
from broker.measured import Builders, Measured
from broker.scaler import Scaling
from broker.worth import Valued
from modelless.messages import Assignment, Correction, Demanded, Labels, ModelVersion, Profile


@dataclass(frozen=True, slots=True)
class PlannedWorker:
    """What the planner knows of a worker."""

    name: str
    group: str
    memory_bytes_max: int
    builders: Builders
    ready: frozenset[str] = frozenset()
    """Variants that it has loaded."""
    draining: bool = False
    """It takes no more work, and goes."""


@dataclass(frozen=True, slots=True)
class Situation:
    """Keys are ``variant@group`` unless it says otherwise."""

    models: Mapping[str, ModelVersion]
    """By ``name:version``."""
    profiles: Mapping[str, Profile]
    workers: Sequence[PlannedWorker]
    labels: Mapping[str, Labels] = field(default_factory=dict)
    """By the model's name."""
    served: Mapping[str, str] = field(default_factory=dict)
    """The version that answers now (``name:version``), by the model's name."""
    corrections: Mapping[str, Correction] = field(default_factory=dict)
    """By variant."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Rows a second of what ran lately."""
    wants: Mapping[str, float] = field(default_factory=dict)
    """Rows a second that brokers would like to send there."""
    drifted: Set[str] = frozenset()
    """Whose profile does not hold any more."""
    demand: Sequence[Demanded] = ()
    """What all brokers together are asked for."""
    prices_per_hour: Mapping[str, float] = field(default_factory=dict)
    """USD of a worker, by group."""
    scaling: Mapping[str, Scaling] = field(default_factory=dict)
    """By group, of those whose number of workers is ours to choose."""
    slowness: Mapping[str, float] = field(default_factory=dict)
    """By group, the living median of batches beside their profile's."""
    coming: Mapping[str, str] = field(default_factory=dict)
    """Workers that are being started, by name, and their groups: what they are to load is planned for ahead."""


class PlannedGroup:
    """One group's part of the situation."""

    def __init__(
        self,
        name: str,
        workers: Sequence[PlannedWorker],
        situation: Situation,
        before: Mapping[str, Assignment],
        measured: Measured,
    ) -> None:
        self.name, self.workers = name, workers
        self.models, self.profiles, self.drifted = situation.models, situation.profiles, situation.drifted
        self._before = before
        self.loaded = {variant for worker in workers for variant in self.before(worker).load}
        self._measured = measured
        self.makes = {worker.name: measured.made(worker.builders) for worker in workers}
        """Variants that each worker can make, and their models."""
        self.made = {
            variant: model
            for builders in dict.fromkeys(worker.builders for worker in workers)
            for variant, model in measured.made(builders).items()
        }
        self.items = [measured.item(key) for key, profile in self.current() if profile.is_usable]

    def loading(self, values: Sequence[Valued]) -> Loading:
        return Loading(
            {worker.name: worker.memory_bytes_max for worker in self.workers},
            self.makes,
            {worker.name: set(self.before(worker).load) for worker in self.workers},
            values,
        )

    def before(self, worker: PlannedWorker) -> Assignment:
        return self._before.get(worker.name, Assignment())

    def current(self) -> Iterable[tuple[str, Profile]]:
        """Profiles of what can be made here, of the models as they are now, by ``variant@group``."""
        for variant in self.made:
            known = self._measured.current.get(key := f"{variant}@{self.name}")
            if known is not None:
                yield key, known[0]

"""Rivals, each from its paper's or source's rule, by name."""

from __future__ import annotations

from collections.abc import Callable

from simulator.rivals.batching import Clipper, Clockwork, Nexus, ProteusBatching, Symphony
from simulator.rivals.fixed import BestTuned, Eager, FixedAccurate, FixedBatch, FixedCheapest, NoBatching
from simulator.rivals.infaas import Infaas
from simulator.rivals.keda import Keda
from simulator.rivals.proteus import Proteus
from simulator.rivals.static import StaticFirstTenth, StaticHindsight
from simulator.world import Policy

RIVALS: dict[str, Callable[[], Policy]] = {
    rival.name: rival
    for rival in (
        FixedAccurate,
        FixedCheapest,
        NoBatching,
        FixedBatch,
        BestTuned,
        Eager,
        Clipper,
        Nexus,
        Symphony,
        Clockwork,
        ProteusBatching,
        Infaas,
        Keda,
        Proteus,
        StaticFirstTenth,
        StaticHindsight,
    )
}

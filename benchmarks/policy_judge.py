"""Has a play of ``benchmarks.policies`` judged from its log alone, by ``simulator.verifier``, as the command does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simulator import verifier
from simulator.facts import GroupSpec, Placement, Portfolio
from simulator.files import FLEET, PROFILES, write_arrivals, write_placement, write_table
from simulator.report import beside, report, write_loads, write_log, write_rentals
from simulator.scenario import Played


def judged(played: Played, placement: Placement | None, folder: Path) -> list[str]:
    """What is broken, and figures that are other than reported; writes what it reads into ``folder``."""
    scenario = played.scenario
    log, profiles, fleet, arrivals = (folder / f"{name}.csv" for name in ("run", "profiles", "fleet", "arrivals"))
    write_log(log, played.queries)
    write_loads(beside(log, "loads"), played.loads)
    write_rentals(beside(log, "workers"), played.rentals)
    write_arrivals(arrivals, scenario.queries)
    _write_profiles(profiles, scenario.portfolio)
    _write_fleet(fleet, scenario.fleet)
    if placement is not None:
        write_placement(beside(log, "placement"), placement)
    inputs = verifier.read_inputs(
        profiles,
        fleet,
        arrivals=arrivals,
        placement=None if placement is None else beside(log, "placement"),
        faults=[f"{fault.kind}:{fault.worker}@{fault.at_ms!r}" for fault in scenario.faults],
    )
    verdict = verifier.verify(inputs, log, beside(log, "loads"), beside(log, "workers"))
    return verdict.lines() + verifier.differences(verdict.figures, report(played).plain())


def _write_profiles(path: Path, portfolio: Portfolio) -> None:
    write_table(
        path,
        PROFILES,
        [
            (p.task, p.model, p.variant, p.group, size, p50_ms, p99_ms, p.accuracy, p.load_ms, p.memory_mb)
            for p in portfolio.profiles
            for size, p50_ms, p99_ms in zip(p.sizes, p.p50_ms, p.p99_ms, strict=True)
        ],
    )


def _write_fleet(path: Path, fleet: Sequence[GroupSpec]) -> None:
    write_table(
        path,
        FLEET,
        [
            (g.name, g.workers, g.memory_mb, g.price_per_hour)
            + ((g.workers_min, g.workers_max, g.start_ms, g.bill_s_min) if g.scales else ("", "", "", ""))
            for g in fleet
        ],
    )

"""The three files of a simulation, as CSV with a header: arrivals, profiles, fleet; placements; and demands to quote.

Columns may stand in any order. Of rows that say the same thing (a variant on a group with a batch size; a group) the
last one counts. Whatever cannot be read is a :class:`~modelless.errors.ConfigurationError` that names the file, the
line, the column, what was found there and what is expected.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from math import inf, isfinite, nan
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from modelless.errors import ConfigurationError
from modelless.messages import ON_MISS, PREFERENCES, OnMiss, Prefer
from simulator.collector import paused
from simulator.facts import INF, GroupSpec, Placement, Portfolio, SimulatedQuery, VariantProfile, sorted_queries

ARRIVALS = ("arrival_ms", "task", "latency_ms_max", "accuracy_min", "on_miss", "prefer", "topic")
ARRIVALS_NEEDED = ("arrival_ms", "task")
PROFILES = (
    "task", "model", "variant", "group", "batch_size", "p50_ms", "p99_ms", "accuracy", "load_ms", "memory_mb"
)  # fmt: skip
FLEET_NEEDED = ("group", "workers", "memory_mb", "price_per_hour")
FLEET = (*FLEET_NEEDED, "workers_min", "workers_max", "start_ms", "bill_s_min")
PLACEMENT = ("worker", "variant")
DEMAND = ("task", "latency_ms_max", "accuracy_min", "rate", "prefer", "on_miss", "burst")
DEMAND_NEEDED = ("task", "rate")
Choice = TypeVar("Choice", bound=str)
_TERMS_KEPT_MAX = 100_000
"""Arrivals mostly repeat what they ask for: it is parsed once, but for files in which it is always new."""


class Cell(NamedTuple):
    """Where a value stands."""

    path: Path
    line: int
    column: str

    def wrong(self, found: str, expected: str) -> ConfigurationError:
        got = "an empty cell" if found == "" else repr(found)
        return ConfigurationError(f"{self.path}:{self.line}: {self.column}: got {got}, expected {expected}")


class Place(Protocol):
    """A :class:`Cell`, or what stands for one."""

    def wrong(self, found: str, expected: str) -> ConfigurationError: ...


class Terms(NamedTuple):
    """What a query asks for."""

    task: str
    latency_ms_max: float
    accuracy_min: float | None
    on_miss: OnMiss
    prefer: Prefer
    topic: str


class Wanted(NamedTuple):
    """A class of queries."""

    terms: Terms
    rows_per_s: float
    burst: float
    """Variance of the rows that come in some time, over their mean."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``known: a, b; did you mean a?``, for errors."""
    names = list(known)
    close = get_close_matches(name, names, 1, 0.5)
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} others" if len(names) > 12 else "")
    return f"{shown or 'none'}" + (f"; did you mean {close[0]}?" if close else "")


# --- the files ----------------------------------------------------------------------------------------------------


def read_arrivals(path: Path) -> list[SimulatedQuery]:
    """Sorted and numbered by arrival. ``latency_ms_max`` etc. may be empty, or their columns missing."""
    with _table(path, ARRIVALS, ARRIVALS_NEEDED) as (columns, rows), paused():
        pick = [columns.get(name, -1) for name in ARRIVALS[1:]]
        at, rest = columns["arrival_ms"], len(ARRIVALS) - 1
        known: dict[tuple[str, ...], Terms] = {}
        found: list[SimulatedQuery] = []
        for line, row in rows:
            try:
                arrival_ms = float(row[at])
            except ValueError:
                arrival_ms = nan
            if not 0.0 <= arrival_ms < inf:
                raise Cell(path, line, "arrival_ms").wrong(row[at], "milliseconds from 0")
            raw = tuple([row[each] if each >= 0 else "" for each in pick])
            terms = known.get(raw)
            if terms is None:
                assert len(raw) == rest
                terms = read_terms(raw, lambda column, line=line: Cell(path, line, column))  # type: ignore[misc]
                if len(known) < _TERMS_KEPT_MAX:
                    known[raw] = terms
            found.append(SimulatedQuery(0, terms[0], arrival_ms, *terms[1:]))
        return sorted_queries(found)


def read_profiles(path: Path) -> Portfolio:
    """Every variant on every group, in the order in which they are first named."""
    times: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}
    facts: dict[tuple[str, str], tuple[str, str, float, float, float]] = {}
    with _table(path, PROFILES, PROFILES) as (columns, rows):
        for line, row in rows:

            def cell(column: str, line: int = line, row: Sequence[str] = row) -> tuple[Cell, str]:
                return Cell(path, line, column), row[columns[column]]

            task, model, variant, group = (_name(*cell(name)) for name in PROFILES[:4])
            key = variant, group
            if key in facts and facts[key][:2] != (task, model):
                where = Cell(path, line, "variant")
                raise where.wrong(
                    variant,
                    f"a name of its own: on {group} it is already of task {facts[key][0]}, model {facts[key][1]}",
                )
            size = _whole(*cell("batch_size"))
            p50_ms = _number(*cell("p50_ms"), "milliseconds above 0", above=0.0)
            where, raw = cell("p99_ms")
            p99_ms = p50_ms if raw == "" else _number(where, raw, "milliseconds, not less than p50_ms", least=p50_ms)
            times.setdefault(key, {})[size] = p50_ms, p99_ms
            facts[key] = (
                task,
                model,
                _number(*cell("accuracy"), "a share from 0 to 1", most=1.0),
                _number(*cell("load_ms"), "milliseconds, 0 or more"),
                _number(*cell("memory_mb"), "megabytes, 0 or more"),
            )
    return Portfolio(tuple(_profile(key, facts[key], times[key]) for key in facts))


def _profile(
    key: tuple[str, str], facts: tuple[str, str, float, float, float], times: Mapping[int, tuple[float, float]]
) -> VariantProfile:
    (variant, group), (task, model, accuracy, load_ms, memory_mb) = key, facts
    sizes = tuple(sorted(times))
    p50_ms, p99_ms = tuple(times[size][0] for size in sizes), tuple(times[size][1] for size in sizes)
    return VariantProfile(task, model, variant, group, accuracy, load_ms, memory_mb, sizes, p50_ms, p99_ms)


def read_fleet(path: Path) -> tuple[GroupSpec, ...]:
    """Groups; one with ``workers_max`` scales, and may begin with no worker at all."""
    found: dict[str, GroupSpec] = {}
    with _table(path, FLEET, FLEET_NEEDED) as (columns, rows):
        for line, row in rows:
            cells = [(Cell(path, line, name), row[columns[name]] if name in columns else "") for name in FLEET]
            group, workers, memory_mb, price, *scaling = cells
            name, scales = _name(*group), bool(scaling[1][1])
            spec = GroupSpec(
                name,
                _whole(*workers, least=0 if scales else 1),
                _number(*memory_mb, "megabytes above 0", above=0.0),
                _number(*price, "USD per hour, 0 or more"),
            )
            found[name] = _scaling(spec, scaling) if scales else spec
            for where, raw in scaling:
                if raw and not scales:
                    raise where.wrong(raw, "nothing: the number of workers is fixed where workers_max is empty")
    return tuple(found.values())


def _scaling(spec: GroupSpec, cells: Sequence[tuple[Cell, str]]) -> GroupSpec:
    """With what stands in the optional columns."""
    least, most, start, bill = cells
    workers_max = _whole(*most)
    workers_min = _whole(*least, least=0) if least[1] else 0
    if not workers_min <= spec.workers <= workers_max:
        expected = f"from workers_min to workers_max, {workers_min} to {workers_max}: those at time 0"
        raise most[0]._replace(column="workers").wrong(str(spec.workers), expected)
    return replace(
        spec,
        workers_min=workers_min,
        workers_max=workers_max,
        start_ms=_number(*start, "milliseconds, 0 or more") if start[1] else 0.0,
        bill_s_min=_number(*bill, "seconds, 0 or more") if bill[1] else 0.0,
    )


def read_placement(path: Path, fleet: Sequence[GroupSpec], portfolio: Portfolio) -> Placement:
    """What is loaded at time 0. It must be of this fleet, have a profile there, and fit."""
    groups = {worker: spec for spec in fleet for worker in spec.worker_names}
    found: dict[str, list[str]] = {}
    with _table(path, PLACEMENT, PLACEMENT) as (columns, rows):
        for line, row in rows:
            worker, variant = (row[columns[name]] for name in PLACEMENT)
            if worker not in groups:
                raise Cell(path, line, "worker").wrong(worker, f"one of {nearest(worker, groups)}")
            spec, loaded = groups[worker], found.setdefault(worker, [])
            profile = portfolio.by_key.get((variant, spec.name))
            if profile is None:
                there = [v for v, group in portfolio.by_key if group == spec.name]
                expected = f"a variant with a profile on {spec.name}: {nearest(variant, there)}"
                raise Cell(path, line, "variant").wrong(variant, expected)
            if variant in loaded:
                continue
            free_mb = spec.memory_mb - sum(portfolio.by_key[v, spec.name].memory_mb for v in loaded)
            if profile.memory_mb > free_mb:
                expected = (
                    f"one that fits: it needs {profile.memory_mb:g} MB of the {free_mb:g} MB still free on {worker}"
                )
                raise Cell(path, line, "variant").wrong(variant, expected)
            loaded.append(variant)
    return found


def read_demand(path: Path) -> list[Wanted]:
    """What is asked for, a class a line. Cells may be empty, or their columns missing, but for task and rate."""
    found = []
    with _table(path, DEMAND, DEMAND_NEEDED) as (columns, rows):
        for line, row in rows:
            cells = {name: row[at] for name, at in columns.items()}
            raw = [cells.get(name, "") for name in ("task", "latency_ms_max", "accuracy_min", "on_miss", "prefer")]
            terms = read_terms((*raw, ""), lambda column, line=line: Cell(path, line, column))  # type: ignore[misc]
            rate, burst = Cell(path, line, "rate"), Cell(path, line, "burst")
            found.append(
                Wanted(
                    terms,
                    _number(rate, cells["rate"], "rows a second, 0 or more"),
                    _number(burst, cells["burst"], "variance over mean, 0 or more") if cells.get("burst") else 1.0,
                )
            )
    return found


def write_arrivals(path: Path, queries: Sequence[SimulatedQuery]) -> None:
    """So that :func:`read_arrivals` finds the same queries. Without topics, if there are none."""
    columns = len(ARRIVALS) if any(query.topic for query in queries) else len(ARRIVALS) - 1
    write_table(
        path,
        ARRIVALS[:columns],
        (
            (
                query.arrival_ms,
                query.task,
                "" if query.latency_ms_max == INF else query.latency_ms_max,
                "" if query.accuracy_min is None else query.accuracy_min,
                query.on_miss,
                query.prefer,
                query.topic,
            )[:columns]
            for query in queries
        ),
    )


def write_placement(path: Path, placement: Placement) -> None:
    """So that :func:`read_placement` finds the same."""
    write_table(path, PLACEMENT, ((worker, variant) for worker, variants in placement.items() for variant in variants))


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A CSV file, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


# --- cells --------------------------------------------------------------------------------------------------------


def read_terms(raw: Sequence[str], cell: Callable[[str], Place]) -> Terms:
    """From the cells of :data:`ARRIVALS` behind the time; ``cell`` says where one stands."""
    task, latency, accuracy, on_miss, prefer, topic = raw
    return Terms(
        _name(cell("task"), task),
        INF
        if latency == ""
        else _number(cell("latency_ms_max"), latency, "milliseconds above 0, or nothing", above=0.0),
        None
        if accuracy == ""
        else _number(cell("accuracy_min"), accuracy, "a share from 0 to 1, or nothing", most=1.0),
        _choice(cell("on_miss"), on_miss, ON_MISS) if on_miss else "reject",
        _choice(cell("prefer"), prefer, PREFERENCES) if prefer else "cost",
        topic,
    )


def _choice(cell: Place, raw: str, known: Sequence[Choice]) -> Choice:
    for each in known:
        if raw == each:
            return each
    raise cell.wrong(raw, f"one of {nearest(raw, known)}")


def _name(cell: Place, raw: str) -> str:
    if not raw:
        raise cell.wrong(raw, "a name")
    return raw


def _whole(cell: Place, raw: str, least: int = 1) -> int:
    """``4.0`` is 4, as spreadsheets write it."""
    expected = f"a whole number, {least} or more"
    value = _number(cell, raw, expected, least=least)
    if value != int(value):
        raise cell.wrong(raw, expected)
    return int(value)


def _number(
    cell: Place, raw: str, expected: str, *, least: float = 0.0, most: float = INF, above: float = -INF
) -> float:
    try:
        value = float(raw)
    except ValueError:
        value = nan
    if not (isfinite(value) and least <= value <= most and value > above):
        raise cell.wrong(raw, expected)
    return value


# --- rows ---------------------------------------------------------------------------------------------------------


@contextmanager
def _table(
    path: Path, known: Sequence[str], needed: Sequence[str]
) -> Iterator[tuple[dict[str, int], Iterator[tuple[int, list[str]]]]]:
    """Columns by name, and rows with their line; cells without spaces around them.

    Raises:
        ConfigurationError: the file is not there or no CSV, a column is unknown, twice or missing, it has no rows.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [cell.strip() for cell in next(reader, [])]
            for name in header:
                if name not in known:
                    raise ConfigurationError(f"{path}:1: unknown column {name!r}; known: {nearest(name, known)}")
                if header.count(name) > 1:
                    raise ConfigurationError(f"{path}:1: column {name!r} is there twice")
            missing = [name for name in needed if name not in header]
            if missing:
                raise ConfigurationError(f"{path}:1: missing column {', '.join(missing)}; expected: {','.join(known)}")
            yield {name: index for index, name in enumerate(header)}, _rows(path, reader, len(header))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not a text file in UTF-8") from None
    except csv.Error as error:
        raise ConfigurationError(f"{path}: not a CSV file: {error}") from None


def _rows(path: Path, reader: Iterator[list[str]], width: int) -> Iterator[tuple[int, list[str]]]:
    some = False
    for row in reader:
        if not row:
            continue
        if len(row) != width:
            line = reader.line_num  # type: ignore[attr-defined]
            raise ConfigurationError(f"{path}:{line}: got {len(row)} cells, expected {width} as in the header")
        some = True
        yield reader.line_num, [cell.strip() for cell in row]  # type: ignore[attr-defined]
    if not some:
        raise ConfigurationError(f"{path} has no rows")

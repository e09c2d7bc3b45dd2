"""When queries arrive: processes that are drawn from a seed, and replays of what was recorded.

Every process returns times in ms from 0, ascending, as an array of float64.

* :func:`poisson`: independent users.
* :func:`gamma`: gaps from a Gamma distribution; its shape says how bursty: the coefficient of variation is
  1/sqrt(shape), so shape 1 is Poisson and 0.05 comes in clumps (CV 4.5). InferLine (Crankshaw et al., SoCC 2020),
  AlpaServe (Li et al., OSDI 2023) and Symphony draw arrivals so.
* :func:`bursts`: a Markov-modulated Poisson process of two states (Fischer and Meier-Hellstern, The Markov-modulated
  Poisson process (MMPP) cookbook, Performance Evaluation 18, 1993): calm and burst, each for an exponential time.
* :func:`diurnal`: a Poisson process whose rate follows a sine, thinned from a homogeneous one (Lewis and Shedler,
  Simulation of nonhomogeneous Poisson processes by thinning, Naval Research Logistics Quarterly 26, 1979).
* :func:`replay`: recorded times, stretched to a mean rate.
* :func:`counts`: recorded counts per interval, scaled to a mean rate; Poisson within each interval.
* :func:`zipf`: which of several tasks a query is for: the k-th is asked for in proportion to k**-exponent.

:func:`generate` draws queries from a text such as ``gamma:rate=200,shape=0.05,seconds=60,task=digits``.
"""

from __future__ import annotations

import csv
import inspect
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import product
from math import isfinite, pi
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelless.errors import ConfigurationError
from simulator.collector import paused
from simulator.facts import SimulatedQuery, sorted_queries
from simulator.files import ARRIVALS, Cell, Terms, nearest, read_terms

Times = NDArray[np.float64]
MS_PER_S = 1000.0
QUERIES_MAX = 50_000_000
"""More is a slip of the pen: it would not fit into memory."""


# --- processes ----------------------------------------------------------------------------------------------------


def poisson(random: np.random.Generator, *, rate: float, seconds: float) -> Times:
    """``rate`` per second on average."""
    return _uniform(random, int(random.poisson(rate * seconds)), seconds)


def gamma(random: np.random.Generator, *, rate: float, seconds: float, shape: float = 0.05) -> Times:
    """Gaps from a Gamma distribution with this shape and the mean ``1/rate``; the first gap begins at 0."""
    scale_ms = MS_PER_S / rate / shape
    chunk = max(1024, int(rate * seconds / 4))
    times, last_ms = [], 0.0
    while last_ms < seconds * MS_PER_S:
        times.append(last_ms + np.cumsum(random.gamma(shape, scale_ms, chunk)))
        last_ms = float(times[-1][-1])
    return _before(np.concatenate(times), seconds)


def bursts(
    random: np.random.Generator,
    *,
    rate: float,
    seconds: float,
    times: float = 8.0,
    burst_s: float = 1.0,
    calm_s: float = 9.0,
) -> Times:
    """Calm and burst take turns, each for an exponential time with its mean; a burst has ``times`` the calm's rate.

    ``rate`` is the mean over both; it begins calm.
    """
    calm_rate = rate * (calm_s + burst_s) / (calm_s + times * burst_s)
    parts, begin_s, is_burst = [], 0.0, False
    while begin_s < seconds:
        stay_s = min(float(random.exponential(burst_s if is_burst else calm_s)), seconds - begin_s)
        expected = calm_rate * (times if is_burst else 1.0) * stay_s
        parts.append(begin_s * MS_PER_S + _uniform(random, int(random.poisson(expected)), stay_s))
        begin_s += stay_s
        is_burst = not is_burst
    return _before(np.concatenate(parts), seconds)


def diurnal(
    random: np.random.Generator, *, rate: float, seconds: float, period_s: float = 86_400.0, swing: float = 0.8
) -> Times:
    """The rate is ``rate * (1 - swing * cos(2 pi t / period_s))``: lowest at 0, highest half a period later."""
    times = poisson(random, rate=rate * (1.0 + swing), seconds=seconds)
    share = (1.0 - swing * np.cos(times * (2.0 * pi / (period_s * MS_PER_S)))) / (1.0 + swing)
    kept: Times = times[random.random(len(times)) < share]
    return kept


def replay(recorded_ms: Times, *, rate: float | None = None, seconds: float | None = None) -> Times:
    """Recorded times from the first one on; stretched to ``rate`` per second on average; cut after ``seconds``."""
    times = np.sort(recorded_ms) - recorded_ms.min()
    if rate is not None and len(times) > 1 and times[-1] > 0.0:
        times = times * ((len(times) - 1) * MS_PER_S / rate / times[-1])
    return times if seconds is None else _before(times, seconds)


def counts(
    random: np.random.Generator,
    series: Sequence[float],
    *,
    rate: float,
    interval_s: float,
    seconds: float | None = None,
) -> Times:
    """A Poisson process in each interval of ``interval_s``, proportional to its count; ``rate`` is the whole's mean."""
    values = np.asarray(series, np.float64)
    if seconds is not None:
        values = values[: int(np.ceil(seconds / interval_s))]
    if not values.sum() > 0.0:
        raise ConfigurationError("the counts series is 0 all along: nothing would arrive")
    drawn = random.poisson(values * (rate * interval_s / values.mean()))
    begins_ms = np.repeat(np.arange(len(values)) * interval_s * MS_PER_S, drawn)
    times = np.sort(begins_ms + random.random(len(begins_ms)) * interval_s * MS_PER_S)
    return times if seconds is None else _before(times, seconds)


def zipf(random: np.random.Generator, size: int, tasks: int, exponent: float) -> NDArray[np.int64]:
    """For each of ``size`` queries which of ``tasks`` it is for; exponent 0: all alike."""
    weights = np.arange(1, tasks + 1, dtype=np.float64) ** -exponent
    drawn: NDArray[np.int64] = random.choice(tasks, size, p=weights / weights.sum())
    return drawn


def _uniform(random: np.random.Generator, size: int, seconds: float) -> Times:
    """A Poisson process of which is known how many there are."""
    times: Times = np.sort(random.random(size)) * (seconds * MS_PER_S)
    return times


def _before(times: Times, seconds: float) -> Times:
    kept: Times = times[times < seconds * MS_PER_S]
    return kept


# --- what was recorded --------------------------------------------------------------------------------------------


def read_trace(path: Path) -> Times:
    """Times of a recorded trace, in ms from its first: of its column ``TIMESTAMP`` or ``arrival_ms``.

    A timestamp is ISO 8601, a space or a T in it, with any number of decimals (Azure's LLM traces have seven).
    """
    column, values = _column(path, ("TIMESTAMP", "timestamp", "arrival_ms"))
    read = _plain if column == "arrival_ms" else _instant_ms
    times: Times = np.array([read(Cell(path, line, column), raw) for line, raw in values])
    times.sort()
    times -= times[0]
    return times


def read_counts(path: Path) -> tuple[list[float], float]:
    """Counts of a series, and the seconds of an interval: columns ``timestamp`` and ``value`` (as NAB has them)."""
    column, instants = _column(path, ("timestamp", "TIMESTAMP"))
    value_column, values = _column(path, ("value", "count"))
    if len(instants) < 2:
        raise ConfigurationError(f"{path}: a counts series needs two rows or more to have an interval")
    gaps = np.diff([_instant_ms(Cell(path, line, column), raw) for line, raw in instants])
    interval_s = float(np.median(gaps)) / MS_PER_S
    if interval_s <= 0.0:
        raise ConfigurationError(f"{path}: {column}: instants must ascend")
    return [_plain(Cell(path, line, value_column), raw) for line, raw in values], interval_s


def _column(path: Path, names: Sequence[str]) -> tuple[str, list[tuple[int, str]]]:
    """Its name, and its cells with their lines; other columns do not matter."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or ()
            found = next((name for name in names if name in header), None)
            if found is None:
                raise ConfigurationError(f"{path}:1: expected a column {' or '.join(names)}, got {', '.join(header)}")
            cells = [(reader.line_num, (row[found] or "").strip()) for row in reader]
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"{path}: not a CSV file in UTF-8: {error}") from None
    if not cells:
        raise ConfigurationError(f"{path} has no rows")
    return found, cells


def _instant_ms(cell: Cell, raw: str) -> float:
    whole, _, decimals = raw.partition(".")
    try:
        instant = datetime.fromisoformat(whole)
        fraction_s = float(f"0.{decimals}") if decimals else 0.0
    except ValueError:
        raise cell.wrong(raw, "an instant like 2023-11-16 18:17:03.9799600") from None
    return (instant - datetime(1970, 1, 1, tzinfo=instant.tzinfo)).total_seconds() * MS_PER_S + fraction_s * MS_PER_S


def _plain(cell: Cell, raw: str) -> float:
    try:
        value = float(raw)
    except ValueError:
        value = -1.0
    if not (isfinite(value) and value >= 0.0):
        raise cell.wrong(raw, "a number, 0 or more")
    return value


# --- from a text --------------------------------------------------------------------------------------------------


def _replayed(
    random: np.random.Generator, *, file: str, rate: float | None = None, seconds: float | None = None
) -> Times:
    return replay(read_trace(Path(file)), rate=rate, seconds=seconds)


def _counted(random: np.random.Generator, *, file: str, rate: float, seconds: float | None = None) -> Times:
    series, interval_s = read_counts(Path(file))
    return counts(random, series, rate=rate, interval_s=interval_s, seconds=seconds)


PROCESSES: Mapping[str, Callable[..., Times]] = {
    "poisson": poisson,
    "gamma": gamma,
    "bursts": bursts,
    "diurnal": diurnal,
    "trace": _replayed,
    "counts": _counted,
}
"""By the word before the colon; the arguments behind it are the function's own."""
_ZIPF = "zipf"
_SHARES = frozenset({"swing"})
"""From 0 to 1; all other numbers are above 0."""


class Wanted(NamedTuple):
    """What a text asks to be generated."""

    process: str
    arguments: dict[str, Any]
    terms: tuple[Terms, ...]
    """By task; within a task all combinations of what is asked."""
    tasks: tuple[str, ...]
    exponent: float
    """Of Zipf's law over the tasks."""


class Argument(NamedTuple):
    """A term on the command line, where a file has a cell."""

    text: str
    name: str

    def wrong(self, found: str, expected: str) -> ConfigurationError:
        return _wrong(self.text, f"{self.name}: got {found!r}, expected {expected}")


def parse(text: str) -> Wanted:
    """Of ``process:argument=value,...``; terms as in an arrivals file, several of them with ``|`` between.

    Raises:
        ConfigurationError: names the argument, what it got and what is expected.
    """
    process, _, rest = text.partition(":")
    if process not in PROCESSES:
        raise _wrong(text, f"unknown process {process!r}; known: {nearest(process, PROCESSES)}")
    parameters = {
        name: each for name, each in inspect.signature(PROCESSES[process]).parameters.items() if name != "random"
    }
    asked = ARRIVALS[1:]
    arguments: dict[str, Any] = {}
    terms: dict[str, list[str]] = {name: [""] for name in asked}
    exponent = 0.0
    for part in filter(None, rest.split(",")):
        name, equals, value = (each.strip() for each in part.partition("="))
        if not equals:
            raise _wrong(text, f"{part!r} is not of the form argument=value")
        if name in terms:
            terms[name] = [each.strip() for each in value.split("|")]
        elif name == "file" and name in parameters:
            arguments[name] = value
        elif name == _ZIPF:
            exponent = _argument(text, name, value, share=False, zero=True)
        elif name in parameters:
            arguments[name] = _argument(text, name, value, share=name in _SHARES)
        else:
            known = nearest(name, [*parameters, *asked, _ZIPF])
            raise _wrong(text, f"{process} has no argument {name!r}; known: {known}")
    missing = [name for name, each in parameters.items() if each.default is each.empty and name not in arguments]
    missing += ["task"] if terms["task"] == [""] else []
    if missing:
        raise _wrong(text, f"missing {', '.join(missing)}")
    expected = float(arguments.get("rate", 0.0)) * float(arguments.get("seconds", 0.0))
    if expected > QUERIES_MAX:
        raise _wrong(text, f"rate and seconds make {expected:,.0f} queries, more than {QUERIES_MAX:,}")
    return Wanted(process, arguments, _combinations(text, terms), tuple(terms["task"]), exponent)


def generate(texts: Sequence[str], seed: int) -> list[SimulatedQuery]:
    """The queries of all texts together, sorted and numbered by arrival; each text has random numbers of its own."""
    found: list[SimulatedQuery] = []
    for number, text in enumerate(texts):
        wanted = parse(text)
        random = np.random.default_rng([seed, number])
        times = PROCESSES[wanted.process](random, **wanted.arguments)
        per_task = len(wanted.terms) // len(wanted.tasks)
        of_task = zipf(random, len(times), len(wanted.tasks), wanted.exponent)
        chosen = of_task * per_task + random.integers(per_task, size=len(times))
        with paused():
            for time_ms, index in zip(times.tolist(), chosen.tolist(), strict=True):
                terms = wanted.terms[index]
                found.append(SimulatedQuery(0, terms[0], time_ms, *terms[1:]))
    if not found:
        raise ConfigurationError(f"--generate {' '.join(texts)}: nothing arrives; raise rate or seconds")
    return sorted_queries(found)


def _combinations(text: str, terms: Mapping[str, Sequence[str]]) -> tuple[Terms, ...]:
    def cell(column: str) -> Argument:
        return Argument(text, column)

    return tuple(read_terms(raw, cell) for raw in product(*terms.values()))


def _argument(text: str, name: str, raw: str, *, share: bool, zero: bool = False) -> float:
    try:
        value = float(raw)
    except ValueError:
        value = -1.0
    expected = "a share from 0 to 1" if share else "a number, 0 or more" if zero else "a number above 0"
    if not (isfinite(value) and value >= 0.0) or (share and value > 1.0) or (value == 0.0 and not (share or zero)):
        raise _wrong(text, f"{name}: got {raw!r}, expected {expected}")
    return value


def _wrong(text: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"--generate {text}: {why}")

"""Drawn arrivals have the mean, the burstiness and the shape that they should have, and depend on the seed alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modelless.errors import ConfigurationError
from simulator.arrivals import (
    Times,
    bursts,
    counts,
    diurnal,
    gamma,
    generate,
    parse,
    poisson,
    read_counts,
    read_trace,
    replay,
    zipf,
)


def random(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


def rate_of(times: Times, seconds: float) -> float:
    assert np.all(np.diff(times) >= 0)
    assert times[0] >= 0
    assert times[-1] < seconds * 1000
    return len(times) / seconds


def variation(times: Times) -> float:
    """Of the gaps: their standard deviation by their mean."""
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())


def dispersion(times: Times, seconds: float) -> float:
    """Variance of the counts per second by their mean: 1 for a Poisson process."""
    number, _ = np.histogram(times, np.arange(0, seconds * 1000 + 1, 1000.0))
    return float(number.var() / number.mean())


def test_poisson() -> None:
    times = poisson(random(), rate=100, seconds=400)
    assert rate_of(times, 400) == pytest.approx(100, rel=0.03)
    assert variation(times) == pytest.approx(1.0, abs=0.03)
    assert dispersion(times, 400) == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize("shape", [0.05, 0.25, 4.0])
def test_gamma_gaps_vary_by_one_over_the_root_of_the_shape(shape: float) -> None:
    times = gamma(random(), rate=200, seconds=1000, shape=shape)
    assert rate_of(times, 1000) == pytest.approx(200, rel=0.05)
    assert variation(times) == pytest.approx(shape**-0.5, rel=0.05)


def test_bursts_keep_the_mean_and_come_together() -> None:
    times = bursts(random(), rate=50, seconds=20_000, times=10, burst_s=2, calm_s=8)
    assert rate_of(times, 20_000) == pytest.approx(50, rel=0.06)
    number, _ = np.histogram(times, np.arange(0, 20_000_001, 1000.0))
    calm = 50 * 10 / (8 + 20)
    assert np.quantile(number, 0.4) == pytest.approx(calm, rel=0.1), "four fifths of the seconds are calm"
    assert np.mean(number > 5 * calm) == pytest.approx(0.2, abs=0.05), "a fifth of them bursts"
    assert dispersion(times, 20_000) > 20


def test_diurnal_is_lowest_at_first_and_highest_half_a_period_later() -> None:
    times = diurnal(random(), rate=100, seconds=2000, period_s=1000, swing=0.8)
    assert rate_of(times, 2000) == pytest.approx(100, rel=0.03)
    number, _ = np.histogram(times, np.arange(0, 2_000_001, 50_000.0))
    expected = [100 * (1 - 0.8 * np.cos(2 * np.pi * (begin + 25) / 1000)) for begin in range(0, 2000, 50)]
    assert number / 50 == pytest.approx(expected, rel=0.12)


def test_zipf() -> None:
    drawn = zipf(random(), 60_000, 3, 1.0)
    assert np.bincount(drawn) / 60_000 == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.01)
    assert np.bincount(zipf(random(), 60_000, 3, 0.0)) / 60_000 == pytest.approx([1 / 3] * 3, abs=0.01)


def test_a_replay_keeps_the_pattern_at_another_rate() -> None:
    recorded = np.array([1000.0, 1500.0, 4000.0, 2000.0])
    assert replay(recorded).tolist() == [0.0, 500.0, 1000.0, 3000.0]
    assert replay(recorded, rate=2.0).tolist() == [0.0, 250.0, 500.0, 1500.0]
    assert replay(recorded, rate=2.0, seconds=0.4).tolist() == [0.0, 250.0]


def test_counts_are_followed_at_the_mean_that_is_asked_for() -> None:
    times = counts(random(), [10, 0, 30], rate=100, interval_s=60)
    assert rate_of(times, 180) == pytest.approx(100, rel=0.05)
    number, _ = np.histogram(times, [0, 60_000, 120_000, 180_000])
    assert number[1] == 0
    assert number[2] / number[0] == pytest.approx(3, rel=0.1)
    within = times[times < 60_000]
    assert variation(within) == pytest.approx(1.0, abs=0.05), "Poisson within an interval"
    with pytest.raises(ConfigurationError, match="0 all along"):
        counts(random(), [0, 0], rate=1, interval_s=1)


def test_recorded_files(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens\n2023-11-16 18:17:03.9799600,4808\n2023-11-16 18:17:04.0319601,3180\n"
        "2023-11-16T18:18:03.9799600,1\n"
    )
    assert read_trace(trace).tolist() == pytest.approx([0.0, 52.0001, 60_000.0], abs=1e-3)
    series = tmp_path / "series.csv"
    series.write_text("timestamp,value\n2014-07-01 00:00:00,10844\n2014-07-01 00:30:00,8127\n2014-07-01 01:00:00,1\n")
    assert read_counts(series) == ([10844.0, 8127.0, 1.0], 1800.0)
    (made,) = {q.task for q in generate([f"counts:file={series},rate=1,task=t"], 0)}
    assert made == "t"
    assert len(generate([f"trace:file={trace},task=t,rate=4"], 0)) == 3
    series.write_text("timestamp,value\n2014-07-01 00:00:00,x\nyesterday,1\n")
    with pytest.raises(ConfigurationError, match=r"series.csv:3: timestamp: got 'yesterday'"):
        read_counts(series)
    series.write_text("when,value\n1,1\n")
    with pytest.raises(ConfigurationError, match="expected a column timestamp or TIMESTAMP, got when, value"):
        read_counts(series)


def test_texts_say_tasks_and_terms() -> None:
    text = (
        "poisson:rate=50,seconds=100,task=a|b,zipf=1,latency_ms_max=50|200,accuracy_min=0.9,on_miss=late,prefer=latency"
    )
    drawn = generate([text], 3)
    assert [query.index for query in drawn] == list(range(len(drawn)))
    assert {(q.task, q.latency_ms_max) for q in drawn} == {(t, ms) for t in "ab" for ms in (50.0, 200.0)}
    assert {(q.accuracy_min, q.on_miss, q.prefer) for q in drawn} == {(0.9, "late", "latency")}
    assert sum(q.task == "a" for q in drawn) / len(drawn) == pytest.approx(2 / 3, abs=0.03)
    assert sum(q.latency_ms_max == 50 for q in drawn) / len(drawn) == pytest.approx(1 / 2, abs=0.03)


def test_the_seed_alone_decides_and_every_text_has_numbers_of_its_own() -> None:
    text = "poisson:rate=50,seconds=10,task=a"

    def times(*texts: str, seed: int = 1) -> list[float]:
        return [query.arrival_ms for query in generate(texts, seed)]

    assert times(text) == times(text)
    assert times(text) != times(text, seed=2)
    both = times(text, text)
    assert set(times(text)) < set(both)
    assert len(set(both)) == len(both), "the second is not the first again"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("poison:rate=1", "unknown process 'poison'.*did you mean poisson"),
        ("poisson:rte=1", "poisson has no argument 'rte'.*did you mean rate"),
        ("poisson:rate=1,seconds=1", "missing task"),
        ("poisson:task=a", "missing rate, seconds"),
        ("poisson:rate=0,seconds=1,task=a", "rate: got '0', expected a number above 0"),
        ("poisson:rate=x,seconds=1,task=a", "rate: got 'x'"),
        ("diurnal:rate=1,seconds=1,task=a,swing=2", "swing: got '2', expected a share"),
        ("poisson:rate=1,seconds=1,task=a,prefer=cheap", "prefer: got 'cheap', expected one of cost"),
        ("poisson:rate=1,seconds=1,task=a|", "task: got ''"),
        ("poisson:rate=1e9,seconds=1e9,task=a", "more than"),
        ("poisson:rate", "not of the form"),
    ],
)
def test_errors_name_the_argument(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        parse(text)


def test_nothing_that_arrives_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="nothing arrives"):
        generate(["poisson:rate=0.0001,seconds=1,task=a"], 0)

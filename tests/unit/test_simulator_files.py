"""The simulator's files: what is read, what is assumed, and what an error says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from simulator_builders import FLEET, PROFILES, SCALING_FLEET, write_files

from modelless.errors import ConfigurationError
from simulator.facts import INF, GroupSpec
from simulator.files import read_arrivals, read_fleet, read_placement, read_profiles, write_arrivals

ARRIVALS = "arrival_ms,task,latency_ms_max,accuracy_min,on_miss,prefer\n"


def written(folder: Path, text: str, name: str = "x.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_arrivals_are_sorted_and_empty_cells_are_the_contracts_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, ARRIVALS + "20,b,50,0.9,degrade,accuracy\n\n10,a,,,,\n20,c, 1e3 ,0,late,latency\n")
    first, second, third = read_arrivals(path)
    assert (first.index, first.task, first.arrival_ms, first.latency_ms_max) == (0, "a", 10.0, INF)
    assert (first.accuracy_min, first.on_miss, first.prefer, first.deadline_ms) == (None, "reject", "cost", INF)
    assert (second.task, second.deadline_ms, second.accuracy_min) == ("b", 70.0, 0.9)
    assert (second.on_miss, second.prefer) == ("degrade", "accuracy")
    assert (third.index, third.task, third.latency_ms_max, third.accuracy_min) == (2, "c", 1000.0, 0.0)


def test_columns_may_stand_in_any_order_and_the_terms_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes("﻿task , arrival_ms\r\nzwölf,5\r\n".encode())
    (query,) = read_arrivals(path)
    assert (query.task, query.arrival_ms, query.latency_ms_max, query.prefer) == ("zwölf", 5.0, INF, "cost")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = written(tmp_path, ARRIVALS + "0.1,a,33.3,0.25,late,latency\n0.30000000000000004,b,,,,\n")
    asked = read_arrivals(path)
    write_arrivals(tmp_path / "deep" / "again.csv", asked)
    again = read_arrivals(tmp_path / "deep" / "again.csv")
    fields = ("index", "task", "arrival_ms", "latency_ms_max", "accuracy_min", "on_miss", "prefer")
    assert [[getattr(q, f) for f in fields] for q in again] == [[getattr(q, f) for f in fields] for q in asked]


def test_the_last_of_equal_rows_counts(tmp_path: Path) -> None:
    profiles, fleet = write_files(tmp_path)
    profiles.write_text(PROFILES + "digits,m,fast,gpu,4,9,13,0.75,120,450\n")
    fast = read_profiles(profiles).by_key["fast", "gpu"]
    assert (fast.sizes, fast.p50_ms, fast.p99_ms) == ((1, 4), (5.0, 9.0), (6.0, 13.0))
    assert (fast.accuracy, fast.load_ms, fast.memory_mb) == (0.75, 120.0, 450.0)
    fleet.write_text(FLEET + "gpu,3.0,2000,2\n")
    assert read_fleet(fleet) == (GroupSpec("gpu", 3, 2000.0, 2.0), GroupSpec("cpu", 1, 500.0, 0.3))


def test_a_group_with_workers_max_scales(tmp_path: Path) -> None:
    found = read_fleet(written(tmp_path, SCALING_FLEET + "none,0,1,1,,5,,\n"))
    assert found == (
        GroupSpec("gpu", 1, 1000.0, 1.2, 0, 3, 400.0, 2.0),
        GroupSpec("cpu", 1, 500.0, 0.3),
        GroupSpec("none", 0, 1.0, 1.0, 0, 5, 0.0, 0.0),
    )
    assert [spec.scales for spec in found] == [True, False, True]


def test_sizes_come_in_order_and_without_a_p99_there_is_no_tail(tmp_path: Path) -> None:
    head, *rows = PROFILES.splitlines()
    portfolio = read_profiles(written(tmp_path, "\n".join([head, *reversed(rows)])))
    face = portfolio.by_key["face", "gpu"]
    assert (face.sizes, face.p50_ms, face.p99_ms) == ((1, 8), (10.0, 30.0), (10.0, 30.0))
    assert {key[1] for key in portfolio.by_key} == {"gpu", "cpu"}


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        (read_arrivals, "arrival_ms,task\n1,a\nx,b\n", "x.csv:3: arrival_ms: got 'x', expected milliseconds from 0"),
        (read_arrivals, "arrival_ms,task\n-1,a\n", "x.csv:2: arrival_ms: got '-1'"),
        (read_arrivals, "arrival_ms,task\nnan,a\n", "arrival_ms: got 'nan'"),
        (read_arrivals, "arrival_ms,task\ninf,a\n", "arrival_ms: got 'inf'"),
        (read_arrivals, "arrival_ms,task\n1,\n", "x.csv:2: task: got an empty cell, expected a name"),
        (read_arrivals, ARRIVALS + "1,a,0,,,\n", "latency_ms_max: got '0', expected milliseconds above 0"),
        (read_arrivals, ARRIVALS + "1,a,,95,,\n", "accuracy_min: got '95', expected a share from 0 to 1"),
        (read_arrivals, ARRIVALS + "1,a,,,degrad,\n", "on_miss: got 'degrad', .*; did you mean degrade"),
        (read_arrivals, ARRIVALS + "1,a,,,,cheap\n", "prefer: got 'cheap', expected one of cost, accuracy, latency"),
        (read_arrivals, "arrival_ms,tsk\n", "x.csv:1: unknown column 'tsk'; known: .*did you mean task"),
        (read_arrivals, "task\na\n", "missing column arrival_ms; expected: arrival_ms,task,"),
        (read_arrivals, "task,arrival_ms,task\n", "'task' is there twice"),
        (read_arrivals, "arrival_ms,task\n1\n", "x.csv:2: got 1 cells, expected 2"),
        (read_arrivals, "arrival_ms,task\n", "has no rows"),
        (read_arrivals, "", "missing column arrival_ms, task"),
        (read_fleet, FLEET + "new,0,1,1\n", "x.csv:4: workers: got '0', expected a whole number, 1 or more"),
        (read_fleet, FLEET + "new,1.5,1,1\n", "workers: got '1.5'"),
        (read_fleet, FLEET + "new,1,0,1\n", "memory_mb: got '0'"),
        (read_fleet, FLEET + "new,1,1,-0.1\n", "price_per_hour: got '-0.1'"),
        (read_fleet, SCALING_FLEET + "new,4,1,1,,3,,\n", "x.csv:4: workers: got '4', .*, 0 to 3: those at time 0"),
        (read_fleet, SCALING_FLEET + "new,1,1,1,2,3,,\n", "workers: got '1', expected from workers_min"),
        (read_fleet, SCALING_FLEET + "new,0,1,1,,,,\n", "workers: got '0', expected a whole number, 1 or more"),
        (read_fleet, SCALING_FLEET + "new,1,1,1,,,30,\n", "start_ms: got '30', expected nothing: the number .* fixed"),
        (read_fleet, SCALING_FLEET + "new,1,1,1,,2,-1,\n", "start_ms: got '-1'"),
        (read_profiles, PROFILES + "t,m,v,gpu,0,1,1,1,1,1\n", "x.csv:10: batch_size: got '0'"),
        (read_profiles, PROFILES + "t,m,v,gpu,1,0,1,1,1,1\n", "p50_ms: got '0'"),
        (read_profiles, PROFILES + "t,m,v,gpu,1,2,1,1,1,1\n", "p99_ms: got '1', .*not less than p50_ms"),
        (read_profiles, PROFILES + "t,m,v,gpu,1,1,1,70,1,1\n", "accuracy: got '70'"),
        (read_profiles, PROFILES + "t,m,v,gpu,1,1,1,1,,1\n", "load_ms: got an empty cell"),
        (read_profiles, PROFILES + "t,m,v,gpu,1,1,1,1,1,-1\n", "memory_mb: got '-1'"),
        (read_profiles, PROFILES + "faces,m,fast,gpu,1,1,1,1,1,1\n", "variant: got 'fast', .*already of task digits"),
    ],
)  # fmt: skip
def test_an_error_says_where_and_what(tmp_path: Path, read: Callable[[Path], object], text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        read(written(tmp_path, text))


def test_what_is_no_text_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read .*nowhere.csv: No such file"):
        read_arrivals(tmp_path / "nowhere.csv")
    path = tmp_path / "x.csv"
    path.write_bytes(b"arrival_ms,task\n1,\xff\xfe\n")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        read_arrivals(path)
    path.write_bytes(b'arrival_ms,task\n1,"a\x00"b\n')
    with pytest.raises(ConfigurationError):
        read_fleet(path)


def test_a_placement_is_of_this_fleet_profiled_and_fits(tmp_path: Path) -> None:
    profiles, fleet = write_files(tmp_path)
    portfolio, groups = read_profiles(profiles), read_fleet(fleet)

    def read(rows: str) -> object:
        return read_placement(written(tmp_path, "worker,variant\n" + rows), groups, portfolio)

    assert read("gpu-0,fast\ngpu-0,face\ncpu-0,fast\ngpu-0,fast\n") == {"gpu-0": ["fast", "face"], "cpu-0": ["fast"]}
    for rows, said in (
        ("gpu-2,fast\n", "x.csv:2: worker: got 'gpu-2', expected one of gpu-0, gpu-1, cpu-0; did you mean gpu-"),
        ("cpu-0,good\n", "variant: got 'good', expected a variant with a profile on cpu: fast"),
        ("gpu-0,fast\ngpu-0,good\n", "x.csv:3: .*needs 700 MB of the 600 MB still free on gpu-0"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            read(rows)

"""Two halves of an evaluation set that have nothing in common and are alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_builders import X

from workers import evaluation
from workers.evaluation import Evaluation, EvaluationError, halves, read_evaluation, write_calibration


@given(st.lists(st.integers(0, 5), min_size=2, max_size=300))
def test_every_row_is_in_one_half_and_every_class_in_both(labels: list[int]) -> None:
    array = np.array(labels)
    calibration, measuring = halves(array)
    assert sorted([*calibration, *measuring]) == list(range(len(labels)))
    assert len(measuring) - len(calibration) in (0, 1)
    for label in set(labels):
        assert abs(int((array[calibration] == label).sum()) - int((array[measuring] == label).sum())) <= 1


def test_a_sorted_file_is_cut_fairly_and_always_in_the_same_way() -> None:
    labels = np.repeat(np.arange(10), 70)
    first, again = halves(labels), halves(labels)
    assert [half.tolist() for half in first] == [half.tolist() for half in again]
    beginning = np.bincount(labels[first.measuring[:100]], minlength=10)
    assert beginning.min() >= 3


def test_labels_of_more_dimensions() -> None:
    calibration, measuring = halves(np.zeros((7, 3), "i8"))
    assert sorted([*calibration, *measuring]) == list(range(7))


def test_what_builders_see_is_bounded_and_has_no_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.arange(4000, dtype="f4").reshape(1000, 4)
    data = Evaluation({"x": x}, np.zeros(1000, "i8"))
    monkeypatch.setattr(evaluation, "CALIBRATION_ROWS_MAX", 300)
    write_calibration(data, tmp_path / "c.npz")
    with np.load(tmp_path / "c.npz") as archive:
        assert archive.files == ["x"]
        assert archive["x"].shape == (300, 4)
        seen = {tuple(row) for row in archive["x"]}
    measured_on = {tuple(row) for row in data.halves()[1].inputs["x"]}
    assert not seen & measured_on
    monkeypatch.setattr(evaluation, "CALIBRATION_BYTES_MAX", 170)
    assert data.halves()[0].rows == 10


def test_what_cannot_be_used_says_why(tmp_path: Path) -> None:
    np.savez(tmp_path / "good.npz", x=np.ones((3, 4), "f4"), labels=np.ones(3, "i8"))
    assert read_evaluation(tmp_path / "good.npz", [X]).rows == 3
    np.savez(tmp_path / "eval.npz", other=np.ones(3), labels=np.ones(3))
    with pytest.raises(EvaluationError, match="no array for input 'x'; it has"):
        read_evaluation(tmp_path / "eval.npz", [X])
    np.savez(tmp_path / "short.npz", x=np.ones((2, 4), "f4"), labels=np.ones(3))
    with pytest.raises(EvaluationError, match="with 2 rows; expected FP32 with 3"):
        read_evaluation(tmp_path / "short.npz", [X])
    np.savez(tmp_path / "one.npz", x=np.ones((1, 4), "f4"), labels=np.ones(1))
    with pytest.raises(EvaluationError, match="at least 2 rows"):
        read_evaluation(tmp_path / "one.npz", [X])
    np.savez(tmp_path / "pickled.npz", x=np.array([object()]), labels=np.ones(3))
    with pytest.raises(EvaluationError, match="not a readable"):
        read_evaluation(tmp_path / "pickled.npz", [X])

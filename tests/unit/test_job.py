"""Jobs: a data set is asked once, in order, through interruptions and failures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelless.client_core import Result, make_error, make_result, make_tensors
from modelless.codec import decode_reply
from modelless.dataset import ANSWERED, Dataset, open_dataset
from modelless.errors import InvalidArgumentError, ModellessError, NotFoundError, UnavailableError
from modelless.job import ATTEMPTS_MAX, FAILURES_FIRST_MAX, Job, Journal
from modelless.messages import Reply

ASKED = {"task": "t", "prefer": "cost", "metadata": {"job": "j"}}


class Doubling:
    """Stands in for the client: a row's answer is twice its number; ``fail`` may raise for a query's first row."""

    def __init__(self, fail: Callable[[int], None] = lambda row: None, stop_after: int | None = None) -> None:
        self.fail, self.stop_after = fail, stop_after
        self.main: asyncio.Task[None] | None = None
        self.asked: list[int] = []
        self.arguments: list[Mapping[str, Any]] = []

    async def infer(self, inputs: Mapping[str, Any], **arguments: Any) -> Result:
        (x,) = inputs.values()
        row = int(x[0, 0])
        self.asked.append(row)
        self.arguments.append(arguments)
        if self.stop_after is not None and len(self.asked) > self.stop_after:
            assert self.main is not None
            self.main.cancel()
            await asyncio.sleep(60)
        self.fail(row)
        y = np.stack([x[:, 0] * 2, np.full(len(x), 5, x.dtype)], axis=1)
        reply = Reply("c-1", "q/0/1", "OK", outputs=make_tensors({"y": y}), cost=0.5)
        return make_result(reply, 1.0)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelless.job.RETRY_S", 0.0)


def npz(folder: Path, rows: int = 20, **more: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, x=np.arange(rows, dtype=np.float32).reshape(rows, 1), **more)
    return path


def play(data: Dataset, path: Path, client: Any) -> tuple[Job, float | None]:
    """One run of the command; the output lies beside the journal."""
    with Journal(path, data.digest(ASKED), data.queries) as journal:
        job = Job(data, journal, ASKED)

        async def main() -> None:
            client.main = asyncio.current_task()
            await job.run(client)

        asyncio.run(main())
        return job, data.write(path.with_suffix(data.path.suffix), journal.replies(), job.failures)


def test_answers_are_in_the_order_of_the_rows(tmp_path: Path) -> None:
    data = open_dataset(npz(tmp_path, 21, labels=np.array([0] * 20 + [1])), rows_of_query=4)
    assert (data.queries, data.rows, data.rows_of(5)) == (6, 21, 1)
    client = Doubling()
    job, accuracy = play(data, tmp_path / "out.journal", client)
    with np.load(tmp_path / "out.npz") as out:
        assert out.files == ["y"]
        assert out["y"][:, 0].tolist() == [2 * row for row in range(21)]
    assert (job.rows_answered, job.cost_usd) == (21, 3.0)
    assert accuracy == pytest.approx((20 - 3) / 21)  # rows 0, 1, 2 and 20 are argmax 1, 1, 1 (2 * row < 5) and 0
    assert client.arguments[0] == {**ASKED, "offline": True}


def test_what_is_answered_is_not_asked_again(tmp_path: Path) -> None:
    data = open_dataset(npz(tmp_path), rows_of_query=1)
    journal = tmp_path / "out.journal"
    stopped = Doubling(stop_after=7)
    with pytest.raises(asyncio.CancelledError):
        play(data, journal, stopped)
    with journal.open("ab") as file:
        file.write(b"half a frame")
    client = Doubling()
    job, _ = play(data, journal, client)
    assert (job.rows_before, job.rows_answered) == (7, 20)
    assert sorted(stopped.asked[:7] + client.asked) == list(range(20))
    assert job.cost_usd == 10.0
    with np.load(tmp_path / "out.npz") as out:
        assert out["y"][:, 0].tolist() == [2 * row for row in range(20)]


def test_a_damaged_frame_and_what_is_behind_it_are_asked_again(tmp_path: Path) -> None:
    data, journal = open_dataset(npz(tmp_path), rows_of_query=1), tmp_path / "out.journal"
    play(data, journal, Doubling())
    content = bytearray(journal.read_bytes())
    content[len(content) // 2] ^= 0xFF
    journal.write_bytes(content)
    client = Doubling()
    job, _ = play(data, journal, client)
    assert 0 < len(client.asked) < 20
    assert job.rows_answered == 20


def test_a_journal_is_for_one_job_and_one_process(tmp_path: Path) -> None:
    data, path = open_dataset(npz(tmp_path), rows_of_query=1), tmp_path / "out.journal"
    with (
        Journal(path, data.digest(ASKED), data.queries),
        pytest.raises(InvalidArgumentError, match="another run"),
        Journal(path, data.digest(ASKED), data.queries),
    ):
        pass
    other = open_dataset(data.path, rows_of_query=2)
    for digest in (other.digest(ASKED), data.digest({**ASKED, "accuracy_min": 0.9})):
        with pytest.raises(InvalidArgumentError, match="another job"), Journal(path, digest, data.queries):
            pass
    assert data.digest({**ASKED, "metadata": {"job": "renamed"}}) == data.digest(ASKED)


def test_what_may_be_answered_later_is_tried_again_and_then_told(tmp_path: Path) -> None:
    def fail(row: int) -> None:
        if row == 3:
            raise UnavailableError("nobody is there")
        if row == 4:
            raise NotFoundError("no such thing")

    data, client = open_dataset(npz(tmp_path), rows_of_query=1), Doubling(fail)
    job, _ = play(data, tmp_path / "out.journal", client)
    assert (client.asked.count(3), client.asked.count(4)) == (ATTEMPTS_MAX, 1)
    assert job.reasons == {"UNAVAILABLE: nobody is there": 1, "NOT_FOUND: no such thing": 1}
    assert job.rows_failed == 2
    with np.load(tmp_path / "out.npz") as out:
        assert np.flatnonzero(~out[ANSWERED]).tolist() == [3, 4]
    again, _ = play(data, tmp_path / "out.journal", client := Doubling())
    assert (again.failures, sorted(client.asked)) == ({}, [3, 4])


def test_a_job_that_only_fails_ends_soon(tmp_path: Path) -> None:
    def fail(row: int) -> None:
        raise NotFoundError("no such task")

    data, client = open_dataset(npz(tmp_path, 10_000), rows_of_query=1), Doubling(fail)
    with pytest.raises(ModellessError, match="no such task"):
        play(data, tmp_path / "out.journal", client)
    assert len(client.asked) < 2_000
    assert FAILURES_FIRST_MAX < 100


def test_lines_are_queries_and_their_replies(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    lines = [
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [row]}], **more}
        for row, more in enumerate(
            (
                {"id": "first", "parameters": {"metadata": {"of": "me"}}},
                {"parameters": {"model": "m", "accuracy_min": 0.5}},
                {"id": "bad"},
            )
        )
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")

    def fail(row: int) -> None:
        if row == 2:
            raise make_error(Reply("c-3", "q/0/3", "NOT_FOUND", "no such task"))

    data, client = open_dataset(path, 8, {"task": "t"}), Doubling(fail)
    play(data, tmp_path / "out.journal", client)
    by_row = dict(zip(client.asked, client.arguments, strict=True))
    assert (by_row[0]["task"], by_row[0]["metadata"]) == ("t", {"of": "me", "job": "j"})
    assert (by_row[1]["task"], by_row[1]["model"], by_row[1]["accuracy_min"]) == (None, "m", 0.5)
    replies = [decode_reply(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert [(reply.id, reply.status) for reply in replies] == [("first", "OK"), ("2", "OK"), ("bad", "NOT_FOUND")]
    assert replies[0].metadata == {"of": "me"}


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("data.csv", b"1,2", "must be an .npz"),
        ("data.npz", b"no zip", "no readable .npz"),
        ("data.jsonl", b'{"inputs": []}\n', "query 1: "),
        ("data.jsonl", b"", "is empty"),
    ],
)
def test_what_is_no_data_set_is_refused_with_the_reason(
    tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=complaint):
        open_dataset(tmp_path / name, 8)


def test_arrays_have_one_number_of_rows(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="one number of rows"):
        open_dataset(npz(tmp_path, 20, labels=np.zeros(19, np.int64)), 8)

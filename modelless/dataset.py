"""A data set as queries, and their answers in its order: ``.npz`` or ``.jsonl``, told apart by the file's name.

* ``.npz``: arrays named as the inputs, a row each along the first dimension, as in a registration's evaluation file;
  ``labels``, where there are some, are what the answers are compared with. Answers are arrays named as the outputs.
* ``.jsonl``: a query in the contract's JSON form on each line, with an ``id`` or without. Answers are replies in the
  JSON form, a line each, under the same id.

What comes out lies in one file, in the order of what went in; it is written beside it and renamed when it is whole.
"""

from __future__ import annotations

import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelless import json_form
from modelless.client_core import make_result
from modelless.codec import decode_query, encode_reply
from modelless.errors import InvalidArgumentError, ModellessError
from modelless.messages import Query, Reply

Array = NDArray[Any]
LABELS = "labels"
ANSWERED = "answered"
"""Array of an ``.npz`` of answers that says which rows have one; only where some have none."""
_TARGETS = ("task", "model", "variant")
_OPTIONS = ("latency_ms_max", "deadline_ms", "accuracy_min", "cost_max")


class Ask(NamedTuple):
    """One query: what to give :meth:`modelless.client.Client.infer`."""

    inputs: Mapping[str, Array]
    arguments: dict[str, Any]


class Dataset(ABC):
    """The queries of one file, by number.

    Attributes:
        path: of the file.
        queries: how many.
        rows: of all queries.
    """

    path: Path
    queries: int
    rows: int

    @abstractmethod
    def rows_of(self, number: int) -> int: ...

    @abstractmethod
    def ask(self, number: int, options: Mapping[str, Any]) -> Ask:
        """A query; ``options`` are what all of them ask for, unless they say otherwise themselves."""

    @abstractmethod
    def write(
        self, out: Path, answers: Iterable[tuple[int, Reply]], failures: Mapping[int, ModellessError]
    ) -> float | None:
        """Write the answers in the order of the queries; returns the share of right ones where labels tell.

        Args:
            answers: by number, ascending; those that are not among them are in ``failures``.
        """

    def digest(self, options: Mapping[str, Any]) -> str:
        """Of the file's content and of what is asked of it; its metadata changes no answer."""
        with self.path.open("rb") as file:
            content = file_digest(file, "sha256").hexdigest()
        asked = {name: value for name, value in options.items() if value is not None and name != "metadata"}
        return sha256(json.dumps([content, self.queries, asked], sort_keys=True).encode()).hexdigest()


def open_dataset(path: Path, rows_of_query: int, target: Mapping[str, str] | None = None) -> Dataset:
    """The data set in a file.

    Args:
        rows_of_query: so many rows of an ``.npz`` are asked together.
        target: the task, model or variant (by that name) of what names none itself.

    Raises:
        InvalidArgumentError: it is no such file; says what it should be.
    """
    try:
        if path.suffix == ".npz":
            return _Arrays(path, rows_of_query)
        if path.suffix == ".jsonl":
            return _Lines(path, target or {})
    except OSError as error:
        raise InvalidArgumentError(f"--data {path}: cannot be read ({error.strerror})") from None
    raise InvalidArgumentError(f"--data {path}: must be an .npz of arrays, or a .jsonl with a query on each line")


class _Arrays(Dataset):
    def __init__(self, path: Path, rows_of_query: int) -> None:
        self.path, self._rows_of_query = path, rows_of_query
        try:
            with np.load(path, allow_pickle=False) as archive:
                self._inputs = {name: archive[name] for name in archive.files}
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InvalidArgumentError(f"--data {path}: is no readable .npz ({error})") from None
        self._labels = self._inputs.pop(LABELS, None)
        shapes = {name: array.shape for name, array in self._inputs.items()}
        numbers = {shape[0] if shape else 0 for shape in shapes.values()}
        if self._labels is not None:
            numbers.add(len(self._labels))
        if not shapes or len(numbers) > 1 or numbers == {0}:
            raise InvalidArgumentError(
                f"--data {path}: needs arrays named as the inputs with one number of rows each; it has {shapes}"
            )
        self.rows = numbers.pop()
        self.queries = -(-self.rows // rows_of_query)

    def _slice(self, number: int) -> slice:
        return slice(number * self._rows_of_query, min(self.rows, (number + 1) * self._rows_of_query))

    def rows_of(self, number: int) -> int:
        of = self._slice(number)
        return int(of.stop - of.start)

    def ask(self, number: int, options: Mapping[str, Any]) -> Ask:
        of = self._slice(number)
        return Ask({name: array[of] for name, array in self._inputs.items()}, dict(options))

    def write(
        self, out: Path, answers: Iterable[tuple[int, Reply]], failures: Mapping[int, ModellessError]
    ) -> float | None:
        outputs: dict[str, Array] = {}
        right, judged = 0, 0
        for number, reply in answers:
            of = self._slice(number)
            found = make_result(reply, 0.0).outputs
            for name, array in found.items():
                if name not in outputs:
                    outputs[name] = np.zeros((self.rows, *array.shape[1:]), array.dtype)
                if (array.shape[1:], array.dtype) != (outputs[name].shape[1:], outputs[name].dtype):
                    raise InvalidArgumentError(
                        f"output {name!r} is {array.dtype}{list(array.shape[1:])} for some rows and "
                        f"{outputs[name].dtype}{list(outputs[name].shape[1:])} for others, which no .npz holds: "
                        "ask with a .jsonl, or for one --model"
                    )
                outputs[name][of] = array
            first = next(iter(found.values()), None)
            if self._labels is not None and first is not None and first.ndim == self._labels.ndim + 1:
                labels = self._labels[of]
                right += int((first.argmax(axis=-1) == labels).sum())
                judged += labels.size
        if failures:
            outputs[ANSWERED] = np.ones(self.rows, bool)
            for number in failures:
                outputs[ANSWERED][self._slice(number)] = False
        beside = out.with_name(out.name + ".part")
        with beside.open("wb") as file:
            np.savez(file, **outputs)  # type: ignore[arg-type]
        beside.replace(out)
        return right / judged if judged else None


class _Lines(Dataset):
    def __init__(self, path: Path, target: Mapping[str, str]) -> None:
        self.path, self._target = path, target
        self._starts: list[int] = []
        self._rows: list[int] = []
        start = 0
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    self._starts.append(start)
                    self._rows.append(self._query(line, len(self._rows)).inputs[0].shape[0])
                start += len(line)
        if not self._rows:
            raise InvalidArgumentError(f"--data {path}: is empty; put a query in the contract's JSON form on each line")
        self.queries, self.rows = len(self._rows), sum(self._rows)

    def _query(self, line: bytes, number: int) -> Query:
        """Raises InvalidArgumentError naming the line."""
        try:
            document = json_form.load(line.strip())
            document.setdefault("id", str(number + 1))
            parameters = document.setdefault("parameters", {})
            if type(parameters) is dict and parameters.keys().isdisjoint(_TARGETS):
                parameters |= self._target
            return decode_query(json.dumps(document).encode())[0]
        except ModellessError as error:
            raise InvalidArgumentError(f"--data {self.path}, query {number + 1}: {error.message}") from None

    def _at(self, number: int) -> Query:
        with self.path.open("rb") as file:
            file.seek(self._starts[number])
            return self._query(file.readline(), number)

    def rows_of(self, number: int) -> int:
        return self._rows[number]

    def ask(self, number: int, options: Mapping[str, Any]) -> Ask:
        query = self._at(number)
        arguments: dict[str, Any] = {**options, **{name: getattr(query, name) for name in _TARGETS}}
        for name in _OPTIONS:
            if getattr(query, name) is not None:
                arguments[name] = getattr(query, name)
        for name, default in (("prefer", "cost"), ("on_miss", "reject")):
            if getattr(query, name) != default:
                arguments[name] = getattr(query, name)
        arguments["metadata"] = {**query.metadata, **arguments.get("metadata", {})}
        return Ask({tensor.name: tensor.to_numpy() for tensor in query.inputs}, arguments)

    def write(
        self, out: Path, answers: Iterable[tuple[int, Reply]], failures: Mapping[int, ModellessError]
    ) -> float | None:
        beside = out.with_name(out.name + ".part")
        ordered = iter(answers)
        upcoming = next(ordered, None)
        with beside.open("wb") as file:
            for number in range(self.queries):
                reply: Reply | None = None
                if upcoming is not None and upcoming[0] == number:
                    reply, upcoming = upcoming[1], next(ordered, None)
                file.write(_line(self._at(number), reply, failures.get(number)) + b"\n")
        beside.replace(out)
        return None


def _line(query: Query, reply: Reply | None, error: ModellessError | None) -> bytes:
    """The reply under the query's own id; where no reply came, what the client says, without a record."""
    if reply is None and error is not None:
        if error.reply is None:
            return json.dumps(
                {"id": query.id, "parameters": {"status": error.code}, "error": error.message}, ensure_ascii=False
            ).encode()
        reply = error.reply
    assert reply is not None
    return encode_reply(replace(reply, id=query.id, metadata=query.metadata), "json")

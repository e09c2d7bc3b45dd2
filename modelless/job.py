"""A job: each query of a data set is asked offline until it has an answer, however often the job is interrupted.

What is answered is written to a **journal** beside the output as it arrives, so that a job that was stopped, or whose
machine was, goes on where it was: the same command asks only what has no answer yet. A journal belongs to one data set
and one way of asking it; it is gone when every query has its answer.

The journal is a header line and frames: :data:`_FRAME` (number, bytes, cost, check sum of what follows), then the reply
as MessagePack. A frame that was cut off or is damaged, and all behind it, is asked again.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from zlib import crc32

import numpy as np

from modelless.client import Client
from modelless.codec import decode_reply, encode_reply
from modelless.dataset import Dataset
from modelless.errors import InvalidArgumentError, ModellessError
from modelless.messages import Reply

ROWS_IN_FLIGHT = 4096
QUERIES_IN_FLIGHT_MIN, QUERIES_IN_FLIGHT_MAX = 16, 1024
ATTEMPTS_MAX = 5
RETRY_S = 1.0
"""At least, before what might be answered later is asked again; twice as long each time."""
FAILURES_FIRST_MAX = 32
"""Without any answer: then the others would fail as well."""
_FRAME = struct.Struct("<QIdI")
_VERSION = 1


class Journal:
    """The answers that there are already; for one process at a time. Use as a context manager.

    Raises:
        InvalidArgumentError: it is another job's, or another process writes to it.
    """

    def __init__(self, path: Path, digest: str, queries: int) -> None:
        self.path = path
        self._header = json.dumps({"modelless_job": _VERSION, "digest": digest}).encode() + b"\n"
        self._places = np.full(queries, -1, np.int64)
        self.cost_usd = 0.0

    def __enter__(self) -> Self:
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            self._file.close()
            raise InvalidArgumentError(f"another run writes to {self.path} at present: wait for it") from None
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __contains__(self, number: int) -> bool:
        return bool(self._places[number] >= 0)

    def __len__(self) -> int:
        return int((self._places >= 0).sum())

    def add(self, number: int, reply: Reply) -> None:
        """A query was answered."""
        body = encode_reply(reply)
        self._file.seek(0, 2)
        self._places[number] = self._file.tell()
        self._file.write(_FRAME.pack(number, len(body), reply.cost or 0.0, crc32(body)) + body)
        self.cost_usd += reply.cost or 0.0

    def flush(self) -> None:
        self._file.flush()

    def replies(self) -> Iterator[tuple[int, Reply]]:
        """All there are, by number, ascending."""
        self.flush()
        for number in np.flatnonzero(self._places >= 0).tolist():
            self._file.seek(self._places[number])
            _, size, _, _ = _FRAME.unpack(self._file.read(_FRAME.size))
            yield number, decode_reply(self._file.read(size), bytes_max=size)

    def remove(self) -> None:
        """Every query has its answer, and they are written elsewhere."""
        self.path.unlink()

    def _read(self) -> None:
        self._file.seek(0)
        header = self._file.readline()
        if header and header != self._header:
            raise InvalidArgumentError(
                f"{self.path} is the journal of another job, of other data or asked in another way: "
                "give another --out, or delete it to begin anew"
            )
        if not header:
            self._file.write(self._header)
            self._file.flush()
            return
        whole = self._file.tell()
        while len(head := self._file.read(_FRAME.size)) == _FRAME.size:
            number, size, cost, check = _FRAME.unpack(head)
            body = self._file.read(size)
            if len(body) < size or crc32(body) != check or number >= len(self._places):
                break
            self._places[number] = whole
            self.cost_usd += cost
            whole = self._file.tell()
        self._file.truncate(whole)


class Job:
    """Asks what the journal lacks; figures may be read while :meth:`run` does.

    Args:
        options: what every query asks for, as arguments of :meth:`modelless.client.Client.infer`.
    """

    def __init__(self, data: Dataset, journal: Journal, options: Mapping[str, Any]) -> None:
        self._data, self._journal = data, journal
        self._options = {**options, "offline": True}
        self._left = iter([number for number in range(data.queries) if number not in journal])
        self.rows_before = sum(data.rows_of(number) for number in range(data.queries) if number in journal)
        """That an earlier run has answered."""
        self.rows_answered = self.rows_before
        self.rows_failed = 0
        self.failures: dict[int, ModellessError] = {}

    @property
    def cost_usd(self) -> float:
        """Of all answers, those of earlier runs included."""
        return self._journal.cost_usd

    @property
    def reasons(self) -> Counter[str]:
        """Of the failures, in words."""
        return Counter(f"{error.code}: {error.message}" for error in self.failures.values())

    async def run(self, client: Client) -> None:
        """Until every query has an answer or has failed for good.

        Raises:
            ModellessError: the first queries all failed; the first one's error.
        """
        rows_mean = max(1, self._data.rows // self._data.queries)
        lanes = min(max(ROWS_IN_FLIGHT // rows_mean, QUERIES_IN_FLIGHT_MIN), QUERIES_IN_FLIGHT_MAX)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(lanes, self._data.queries)):
                    group.create_task(self._lane(client))
        except* ModellessError as errors:
            raise errors.exceptions[0] from None
        finally:
            self._journal.flush()

    async def _lane(self, client: Client) -> None:
        """One query after another."""
        for number in self._left:
            try:
                reply = await self._answer(client, number)
            except ModellessError as error:
                self.failures[number] = error
                self.rows_failed += self._data.rows_of(number)
                if len(self.failures) >= FAILURES_FIRST_MAX and not self.rows_answered:
                    raise
            else:
                self._journal.add(number, reply)
                self.rows_answered += self._data.rows_of(number)

    async def _answer(self, client: Client, number: int) -> Reply:
        inputs, arguments = self._data.ask(number, self._options)
        attempt = 1
        while True:
            try:
                return (await client.infer(inputs, **arguments)).reply
            except ModellessError as error:
                if not error.retriable or attempt == ATTEMPTS_MAX:
                    raise
                await asyncio.sleep(max(RETRY_S * 2 ** (attempt - 1), (error.retry_after_ms or 0.0) / 1000))
                attempt += 1

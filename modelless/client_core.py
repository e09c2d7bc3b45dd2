"""What a client knows about its outstanding queries: matching, de-duplication, time limits. Pure; time is an argument.

Words:

* **outstanding**: sent (or about to be) and not settled. Its id is ``<client id>-<n>``, so a reply's
  ``modelless-id`` header tells at a glance whether it is ours.
* **settled**: answered, expired or cancelled; whichever comes first removes it, so a second reply to the same id
  (a query that ran twice after a crash, a record that was sent twice) finds nothing: the first one wins.
* **tick**: time limits are kept in buckets of ``TICK_MS``, so that adding and settling are O(1) and nothing is left
  behind by queries that were answered in time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modelless.codec import FEEDBACK_ROWS_MAX
from modelless.errors import InvalidArgumentError, ModellessError, error_for
from modelless.messages import ON_MISS, PREFERENCES, Feedback, OnMiss, Query, Reply
from modelless.tensors import Tensor, rows

TICK_MS = 20.0
LATENCY_MS_DEFAULT = 30_000.0
"""What brokers take for queries that state no latency, unless the operator says otherwise."""
GRACE_MS = 5_000.0
"""For the way back: how long after its deadline a query's own error reply is still waited for."""
OFFLINE_WAIT_MS = 7 * 24 * 3_600_000.0
"""For the reply to a query without a deadline: as long as its topic keeps it by default."""


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to one query."""

    outputs: Mapping[str, NDArray[Any]]
    """By name; the first dimension is the batch, as in the inputs. Read-only views."""
    status: str
    model: str | None
    version: int | None
    variant: str | None
    group: str | None
    accuracy: float | None
    """Of the variant, on the task's evaluation set."""
    cost: float | None
    """USD attributed to this query."""
    batch_size: int | None
    queue_ms: float | None
    execute_ms: float | None
    missed: tuple[str, ...]
    """Constraints that were given up: ``latency``, ``accuracy``."""
    latency_ms: float
    """From the call to the reply's arrival, by this process' clock."""
    reply: Reply = field(repr=False)

    @property
    def output(self) -> NDArray[Any]:
        """The first output."""
        return next(iter(self.outputs.values()))


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    outstanding: int
    outstanding_bytes: int
    sent: int
    answered: int
    expired: int
    cancelled: int
    duplicates: int
    """Replies to queries of ours that were already settled."""
    foreign: int
    """Records of the reply partition that are somebody else's."""


class Item(Protocol):
    """What is kept per outstanding query."""

    id: str
    size_bytes: int


T = TypeVar("T", bound=Item)


class Outstanding(Generic[T]):
    """The outstanding queries of one client."""

    def __init__(self, client_id: str, outstanding_max: int, bytes_max: int) -> None:
        self._prefix = f"{client_id}-"
        self._prefix_bytes = self._prefix.encode()
        self._outstanding_max = outstanding_max
        self._bytes_max = bytes_max
        self._items: dict[str, tuple[T, int]] = {}
        self._buckets: dict[int, dict[str, None]] = {}
        self._ticks: list[int] = []
        self._bytes = 0
        self._sent = self._answered = self._expired = self._cancelled = self._duplicates = self._foreign = 0

    def next_id(self) -> str:
        self._sent += 1
        return f"{self._prefix}{self._sent}"

    @property
    def is_full(self) -> bool:
        return len(self._items) >= self._outstanding_max or self._bytes >= self._bytes_max

    def add(self, item: T, expires_ms: float) -> None:
        """``expires_ms``: by the clock that :meth:`expire` is called with."""
        tick = int(expires_ms // TICK_MS) + 1
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = {}
            heapq.heappush(self._ticks, tick)
        bucket[item.id] = None
        self._items[item.id] = (item, tick)
        self._bytes += item.size_bytes

    def match(self, id_bytes: bytes | None) -> T | None:
        """The query that a reply with this ``modelless-id`` header settles; None when it is not (or no longer) one."""
        if id_bytes is None or not id_bytes.startswith(self._prefix_bytes):
            self._foreign += 1
            return None
        item = self._remove(id_bytes.decode("utf-8", "replace"))
        if item is None:
            self._duplicates += 1
        else:
            self._answered += 1
        return item

    def cancel(self, id: str) -> bool:
        """Forget a query that nobody waits for; False when it is settled already."""
        cancelled = self._remove(id) is not None
        self._cancelled += cancelled
        return cancelled

    def expire(self, now_ms: float) -> list[T]:
        """Remove and return what has run out of time."""
        expired: list[T] = []
        while self._ticks and self._ticks[0] * TICK_MS <= now_ms:
            expired.extend(self._items.pop(id)[0] for id in self._buckets.pop(heapq.heappop(self._ticks)))
        self._bytes -= sum(item.size_bytes for item in expired)
        self._expired += len(expired)
        return expired

    def wake_at_ms(self) -> float | None:
        """When :meth:`expire` may next have something to do."""
        return self._ticks[0] * TICK_MS if self._ticks else None

    def drain(self) -> list[T]:
        """Remove and return everything: the client is closing."""
        items = [item for item, _ in self._items.values()]
        self._items.clear()
        self._buckets.clear()
        self._ticks.clear()
        self._bytes = 0
        return items

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, id: str) -> bool:
        return id in self._items

    def statistics(self) -> ClientStatistics:
        return ClientStatistics(
            outstanding=len(self._items),
            outstanding_bytes=self._bytes,
            sent=self._sent,
            answered=self._answered,
            expired=self._expired,
            cancelled=self._cancelled,
            duplicates=self._duplicates,
            foreign=self._foreign,
        )

    def _remove(self, id: str) -> T | None:
        found = self._items.pop(id, None)
        if found is None:
            return None
        item, tick = found
        self._buckets[tick].pop(id)
        self._bytes -= item.size_bytes
        return item


def wait_ms(latency_ms_max: float | None, on_miss: OnMiss) -> float:
    """How long to wait for a reply when the caller does not say.

    A query that may be late is answered at the latest after the brokers' default bound, others at their deadline.
    """
    bound_ms = LATENCY_MS_DEFAULT if latency_ms_max is None else latency_ms_max
    return (max(bound_ms, LATENCY_MS_DEFAULT) if on_miss == "late" else bound_ms) + GRACE_MS


def reply_partition(client_id: str, partitions: int) -> int:
    """The partition of the reply topic that a client reads; spreads clients evenly."""
    return int.from_bytes(sha256(client_id.encode()).digest()[:8], "big") % partitions


def reply_id(headers: Iterable[tuple[str, bytes]]) -> bytes | None:
    for name, value in headers:
        if name == "modelless-id":
            return value
    return None


def make_tensors(inputs: Mapping[str, ArrayLike]) -> tuple[Tensor, ...]:
    """Arrays by input name as tensors.

    Raises:
        InvalidArgumentError: no mapping, a dtype that does not travel, an empty or 0-dimensional array, or arrays
            that disagree on the number of rows.
    """
    if not isinstance(inputs, Mapping) or not inputs:
        raise InvalidArgumentError('inputs: give a mapping of input names to arrays, like {"pixels": array}')
    tensors = tuple(Tensor.from_numpy(name, np.asarray(value)).check() for name, value in inputs.items())
    rows(tensors)
    return tensors


def check_query(query: Query) -> Query:
    """Refuse at the caller what brokers would refuse anyway. Raises InvalidArgumentError naming the argument."""
    if sum(target is not None for target in (query.task, query.model, query.variant)) != 1:
        raise InvalidArgumentError("give exactly one of task, model and variant")
    if query.latency_ms_max is not None and not query.latency_ms_max > 0:
        raise InvalidArgumentError(f"latency_ms_max must be more than 0, got {query.latency_ms_max}")
    if query.accuracy_min is not None and not 0 <= query.accuracy_min <= 1:
        raise InvalidArgumentError(f"accuracy_min must be 0 to 1, got {query.accuracy_min}")
    if query.cost_max is not None and not query.cost_max >= 0:
        raise InvalidArgumentError(f"cost_max must be 0 or more, got {query.cost_max}")
    if query.prefer not in PREFERENCES:
        raise InvalidArgumentError(f"prefer must be one of {', '.join(PREFERENCES)}, got {query.prefer!r}")
    if query.on_miss not in ON_MISS:
        raise InvalidArgumentError(f"on_miss must be one of {', '.join(ON_MISS)}, got {query.on_miss!r}")
    return query


def make_result(reply: Reply, latency_ms: float) -> Result:
    return Result(
        outputs={tensor.name: tensor.to_numpy() for tensor in reply.outputs},
        status=reply.status,
        model=reply.model,
        version=reply.version,
        variant=reply.variant,
        group=reply.group,
        accuracy=reply.accuracy,
        cost=reply.cost,
        batch_size=reply.batch_size,
        queue_ms=reply.queue_ms,
        execute_ms=reply.execute_ms,
        missed=reply.missed,
        latency_ms=latency_ms,
        reply=reply,
    )


def make_feedback(result: Result, labels: ArrayLike) -> Feedback:
    """The truth about one answer; what was predicted is the argmax of its first output, as where accuracy is measured.

    Args:
        labels: integers of the shape of the first output without its last dimension: [rows], as a rule.

    Raises:
        InvalidArgumentError: the answer holds no prediction, or the labels do not fit it.
    """
    if result.variant is None or not result.outputs or result.output.ndim < 2:
        raise InvalidArgumentError("result: feedback needs an answer whose first output is [rows, classes]")
    right, found = np.asarray(labels), result.output.argmax(axis=-1)
    if right.dtype.kind not in "iu" or right.shape != found.shape:
        raise InvalidArgumentError(
            f"labels must be integers of shape {list(found.shape)}, one for each prediction; "
            f"got {right.dtype} of shape {list(right.shape)}"
        )
    if right.size > FEEDBACK_ROWS_MAX:
        raise InvalidArgumentError(f"labels: one answer takes at most {FEEDBACK_ROWS_MAX}, got {right.size}")
    return Feedback(result.reply.query, result.variant, tuple(found.ravel().tolist()), tuple(right.ravel().tolist()))


def make_error(reply: Reply) -> ModellessError:
    """The typed error of a reply that is not OK, with the reply attached."""
    error = error_for(reply.status, reply.message or reply.status, reply.retry_after_ms)
    error.reply = reply
    return error

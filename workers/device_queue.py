"""The worker owns its device: what waits for it, who sent it, what runs next. Pure; events in, instructions out.

Words:

* **link**: one connection to one broker. What it sent is its own; when it is lost, what waits is dropped (the broker
  has it again) and only what runs is finished.
* **batch**: what a broker sent as one. It is *settled* when each of its items has an outcome.
* **piece**: some items of one batch that wait to run together. A batch starts as one piece; expiry and cancellation
  take items out of it, a bad end cuts it (:mod:`workers.bisect`).
* **run**: a piece on the device. One at a time, earliest deadline first.

The shell calls the event methods, then :meth:`DeviceQueue.poll`, and carries out what that returns; it calls ``poll``
again at :meth:`DeviceQueue.wake_at_ms`. All times are Kafka time in milliseconds, as the deadlines are.

Every item that is pushed gets exactly one of: a place in a :class:`Run` that ends in :meth:`DeviceQueue.ran`, an
:class:`Answer`, a ``returned`` outcome, or the loss of its link.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import inf

from modelless.frames import (
    Batch,
    BatchTensor,
    CancelItems,
    Credit,
    Demand,
    Frame,
    Item,
    ItemOutcome,
    Outcome,
)
from workers import rows
from workers.bisect import Culprit, after_bad_end
from workers.credit import Cap, divide

CREDIT_RISE_MIN, CREDIT_FALL_MIN = 0.1, 0.5
"""A window that rose or fell by less than this share is not announced: a frame costs more than it would gain."""


@dataclass(frozen=True, slots=True)
class Run:
    """Execute these items now; then call ``ran``, ``failed`` or ``crashed``."""

    link: int
    batch: Batch
    indices: tuple[int, ...]
    started_ms: float
    quarantined: bool = False

    @property
    def items(self) -> Sequence[Item]:
        items = self.batch.items
        return items if len(self.indices) == len(items) else [items[i] for i in self.indices]

    @property
    def rows(self) -> int:
        return sum(item.rows for item in self.items)

    @property
    def inputs(self) -> tuple[BatchTensor, ...]:
        return rows.gather(self.batch, self.indices)


@dataclass(frozen=True, slots=True)
class Answer:
    """Publish an error reply for each of these items; then call ``settled``."""

    link: int
    batch: Batch
    items: tuple[Item, ...]
    status: str
    message: str
    poisoned: bool = False


@dataclass(frozen=True, slots=True)
class Tell:
    """Send this frame to the broker."""

    link: int
    frame: Frame


Instruction = Run | Answer | Tell


@dataclass(slots=True)
class _Held:
    """A batch that is not settled."""

    link: int
    batch: Batch
    unsettled: int
    execute_ms: float = 0.0
    rows_run: int = 0
    predictions: tuple[int, ...] = ()


@dataclass(slots=True)
class _Piece:
    held: _Held
    indices: tuple[int, ...]
    deadline_ms: float
    order: int
    quarantined: bool = False


@dataclass(slots=True)
class _Link:
    demand: Demand | None = None
    window_ms: float = -1.0


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    queued_items: int
    queued_batches: int
    backlog_ms: float
    running: bool
    unsettled_items: int
    cap_ms: float


class DeviceQueue:
    """See the module. ``lead_ms``: work kept waiting behind the batch that runs."""

    def __init__(self, lead_ms: float) -> None:
        self._cap = Cap(lead_ms)
        self._links: dict[int, _Link] = {}
        self._held: dict[tuple[int, int], _Held] = {}
        self._pieces: list[_Piece] = []
        self._running: _Piece | None = None
        self._run_started_ms = 0.0
        self._ready: frozenset[str] = frozenset()
        self._regrant = True
        """Something has changed that windows follow from."""
        self._granted_ms = 0.0
        self._out: list[Instruction] = []
        self._order = 0
        self._device_up = False
        self._quarantine_up = False
        self._paused = False
        self._draining = False

    # --- events ---------------------------------------------------------------------------------------------------

    def link_up(self, link: int) -> None:
        """A broker is there; it gets credit at the next poll."""
        self._regrant = True
        self._links[link] = _Link()

    def link_lost(self, link: int) -> None:
        """Its broker is gone or has everything again: drop what waits. What runs is finished, its replies are true."""
        self._regrant = True
        self._links.pop(link, None)
        self._pieces = [piece for piece in self._pieces if piece.held.link != link]
        self._held = {key: held for key, held in self._held.items() if key[0] != link}

    def demand(self, link: int, demand: Demand) -> None:
        """How urgent a broker's queue is."""
        if link in self._links:
            self._links[link].demand = demand
            self._regrant = True

    def push(self, link: int, batch: Batch) -> None:
        """A batch arrived. It is returned at once when it cannot run here: not loaded, draining, or not a batch."""
        if link not in self._links or (link, batch.batch) in self._held:
            return
        held = self._held[link, batch.batch] = _Held(link, batch, len(batch.items))
        reason = rows.check(batch)
        if reason is None and batch.variant not in self._ready:
            reason = f"{batch.variant} is not loaded here"
        if reason is None and self._draining:
            reason = "draining"
        indices = tuple(range(len(batch.items)))
        if reason is not None:
            self._give_back(held, indices, reason)
            return
        if not batch.shadow:  # it takes no credit
            self._cap.observe_cost(batch.cost_ms)
        self._enqueue(held, indices)

    def cancel(self, link: int, frame: CancelItems) -> None:
        """Answer CANCELLED for the named items that have not started."""
        wanted = set(frame.records)
        for piece in list(self._pieces):
            held = piece.held
            if held.link == link and held.batch.batch == frame.batch:
                gone = [i for i in piece.indices if held.batch.items[i].record in wanted]
                self._answer(piece, gone, "CANCELLED", "cancelled before it started")

    def ready(self, variants: Collection[str]) -> None:
        """The variants that may be sent here; what waits for others is returned."""
        self._ready = frozenset(variants)
        for piece in [p for p in self._pieces if p.held.batch.variant not in self._ready]:
            self._pieces.remove(piece)
            self._give_back(piece.held, piece.indices, f"{piece.held.batch.variant} was unloaded")

    def device(self, up: bool) -> None:
        """Whether the serving executor can run something."""
        self._device_up = up

    def quarantine(self, up: bool) -> None:
        """Whether a quarantined executor can run something."""
        self._quarantine_up = up

    def pause(self, paused: bool) -> None:
        """While replies cannot be written, nothing new starts and nobody has credit."""
        self._paused = paused
        self._regrant = True

    def drain(self) -> None:
        """Return all that waits and whatever still arrives."""
        self._draining = self._regrant = True
        pieces, self._pieces = self._pieces, []
        for piece in pieces:
            self._give_back(piece.held, piece.indices, "draining")

    def ran(self, execute_ms: float, predictions: tuple[int, ...] = ()) -> None:
        """The run ended well; the shell publishes its replies, unless it was a shadow's.

        ``predictions`` are what the batch asked for; they are told only when it ran as a whole.
        """
        piece = self._stop(execute_ms)
        held, items = piece.held, piece.held.batch.items
        held.rows_run += sum(items[i].rows for i in piece.indices)
        if len(piece.indices) == len(items):
            held.predictions = predictions
        if held.batch.shadow and self._is_held(held):
            self._settle(held, tuple(ItemOutcome(items[i].record, "answered", "OK") for i in piece.indices))

    def failed(self, execute_ms: float) -> None:
        """The model raised an error."""
        self._ended_badly(self._stop(execute_ms), crashed=False)

    def crashed(self, execute_ms: float) -> None:
        """The executor died or hung."""
        piece = self._stop(execute_ms)
        if piece.quarantined:
            self._quarantine_up = False
        else:
            self._device_up = False
        self._ended_badly(piece, crashed=True)

    def interrupted(self) -> None:
        """The run never began (its executor was gone already): it waits again."""
        piece = self._stop(0.0)
        if self._is_held(piece.held):
            self._pieces.append(piece)

    def settled(self, link: int, batch: int, outcomes: Sequence[ItemOutcome]) -> None:
        """Kafka acknowledged (or finally refused) the replies of these items: tell the broker."""
        held = self._held.get((link, batch))
        if held is not None:
            self._settle(held, tuple(outcomes))

    # --- what follows ---------------------------------------------------------------------------------------------

    def poll(self, now_ms: float) -> list[Instruction]:
        """Expire, start, grant; everything that the shell has to do now, in order."""
        self._expire(now_ms)
        self._start(now_ms)
        self._grant(now_ms)
        out, self._out = self._out, []
        return out

    def wake_at_ms(self) -> float | None:
        """When the next waiting item expires; None: nothing to wake for."""
        earliest = min((piece.deadline_ms for piece in self._pieces), default=inf)
        return None if earliest == inf else earliest

    @property
    def running(self) -> bool:
        return self._running is not None

    @property
    def idle(self) -> bool:
        """Nothing runs, and nothing that waits could run now."""
        return self._running is None and not any(self._runnable(piece) for piece in self._pieces)

    @property
    def drained(self) -> bool:
        return self._draining and self._running is None and not self._held

    def holds(self, variant: str) -> bool:
        """Whether a batch of the variant waits or runs."""
        pieces = self._pieces if self._running is None else [*self._pieces, self._running]
        return any(piece.held.batch.variant == variant for piece in pieces)

    def suspects(self) -> tuple[str, ...]:
        """The variants that something waits or runs for on a quarantined executor."""
        pieces = self._pieces if self._running is None else [*self._pieces, self._running]
        return tuple(sorted({piece.held.batch.variant for piece in pieces if piece.quarantined}))

    def statistics(self) -> QueueStatistics:
        running = [] if self._running is None else [self._running]
        return QueueStatistics(
            queued_items=sum(len(piece.indices) for piece in self._pieces),
            queued_batches=len(self._pieces),
            backlog_ms=sum(_cost_ms(piece) for piece in (*self._pieces, *running)),
            running=bool(running),
            unsettled_items=sum(held.unsettled for held in self._held.values()),
            cap_ms=self._cap.cap_ms,
        )

    # --- inside ---------------------------------------------------------------------------------------------------

    def _enqueue(self, held: _Held, indices: tuple[int, ...], quarantined: bool = False) -> None:
        self._order += 1
        self._regrant = True
        self._pieces.append(_Piece(held, indices, _deadline_ms(held.batch, indices), self._order, quarantined))

    def _expire(self, now_ms: float) -> None:
        for piece in [p for p in self._pieces if p.deadline_ms <= now_ms]:
            items = piece.held.batch.items
            gone = [i for i in piece.indices if (d := items[i].deadline_ms) is not None and d <= now_ms]
            self._answer(piece, gone, "DEADLINE_EXCEEDED", "its deadline passed before it could start at the worker")

    def _answer(self, piece: _Piece, gone: Sequence[int], status: str, message: str) -> None:
        """Take the items out of the piece and answer them."""
        if not gone:
            return
        held = piece.held
        piece.indices = tuple(i for i in piece.indices if i not in set(gone))
        if piece.indices:
            piece.deadline_ms = _deadline_ms(held.batch, piece.indices)
        else:
            self._pieces.remove(piece)
            self._regrant = True
        items = tuple(held.batch.items[i] for i in gone)
        self._out.append(Answer(held.link, held.batch, items, status, message))

    def _runnable(self, piece: _Piece) -> bool:
        return not self._paused and (self._quarantine_up if piece.quarantined else self._device_up)

    def _start(self, now_ms: float) -> None:
        if self._running is not None:
            return
        runnable = [piece for piece in self._pieces if self._runnable(piece)]
        if not runnable:
            return
        piece = min(runnable, key=lambda p: (p.held.batch.shadow, p.deadline_ms, p.order))
        self._pieces.remove(piece)
        self._running, self._run_started_ms = piece, now_ms
        held = piece.held
        self._out.append(Run(held.link, held.batch, piece.indices, now_ms, piece.quarantined))

    def _stop(self, execute_ms: float) -> _Piece:
        piece, self._running = self._running, None
        assert piece is not None, "nothing was running"
        piece.held.execute_ms += execute_ms
        self._regrant = True
        return piece

    def _ended_badly(self, piece: _Piece, *, crashed: bool) -> None:
        held = piece.held
        if not self._is_held(held):
            return
        if held.batch.shadow:  # who is to blame is not looked for
            items = [held.batch.items[i] for i in piece.indices]
            self._settle(held, tuple(ItemOutcome(item.record, "returned", "INTERNAL", "it failed") for item in items))
            return
        verdict = after_bad_end(piece.indices, crashed=crashed, quarantined=piece.quarantined)
        if isinstance(verdict, Culprit):
            message = (
                "this query brings the model's executor down"
                if verdict.poisoned
                else f"{held.batch.variant} raised an error on this query's inputs"
            )
            item = held.batch.items[verdict.index]
            self._out.append(Answer(held.link, held.batch, (item,), "INTERNAL", message, verdict.poisoned))
            return
        for part in verdict.parts:
            if self._draining:
                self._give_back(held, part, "draining")
            else:
                self._enqueue(held, part, verdict.quarantined)

    def _is_held(self, held: _Held) -> bool:
        return self._held.get((held.link, held.batch.batch)) is held

    def _give_back(self, held: _Held, indices: Iterable[int], reason: str) -> None:
        items = held.batch.items
        self._settle(held, tuple(ItemOutcome(items[i].record, "returned", "UNAVAILABLE", reason) for i in indices))

    def _settle(self, held: _Held, outcomes: tuple[ItemOutcome, ...]) -> None:
        held.unsettled -= len(outcomes)
        assert held.unsettled >= 0, "an item was settled twice"
        final = held.unsettled == 0
        rest_ok = final and all(o.status == "OK" and o.disposition == "answered" for o in outcomes)
        items = () if rest_ok else outcomes
        predictions = held.predictions if rest_ok and len(outcomes) == len(held.batch.items) else ()
        frame = Outcome(held.batch.batch, final, held.execute_ms, held.rows_run, items, rest_ok, predictions)
        held.execute_ms, held.rows_run = 0.0, 0
        self._out.append(Tell(held.link, frame))
        self._regrant = True
        if final:
            del self._held[held.link, held.batch.batch]

    def _grant(self, now_ms: float) -> None:
        """Announce windows that changed noticeably. What is being published counts only for who waits for credit."""
        if not self._regrant and (now_ms == self._granted_ms or len(self._links) == 1):
            return  # only what several brokers ask for changes with time
        self._regrant, self._granted_ms = False, now_ms
        cap_ms = 0.0 if self._paused or self._draining else self._cap.cap_ms
        demands = {number: link.demand for number, link in self._links.items()}
        publishing_ms = self._publishing_ms()
        for number, share_ms in divide(cap_ms, demands, now_ms).items():
            link = self._links[number]
            waits = link.demand is not None and link.demand.backlog_ms > 0
            window_ms = share_ms + publishing_ms.get(number, 0.0) if cap_ms and waits else share_ms
            change_ms = window_ms - link.window_ms
            if change_ms > CREDIT_RISE_MIN * link.window_ms or -change_ms > CREDIT_FALL_MIN * link.window_ms:
                link.window_ms = window_ms
                self._out.append(Tell(number, Credit(window_ms)))

    def _publishing_ms(self) -> dict[int, float]:
        """By link, what has left the device and is not settled."""
        on_device = {id(piece.held) for piece in self._pieces}
        if self._running is not None:
            on_device.add(id(self._running.held))
        publishing_ms: dict[int, float] = {}
        for held in self._held.values():
            if id(held) not in on_device:
                publishing_ms[held.link] = publishing_ms.get(held.link, 0.0) + held.batch.cost_ms
        return publishing_ms


def _deadline_ms(batch: Batch, indices: Iterable[int]) -> float:
    return min((d for i in indices if (d := batch.items[i].deadline_ms) is not None), default=inf)


def _cost_ms(piece: _Piece) -> float:
    batch = piece.held.batch
    return batch.cost_ms * len(piece.indices) / len(batch.items)

"""The worker owns its device: what waits for it, who sent it, what runs next. Pure; events in, instructions out.

Words:

* **link**: one connection to one broker. What it sent is its own; when it is lost, what waits is dropped (the broker
  has it again) and only what runs is finished.
* **batch**: what a broker sent as one. It is *settled* when each of its items has an outcome.
* **piece**: some items of one batch that wait to run together. A batch starts as one piece; expiry and cancellation
  take items out of it, a bad end cuts it (:mod:`workers.bisect`).
* **run**: what the device runs at once, one run at a time: the piece with the earliest deadline and whatever fits to it
  (:meth:`DeviceQueue._company`). Each of several brokers has only a part of the load; together they should make the
  batches that one broker would make.

The shell calls the event methods, then :meth:`DeviceQueue.poll`, and carries out what that returns; it calls ``poll``
again at :meth:`DeviceQueue.wake_at_ms`. All times are Kafka time in milliseconds, as the deadlines are.

Every item that is pushed gets exactly one of: a place in a :class:`Run` that ends in :meth:`DeviceQueue.ran`, an
:class:`Answer`, a ``returned`` outcome, or the loss of its link.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from math import inf
from typing import Final

from modelless.frames import (
    Backlog,
    Batch,
    BatchTensor,
    Call,
    CancelItems,
    Credit,
    Demand,
    Frame,
    Item,
    ItemOutcome,
    Outcome,
    Recall,
)
from modelless.messages import RecordId
from workers import rows
from workers.bisect import Culprit, after_bad_end
from workers.credit import Cap, divide

CREDIT_RISE_MIN: Final = 0.1
CREDIT_FALL_MIN: Final = 0.5
"""A window that rose or fell by less than this share is not announced: a frame costs more than it would gain."""
BACKLOG_SHARE_MIN: Final = 0.2
BACKLOG_MS_MIN: Final = 1.0
"""A broker that is wrong by less about what the device has to do is not told."""
DEMAND_SHARE_MIN: Final = 0.5
"""Likewise about what the other brokers have queued."""
CALL_SHARE: Final = 2.0
"""Times its part of the room, by its queue, is what a broker is called for: some have nothing of that variant."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a run has of one batch."""

    link: int
    batch: Batch
    indices: tuple[int, ...]

    @property
    def items(self) -> Sequence[Item]:
        items = self.batch.items
        return items if len(self.indices) == len(items) else [items[i] for i in self.indices]

    @property
    def rows(self) -> int:
        return sum(item.rows for item in self.items)


@dataclass(frozen=True, slots=True)
class Run:
    """Execute these items now; then call ``ran``, ``failed`` or ``crashed``."""

    parts: tuple[Part, ...]
    """At least one, all of one variant; its outcomes are told to each part's link for itself."""
    started_ms: float
    quarantined: bool = False

    @property
    def variant(self) -> str:
        return self.parts[0].batch.variant

    @property
    def shadow(self) -> bool:
        return self.parts[0].batch.shadow

    @property
    def length(self) -> int:
        """That its rows are padded to; 0: they are not."""
        return self.parts[0].batch.length

    @property
    def cuts(self) -> tuple[tuple[int, int], ...]:
        return self.parts[0].batch.cuts

    @property
    def predicts(self) -> bool:
        return any(part.batch.predicts for part in self.parts)

    @property
    def items(self) -> list[Item]:
        return [item for part in self.parts for item in part.items]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def inputs(self) -> tuple[BatchTensor, ...]:
        return rows.joined([rows.gather(part.batch, part.indices) for part in self.parts])


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


@dataclass(slots=True, eq=False)
class _Held:
    """A batch that is not settled."""

    link: int
    batch: Batch
    unsettled: int
    execute_ms: float = 0.0
    rows_run: int = 0
    predictions: tuple[int, ...] = ()
    unwanted: frozenset[RecordId] = frozenset()
    """Somebody else has answered these; what of them runs is given back when it ends."""


@dataclass(slots=True, eq=False)
class _Piece:
    held: _Held
    indices: tuple[int, ...]
    deadline_ms: float
    order: int
    quarantined: bool = False
    half: int = 0
    """Of which run that ended badly, lest its halves run together again; 0: of none."""

    @property
    def rows(self) -> int:
        items = self.held.batch.items
        return sum([items[i].rows for i in self.indices])

    @property
    def is_offline(self) -> bool:
        """Waits for whatever has a deadline."""
        items = self.held.batch.items
        return self.deadline_ms == inf and all(items[i].latency_deadline_ms is None for i in self.indices)


@dataclass(slots=True)
class _Link:
    demand: Demand | None = None
    window_ms: float = -1.0
    last_batch: int = 0
    ends_ms: float = -inf
    """When it must think that the device has run all that it has: what it was told, and what it sent since."""
    others_ms: float = 0.0
    """What it was told that the others have queued."""

    is_next: bool = True
    """Whether it was told that it has the most urgent work of all."""

    def deadline_ms(self, now_ms: float) -> float:
        """The earliest of what it has queued; inf: none."""
        of = self.demand
        if of is None or not of.backlog_ms or of.deadline_ms is None or of.deadline_ms <= now_ms:
            return inf
        return of.deadline_ms

    @property
    def waits(self) -> bool:
        """It has something queued."""
        return self.demand is not None and self.demand.backlog_ms > 0

    @property
    def queued_ms(self) -> float:
        """With a deadline."""
        of = self.demand
        return of.backlog_ms if of is not None and of.deadline_ms is not None else 0.0


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
        self._running: tuple[_Piece, ...] = ()
        self._run_started_ms = 0.0
        self._ready: frozenset[str] = frozenset()
        self._regrant = True
        """Something has changed that windows follow from."""
        self._granted_ms = 0.0
        self._out: list[Instruction] = []
        self._order = self._halves = 0
        self._arrived: list[_Piece] = []
        self._run_ends_ms = 0.0
        self._is_shared = False
        self._device_up = False
        self._quarantine_up = False
        self._paused = False
        self._draining = False

    # --- events ---------------------------------------------------------------------------------------------------

    def link_up(self, link: int) -> None:
        """A broker is there; it gets credit at the next poll."""
        self._regrant = True
        self._links[link] = _Link()
        self._is_shared = self._is_shared or len(self._links) > 1

    def link_lost(self, link: int) -> None:
        """Its broker is gone or has everything again: drop what waits. What runs is finished, its replies are true."""
        self._regrant = True
        self._links.pop(link, None)
        self._pieces = [piece for piece in self._pieces if piece.held.link != link]
        self._held = {key: held for key, held in self._held.items() if key[0] != link}

    def demand(self, link: int, demand: Demand) -> None:
        """How urgent a broker's queue is."""
        of = self._links.get(link)
        if of is not None:
            waited, of.demand = of.waits, demand
            if len(self._links) > 1 or of.waits != waited:
                self._regrant = True

    def push(self, link: int, batch: Batch) -> None:
        """A batch arrived. It is returned at once when it cannot run here: not loaded, draining, or not a batch."""
        if link not in self._links or (link, batch.batch) in self._held:
            return
        of = self._links[link]
        of.last_batch = batch.batch
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
            of.ends_ms += batch.cost_ms
            self._cap.observe_cost(batch.cost_ms)
        self._enqueue(held, indices)
        if len(self._links) > 1 and batch.times:
            self._arrived.append(self._pieces[-1])

    def cancel(self, link: int, frame: CancelItems) -> None:
        """Answer CANCELLED for the named items that have not started."""
        wanted = set(frame.records)
        for piece in list(self._pieces):
            held = piece.held
            if held.link == link and held.batch.batch == frame.batch:
                gone = [i for i in piece.indices if held.batch.items[i].record in wanted]
                self._answer(piece, gone, "CANCELLED", "cancelled before it started")

    def recall(self, link: int, frame: Recall) -> None:
        """Give back the named items that have not started, unless they are suspects; see the frame."""
        held = self._held.get((link, frame.batch))
        if held is None:
            return
        wanted = frozenset(frame.records)
        for piece in [p for p in self._pieces if p.held is held and (frame.answered or not p.quarantined)]:
            gone = [i for i in piece.indices if held.batch.items[i].record in wanted]
            if gone:
                self._take_out(piece, gone)
                self._give_back(held, gone, "recalled")
        if frame.answered:
            held.unwanted |= wanted

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

    def ran(self, execute_ms: float, predictions: Sequence[tuple[int, ...]] = ()) -> tuple[frozenset[RecordId], ...]:
        """The run ended well; the shell publishes its replies, unless it was a shadow's.

        Returns by part the queries that are not to be answered any more.

        ``predictions`` are those of each of its items, if a part asked for them; they are told of a batch that ran as a
        whole.
        """
        pieces = self._stop(execute_ms)
        start = 0
        for piece in pieces:
            held, items = piece.held, piece.held.batch.items
            end = start + len(piece.indices)
            if held.batch.predicts and len(piece.indices) == len(items):
                held.predictions = tuple(chain.from_iterable(predictions[start:end]))
            start = end
            if held.batch.shadow and self._is_held(held):
                self._settle(held, tuple(ItemOutcome(items[i].record, "answered", "OK") for i in piece.indices))
            self._wanted(held, piece.indices)
        return tuple([piece.held.unwanted for piece in pieces])

    def failed(self, execute_ms: float) -> None:
        """The model raised an error."""
        self._ended_badly(self._stop(execute_ms, well=False), crashed=False)

    def crashed(self, execute_ms: float) -> None:
        """The executor died or hung."""
        pieces = self._stop(execute_ms, well=False)
        if pieces[0].quarantined:
            self._quarantine_up = False
        else:
            self._device_up = False
        self._ended_badly(pieces, crashed=True)

    def interrupted(self) -> None:
        """The run never began (its executor was gone already): it waits again."""
        self._pieces += [piece for piece in self._stop(0.0, well=False) if self._is_held(piece.held)]

    def settled(self, link: int, batch: int, outcomes: Sequence[ItemOutcome]) -> None:
        """Kafka acknowledged (or finally refused) the replies of these items: tell the broker."""
        held = self._held.get((link, batch))
        if held is not None:
            self._settle(held, tuple(outcomes))

    # --- what follows ---------------------------------------------------------------------------------------------

    def poll(self, now_ms: float) -> list[Instruction]:
        """Expire, start, call, tell, grant; everything that the shell has to do now, in order."""
        if self._pieces:
            self._expire(now_ms)
            self._start(now_ms)
        if self._arrived:
            self._call_for_company()
        if self._is_shared:
            self._tell_backlog(now_ms)
        self._grant(now_ms)
        out, self._out = self._out, []
        return out

    def wake_at_ms(self) -> float | None:
        """When the next waiting item expires; None: nothing to wake for."""
        earliest = min([piece.deadline_ms for piece in self._pieces], default=inf)
        return None if earliest == inf else earliest

    @property
    def running(self) -> bool:
        return bool(self._running)

    @property
    def idle(self) -> bool:
        """Nothing runs, and nothing that waits could run now."""
        return not self._running and not any(self._runnable(piece) for piece in self._pieces)

    @property
    def drained(self) -> bool:
        return self._draining and not self._running and not self._held

    def holds(self, variant: str) -> bool:
        """Whether a batch of the variant waits or runs."""
        return any(piece.held.batch.variant == variant for piece in (*self._pieces, *self._running))

    def suspects(self) -> tuple[str, ...]:
        """The variants that something waits or runs for on a quarantined executor."""
        pieces = (*self._pieces, *self._running)
        return tuple(sorted({piece.held.batch.variant for piece in pieces if piece.quarantined}))

    def statistics(self) -> QueueStatistics:
        return QueueStatistics(
            queued_items=sum(len(piece.indices) for piece in self._pieces),
            queued_batches=len(self._pieces),
            backlog_ms=sum(_cost_ms(piece) for piece in (*self._pieces, *self._running)),
            running=self.running,
            unsettled_items=sum(held.unsettled for held in self._held.values()),
            cap_ms=self._cap.cap_ms,
        )

    # --- inside ---------------------------------------------------------------------------------------------------

    def _enqueue(self, held: _Held, indices: tuple[int, ...], quarantined: bool = False, half: int = 0) -> None:
        self._order += 1
        self._regrant = True
        self._pieces.append(_Piece(held, indices, _deadline_ms(held.batch, indices), self._order, quarantined, half))

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
        self._take_out(piece, gone)
        items = tuple(held.batch.items[i] for i in gone)
        self._out.append(Answer(held.link, held.batch, items, status, message))

    def _take_out(self, piece: _Piece, gone: Sequence[int]) -> None:
        """Of a piece that waits."""
        piece.indices = tuple(i for i in piece.indices if i not in set(gone))
        if piece.indices:
            piece.deadline_ms = _deadline_ms(piece.held.batch, piece.indices)
        else:
            self._pieces.remove(piece)
            self._regrant = True

    def _wanted(self, held: _Held, indices: tuple[int, ...]) -> tuple[int, ...]:
        """Of what ran, what nobody else has answered meanwhile; the rest is given back."""
        if not self._is_held(held):  # its link was lost meanwhile
            return ()
        if not held.unwanted:
            return indices
        gone = [i for i in indices if held.batch.items[i].record in held.unwanted]
        if gone:
            self._give_back(held, gone, "recalled")
        return tuple(i for i in indices if i not in set(gone))

    def _runnable(self, piece: _Piece) -> bool:
        return not self._paused and (self._quarantine_up if piece.quarantined else self._device_up)

    def _start(self, now_ms: float) -> None:
        if self._running:
            return
        runnable = [piece for piece in self._pieces if self._runnable(piece)]
        if not runnable:
            return
        if len(runnable) > 1:
            runnable.sort(key=lambda p: (p.held.batch.shadow, p.deadline_ms, p.is_offline, p.order))
        pieces = self._running = (runnable[0], *self._company(runnable[0], runnable[1:], now_ms))
        self._pieces = [piece for piece in self._pieces if piece not in pieces]
        if len(self._links) > 1:
            self._give_back_others()
        parts = tuple([Part(piece.held.link, piece.held.batch, piece.indices) for piece in pieces])
        self._run_ends_ms = now_ms + _cost_of(pieces)
        self._out.append(Run(parts, now_ms, pieces[0].quarantined))

    def _give_back_others(self) -> None:
        """Small batches that did not join go back: until the next run theirs may grow, or others be more urgent."""
        for piece in [p for p in self._pieces if p.held.batch.times and not p.quarantined and not p.half]:
            self._pieces.remove(piece)
            self._give_back(piece.held, piece.indices, "another broker's is more urgent")

    def _company(self, first: _Piece, others: Sequence[_Piece], now_ms: float) -> list[_Piece]:
        """Of the others, by deadline, those that run with the first.

        Together they make the largest batch that takes no longer than one after another would, has no more rows than
        the broker of any of them allows, and in which whoever would be in time alone still is. The pieces of a half
        stay together, as they had run together.
        """
        if first.half:
            return [piece for piece in others if piece.half == first.half]
        times = first.held.batch.times
        alike = self._alike(first, others) if times else []
        if not alike:
            return []
        first_ms = _sure_ms(first, first.rows)
        end_ms_max = _end_ms_max(first, now_ms + first_ms)
        for size, run_ms in reversed(times):
            company, rows_run, apart_ms, ends_ms = list[_Piece](), first.rows, first_ms, now_ms + run_ms
            if ends_ms > end_ms_max:
                continue
            for piece in alike:
                if rows_run + piece.rows <= size <= piece.held.batch.times[-1][0]:
                    alone_ms = _sure_ms(piece, piece.rows)
                    if ends_ms <= _end_ms_max(piece, now_ms + alone_ms):
                        company.append(piece)
                        rows_run += piece.rows
                        apart_ms += alone_ms
            if company and run_ms <= apart_ms:
                return company
        return []

    def _alike(self, piece: _Piece, others: Iterable[_Piece]) -> list[_Piece]:
        """Those of the others that may run with it, if there is time: of its variant, with rows like its own."""
        variant, kind = piece.held.batch.variant, rows.kind(piece.held.batch)
        batches = [(other, other.held.batch) for other in others if not other.half]
        return [o for o, of in batches if of.variant == variant and of.times and rows.kind(of) == kind]

    def _stop(self, execute_ms: float, *, well: bool = True) -> tuple[_Piece, ...]:
        """Each broker is told the time and the rows of the whole run: what it learns from is what the device did."""
        pieces, self._running = self._running, ()
        assert pieces, "nothing was running"
        self._regrant = True
        rows_run = sum([piece.rows for piece in pieces]) if well else 0
        for held in {id(piece.held): piece.held for piece in pieces}.values():
            held.execute_ms += execute_ms
            held.rows_run += rows_run
        return pieces

    def _ended_badly(self, pieces: tuple[_Piece, ...], *, crashed: bool) -> None:
        first = pieces[0]
        if first.held.batch.shadow:  # who is to blame is not looked for
            if self._is_held(first.held):
                items = [first.held.batch.items[i] for i in first.indices]
                outcomes = [ItemOutcome(item.record, "returned", "INTERNAL", "it failed") for item in items]
                self._settle(first.held, tuple(outcomes))
            return
        suspects = [(piece.held, index) for piece in pieces for index in piece.indices]
        verdict = after_bad_end(tuple(range(len(suspects))), crashed=crashed, quarantined=first.quarantined)
        if isinstance(verdict, Culprit):
            held, index = suspects[verdict.index]
            if not self._wanted(held, (index,)):
                return
            message = (
                "this query brings the model's executor down"
                if verdict.poisoned
                else f"{held.batch.variant} raised an error on this query's inputs"
            )
            item = held.batch.items[index]
            self._out.append(Answer(held.link, held.batch, (item,), "INTERNAL", message, verdict.poisoned))
            return
        for held in dict.fromkeys([piece.held for piece in pieces]):
            if self._is_held(held):
                self._settle(held, ())  # so that nobody tries it elsewhere meanwhile
        for numbers in verdict.parts:
            self._halves += 1
            for held, indices in _by_batch([suspects[number] for number in numbers]):
                indices = self._wanted(held, indices)
                if not indices:
                    continue
                if self._draining:
                    self._give_back(held, indices, "draining")
                else:
                    self._enqueue(held, indices, verdict.quarantined, self._halves)

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
        for number, share_ms in divide(cap_ms, demands, now_ms).items():
            link = self._links[number]
            window_ms = share_ms + self._publishing_ms(number) if cap_ms and link.waits else share_ms
            change_ms = window_ms - link.window_ms
            if change_ms > CREDIT_RISE_MIN * link.window_ms or -change_ms > CREDIT_FALL_MIN * link.window_ms:
                link.window_ms = window_ms
                self._out.append(Tell(number, Credit(window_ms)))

    def _call_for_company(self) -> None:
        """What arrived and waits as the first of its kind: whoever has work queued is asked to fill it up."""
        arrived, self._arrived = self._arrived, []
        for piece in arrived:
            batch = piece.held.batch
            queued_ms = {
                n: own_ms for n, link in self._links.items() if n != piece.held.link and (own_ms := link.queued_ms)
            }
            if not queued_ms or piece not in self._pieces or len(self._alike(piece, self._pieces)) > 1:
                continue
            room = batch.times[-1][0] - piece.rows
            share = CALL_SHARE * room / sum(queued_ms.values())
            for number, own_ms in queued_ms.items():
                rows_called = min(room, max(1, round(share * own_ms)))
                self._out.append(Tell(number, Call(batch.variant, rows_called, batch.length)))

    def _tell_backlog(self, now_ms: float) -> None:
        """To each broker that is wrong about it, since others sent something or something took another time."""
        backlog_ms = sum([_cost_ms(piece) for piece in self._pieces if not piece.is_offline])
        if self._running:
            backlog_ms += max(0.0, self._run_ends_ms - now_ms)
        links = [(number, link, link.queued_ms, link.deadline_ms(now_ms)) for number, link in self._links.items()]
        queued_ms = sum([own_ms for _, _, own_ms, _ in links])
        first_ms = min([deadline_ms for _, _, _, deadline_ms in links], default=inf)
        wrong_ms_max = max(BACKLOG_MS_MIN, BACKLOG_SHARE_MIN * backlog_ms)
        for number, link, own_ms, deadline_ms in links:
            is_next = deadline_ms <= first_ms
            others_ms = queued_ms - own_ms
            others_wrong_ms = abs(others_ms - link.others_ms)
            if (
                is_next != link.is_next
                or abs(max(0.0, link.ends_ms - now_ms) - backlog_ms) > wrong_ms_max
                or (
                    others_wrong_ms > BACKLOG_MS_MIN
                    and others_wrong_ms > DEMAND_SHARE_MIN * max(others_ms, link.others_ms)
                )
            ):
                link.ends_ms, link.others_ms, link.is_next = now_ms + backlog_ms, others_ms, is_next
                self._out.append(Tell(number, Backlog(backlog_ms, link.last_batch, others_ms, is_next)))

    def _publishing_ms(self, link: int) -> float:
        """Of a link, what has left the device and is not settled."""
        on_device = {id(piece.held) for piece in (*self._pieces, *self._running)}
        publishing = [held for held in self._held.values() if held.link == link and id(held) not in on_device]
        return sum([held.batch.cost_ms for held in publishing], 0.0)


def _deadline_ms(batch: Batch, indices: Iterable[int]) -> float:
    items, earliest_ms = batch.items, inf
    for i in indices:
        deadline_ms = items[i].deadline_ms
        if deadline_ms is not None and deadline_ms < earliest_ms:
            earliest_ms = deadline_ms
    return earliest_ms


def _cost_ms(piece: _Piece) -> float:
    batch = piece.held.batch
    return batch.cost_ms * len(piece.indices) / len(batch.items)


def _sure_ms(piece: _Piece, rows_run: int) -> float:
    """By the broker of the piece: how long so many rows surely take, at most as many as it says."""
    return next(ms for rows_max, ms in piece.held.batch.times if rows_run <= rows_max)


def _end_ms_max(piece: _Piece, end_ms: float) -> float:
    """The earliest deadline in a piece that it would meet alone, at ``end_ms``."""
    items = piece.held.batch.items
    deadlines_ms = [items[i].latency_deadline_ms for i in piece.indices]
    return min([d for d in deadlines_ms if d is not None and d >= end_ms], default=inf)


def _by_batch(suspects: Iterable[tuple[_Held, int]]) -> list[tuple[_Held, tuple[int, ...]]]:
    """Neighbours of one batch together."""
    grouped = groupby(suspects, key=lambda suspect: id(suspect[0]))
    found = [[*group] for _, group in grouped]
    return [(group[0][0], tuple([index for _, index in group])) for group in found]


def _cost_of(pieces: tuple[_Piece, ...]) -> float:
    """Predicted ms of a run."""
    first = pieces[0]
    own_ms = _cost_ms(first)
    if len(pieces) == 1 or not first.held.batch.times:
        return sum([_cost_ms(piece) for piece in pieces])
    return own_ms * _sure_ms(first, sum([p.rows for p in pieces])) / _sure_ms(first, first.rows)

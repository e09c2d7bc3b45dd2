"""One device at work: carries out what the device queue decides, on executors, and writes the replies.

Between live batches, at lowest priority, go **steps**: warming up and measuring. One step at a time has the device;
one that has waited ``STEP_PATIENCE_S`` goes before the next batch, so that a busy device still learns.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import TypeVar

import structlog

from modelless.clock import KafkaClock
from modelless.config import Config, GroupConfig
from modelless.frames import Batch, CancelItems, Demand, Frame, ItemOutcome, Recall
from modelless.messages import RecordId
from workers import rows
from workers.answered import AnsweredLately
from workers.device_queue import Answer, DeviceQueue, Run, Tell
from workers.executor import ExecutionError, Executor, ExecutorDiedError, Outputs
from workers.executors import Executors, Spawn
from workers.metrics import WorkerMetrics
from workers.publisher import Publisher
from workers.replies import Author, Outgoing, of_answer, of_run, too_large

T = TypeVar("T")

STEP_PATIENCE_S = 0.25
HANG_FACTOR = 20
QUARANTINE_HANG_SHARE = 0.1
"""Of the patience with a serving executor: what is suspected already is not waited for as long."""
BATCH_TIMES_MAX = 256

_log = structlog.get_logger(__name__)


class Device:
    """See the module.

    Args:
        send: sends a frame to the broker on a link.
        on_lost_variant: a variant could not be loaded again after a crash.
    """

    def __init__(
        self,
        config: Config,
        group: GroupConfig,
        clock: KafkaClock,
        spawn: Spawn,
        metrics: WorkerMetrics,
        send: Callable[[int, Frame], None],
        on_lost_variant: Callable[[str, str], None],
    ) -> None:
        self.queue = DeviceQueue(config.worker.lead_ms)
        self.answered = AnsweredLately()
        self.executors = Executors(spawn, self._executors_changed, on_lost_variant)
        self.publisher = Publisher(config, self._too_large, self._pressure)
        self._hang_s = config.worker.hang_s
        self._clock = clock
        self._metrics = metrics
        self._send = send
        self._author = Author(group.name, group.price_per_hour)
        self._loop = asyncio.get_running_loop()
        self._turns: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._stepping = False
        self._kicked = False
        self._timer: asyncio.TimerHandle | None = None
        self.drained = asyncio.Event()
        """Set once the queue is drained and all that it held is settled."""
        self.busy_s = 0.0
        """Time that live batches had the device."""
        self.settled = 0
        """Queries that have an outcome."""
        self._times: dict[str, deque[tuple[int, float, int]]] = {}
        self._load: dict[str, tuple[int, float]] = {}
        self._profiled_ms: dict[str, float] = {}

    async def start(self) -> None:
        """Returns when Kafka and the first executor are there."""
        await self.publisher.start()
        await self.executors.start()

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self.executors.close()
        await self.publisher.stop()

    # --- what links bring ---------------------------------------------------------------------------------------------

    def frame(self, link: int, frame: Frame) -> None:
        """A frame from a broker."""
        match frame:
            case Batch():
                self.queue.push(link, frame)
                self._metrics.batch_rows.observe(sum(item.rows for item in frame.items))
            case CancelItems():
                self.queue.cancel(link, frame)
            case Recall():
                self.queue.recall(link, frame)
            case Demand():
                self.queue.demand(link, frame)
            case _:
                return
        self.kick_soon()

    def expect(self, variant: str, slowest_ms: float) -> None:
        """What the variant's profile says of its largest batch; much longer is a hang."""
        self._profiled_ms[variant] = slowest_ms

    def take_times(self, variant: str) -> tuple[tuple[int, float, int], ...]:
        """(rows, ms, length that they were padded to) of the variant's batches since the last call."""
        return tuple(self._times.pop(variant, ()))

    def take_load(self, variant: str) -> tuple[int, float]:
        """(rows, ms) of all of the variant's batches together since the last call."""
        return self._load.pop(variant, (0, 0.0))

    async def step(self, work: Callable[[], Awaitable[T]]) -> T:
        """Have the device to oneself for a moment, when it is this one's turn."""
        turn: asyncio.Future[None] = self._loop.create_future()
        self._turns.append((time.monotonic(), turn))
        self.kick_soon()
        self._loop.call_later(STEP_PATIENCE_S, self.kick_soon)
        try:
            await turn
            return await work()
        finally:
            if turn.done() and not turn.cancelled():
                self._stepping = False
                self._executors_changed()
            else:
                self._turns = deque(entry for entry in self._turns if entry[1] is not turn)

    # --- the queue's decisions ----------------------------------------------------------------------------------------

    def kick_soon(self) -> None:
        """Let the queue decide at the end of this round of the loop, once for all that happened in it."""
        if not self._kicked:
            self._kicked = True
            self._loop.call_soon(self.kick)

    def kick(self) -> None:
        """Let the queue decide, and carry it out."""
        self._kicked = False
        if self._turns and not self._stepping and not self.queue.running:
            waited_s = time.monotonic() - self._turns[0][0]
            if self.queue.idle or waited_s > STEP_PATIENCE_S:
                self._grant_turn()
        for instruction in self.queue.poll(self._clock.now_ms()):
            match instruction:
                case Run():
                    self._start(instruction)
                case Tell(link, frame):
                    self._send(link, frame)
                case Answer(link, batch):
                    replies = of_answer(instruction, self._author, self._clock.now_ms())
                    self.publisher.publish(replies, partial(self._settled, link, batch.batch))
        self.executors.quarantine(self.queue.suspects())
        self._arm()
        if self.queue.drained:
            self.drained.set()

    def _grant_turn(self) -> None:
        _, turn = self._turns.popleft()
        self._stepping = True
        self.queue.device(False)
        self.queue.quarantine(False)
        turn.set_result(None)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wake_ms = self.queue.wake_at_ms()
        if wake_ms is not None:
            delay_s = max(0.001, (wake_ms - self._clock.now_ms()) / 1000)
            self._timer = self._loop.call_later(min(delay_s, 3600.0), self.kick)

    def _start(self, run: Run) -> None:
        executor = self.executors.quarantined if run.quarantined else self.executors.serving
        if executor is None or not executor.alive:
            self.queue.interrupted()
            return
        started_s = time.monotonic()
        if not run.shadow:
            self._metrics.queue_seconds.observe(
                max(0.0, run.started_ms - min(item.arrival_ms for item in run.items)) / 1000
            )
        future = executor.run(run.variant, run.inputs)
        patience_s = max(
            self._hang_s * (QUARANTINE_HANG_SHARE if run.quarantined else 1.0),
            HANG_FACTOR * self._profiled_ms.get(run.variant, 0.0) / 1000,
        )
        hang = self._loop.call_later(patience_s, self._hangs, executor, run, patience_s)
        future.add_done_callback(partial(self._ended, run, started_s, hang))

    def _hangs(self, executor: Executor, run: Run, patience_s: float) -> None:
        _log.error("a batch hangs, its executor is killed", variant=run.variant, after_s=round(patience_s, 1))
        executor.kill()

    def _ended(self, run: Run, started_s: float, hang: asyncio.TimerHandle, future: asyncio.Future[Outputs]) -> None:
        hang.cancel()
        if future.cancelled():
            return
        execute_ms = (time.monotonic() - started_s) * 1000
        error = future.exception()
        self._metrics.execute_seconds.observe(execute_ms / 1000)
        self._metrics.busy_seconds.inc(execute_ms / 1000)
        self.busy_s += execute_ms / 1000
        if error is None:
            outputs = future.result()
            predictions = rows.predictions(outputs, run.items, run.cuts) if run.predicts else ()
            unwanted = self.queue.ran(execute_ms, predictions)
            self.kick()  # the device first, then the replies of what it did
            self._publish(run, outputs, execute_ms, unwanted)
            return
        if isinstance(error, ExecutorDiedError):
            _log.error("an executor died", variant=run.variant, items=len(run.items))
            self._metrics.deaths.inc()
            self.queue.crashed(execute_ms)
        elif isinstance(error, ExecutionError):
            _log.warning("a model raised an error", variant=run.variant, items=len(run.items), error=str(error))
            self.queue.failed(execute_ms)
        else:
            raise error
        self.kick()

    def _publish(self, run: Run, outputs: Outputs, execute_ms: float, unwanted: Sequence[Collection[RecordId]]) -> None:
        times = self._times.setdefault(run.variant, deque(maxlen=BATCH_TIMES_MAX))
        times.append((run.rows, execute_ms, run.length))
        rows_run, busy_ms = self._load.get(run.variant, (0, 0.0))
        self._load[run.variant] = rows_run + run.rows, busy_ms + execute_ms
        if run.shadow:
            return
        replies = of_run(run, outputs, execute_ms, self._author, self._clock.now_ms())
        for part, own, gone in zip(run.parts, replies, unwanted, strict=True):
            if gone:
                own = [reply for reply in own if reply.item.record not in gone]
            if own:
                self.publisher.publish(own, partial(self._settled, part.link, part.batch.batch))

    def _settled(self, link: int, batch: int, outcomes: list[ItemOutcome]) -> None:
        now_ms = self._clock.now_ms()
        self.settled += len(outcomes)
        for labels, number in Counter((o.status, o.disposition) for o in outcomes).items():
            self._metrics.queries.labels(*labels).inc(number)
        self.answered.add((o.record for o in outcomes if o.disposition in ("answered", "poisoned")), now_ms)
        self.queue.settled(link, batch, outcomes)
        self.kick_soon()

    # --- what executors and Kafka do ----------------------------------------------------------------------------------

    def _executors_changed(self) -> None:
        serving, quarantined = self.executors.serving, self.executors.quarantined
        self.queue.device(serving is not None and not self._stepping)
        self.queue.quarantine(quarantined is not None and not self._stepping)
        self.kick_soon()

    def _too_large(self, reply: Outgoing) -> Outgoing:
        return too_large(reply, self._author, self._clock.now_ms())

    def _pressure(self, pressed: bool) -> None:
        self.queue.pause(pressed)
        self.kick_soon()

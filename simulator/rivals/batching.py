"""Rivals that are a rule of batching, on a placement that is given to all of them alike."""

from __future__ import annotations

from typing import Literal

from simulator.facts import INF, Placement, SimulatedQuery
from simulator.rivals.base import Choose, Line, Rival, Shares, most_accurate_in_time
from simulator.world import Device, Running


class Clipper(Rival):
    """The batch size of each device grows by additive steps and shrinks to 0.9 of it on a miss (AIMD).

    Clipper (NSDI'17), section 4.3.1: the size increases by a fixed amount until a batch exceeds the latency
    objective, then backs off by 10 %. What counts is the time of the batch, not how long its queries waited: with the
    latter, one queue that is too long makes batches smaller, and the queue longer, for ever. A batch leaves as soon as
    its device is idle (section 4.3.2: no batch delay by default), with at most that many rows. Only a full batch tells
    that a larger one would be possible. Queries whose deadline has passed are dropped, and only these: the lazy drop
    that Nexus (SOSP'19) describes.

    Args:
        step: rows per increase.
        wait: a batch leaves only when it is full, as in the comparison that Proteus (ASPLOS'24) ran; its
            source: core/predictor.py, ``batching_algo == 'aimd'``.
    """

    name = "clipper"
    backoff = 0.9

    def __init__(
        self,
        placement: Placement | None = None,
        shares: Shares | None = None,
        choose: Choose = most_accurate_in_time,
        *,
        step: float = 1.0,
        wait: bool = False,
    ) -> None:
        super().__init__(placement, shares, choose)
        self.step, self.wait = step, wait
        self.size: dict[tuple[str, str], float] = {}
        """By device and variant."""

    def leave_ms(self, line: Line, device: Device) -> float:
        return INF if self.wait and len(line) < self._rows(line, device) else 0.0

    def batch(self, line: Line, device: Device) -> list[SimulatedQuery]:
        self.drop_late(line)
        return line.take(self._rows(line, device))

    def ran(self, device: Device, batch: Running) -> None:
        key, rows_max = (device.name, batch.variant.variant), batch.variant.rows_max
        size = self.size.get(key, 1.0)
        objective_ms = min(query.latency_ms_max for query in batch.queries) - self.margin_ms
        if batch.end_ms - batch.start_ms > objective_ms:
            self.size[key] = max(1.0, size * self.backoff)
        elif len(batch.queries) >= int(size):
            self.size[key] = min(float(rows_max), size + self.step)
        super().ran(device, batch)

    def _rows(self, line: Line, device: Device) -> int:
        return int(self.size.get((device.name, line.profile.variant), 1.0))


class Nexus(Rival):
    """Early drop: heads that would keep the batch small are dropped, before their deadline.

    Nexus (SOSP'19); source (github.com/uwsampl/nexus): src/nexus/backend/model_exec.cpp, ``GetBatchTaskSlidingWindow``:
    with the planned size (the largest b with ``2 * lat(b)`` in the latency) or, if fewer wait, with
    all of them, whoever's deadline is before the end of such a batch is dropped; fewer left make it shorter.
    A batch leaves as soon as its device is idle.

    Args:
        wait: until the planned size is there, or the head cannot wait for it any longer, as in the comparison that
            Proteus ran (core/predictor.py, ``batching_algo == 'nexus'``).
    """

    name = "nexus"

    def __init__(
        self,
        placement: Placement | None = None,
        shares: Shares | None = None,
        choose: Choose = most_accurate_in_time,
        *,
        wait: bool = False,
    ) -> None:
        super().__init__(placement, shares, choose)
        self.wait = wait

    def leave_ms(self, line: Line, device: Device) -> float:
        if not self.wait or len(line) >= (rows := self.rows_planned(line)):
            return 0.0
        return line.due_ms(line.head) - line.profile.lat_ms(rows)

    def batch(self, line: Line, device: Device) -> list[SimulatedQuery]:
        return self.window(line, self.rows_planned(line))

    def window(self, line: Line, rows_max: int) -> list[SimulatedQuery]:
        """Take the first batch of ``rows_max``, or of all, whose head is in time; who is before it expires."""
        now_ms = self.world.now_ms
        while line:
            rows = min(rows_max, len(line))
            if not line.misses(line.head, now_ms + line.profile.lat_ms(rows)):
                return line.take(rows)
            self.world.expire(line.take(1)[0])
        return []


class Symphony(Nexus):
    """Deferred batching: a batch leaves in the window ``[D - lat(b + 1), D - lat(b)]``, D its earliest deadline.

    Symphony (Chen and others, arXiv 2308.07470): before that window another query could still join, after
    it the head would be late. When the window opens, the idle device with the lowest number takes the batch; when a
    device becomes idle, it takes of the batches whose window is open the one whose window closes first.
    The batch is then as large as its head allows. Which heads are given up is a flag in the released source
    (github.com/abcdabcd987/nexus, nexus/dispatcher/batch_policy.cpp, ``DropPolicy``).

    Seen here, latency 25 ms, lat(b) = 5 + b ms, 8 devices, Poisson, goodput at 1 % misses: one model 1.5 times that of
    eager batching, as the paper says. With 10 models on these devices 0.9 times, with 20 slower ones 0.6 times: the
    windows are one more query's time wide, and when all devices are busy just then, heads are lost. That does not
    reproduce the paper's figures for many models; eager batching here has one queue per model for all devices, which
    the eager systems of the paper had not.

    Args:
        drop: ``timeout`` (kDropTimeout): heads that would be late even alone; better with many models.
            ``window`` (kWindowDrop): heads that keep the batch below the largest b with ``(1 + 1/n) * lat(b)`` in
            the latency on n staggered devices, or below what waits; better for one model overloaded.
    """

    name = "symphony"

    def __init__(
        self,
        placement: Placement | None = None,
        shares: Shares | None = None,
        choose: Choose = most_accurate_in_time,
        *,
        drop: Literal["timeout", "window"] = "timeout",
    ) -> None:
        super().__init__(placement, shares, choose)
        self.drop = drop

    def leave_ms(self, line: Line, device: Device) -> float:
        if len(line) >= line.profile.rows_max:
            return 0.0
        return line.due_ms(line.head) - line.profile.lat_ms(len(line) + 1)

    def urgency_ms(self, line: Line) -> float:
        return line.due_ms(line.head) - line.profile.lat_ms(min(len(line), line.profile.rows_max))

    def batch(self, line: Line, device: Device) -> list[SimulatedQuery]:
        taken = self.window(line, self._target(line) if self.drop == "window" else 1)
        if taken:
            budget_ms = line.due_ms(taken[0]) - self.world.now_ms
            taken += line.take(max(0, line.profile.rows_within(budget_ms) - len(taken)))
        return taken

    def _target(self, line: Line) -> int:
        latency_ms = self.latency_ms[line.profile.task] - self.margin_ms
        staggered = 1 + 1 / max(1, sum(each.alive for each in line.devices))
        return max(1, line.profile.rows_within(latency_ms / staggered))


class Clockwork(Rival):
    """One batch at a time per device, and only what will finish in time; all else is refused.

    Clockwork (OSDI'20), section 5.3: execution is predictable, so the controller knows when each device is
    free and how long each batch will take (here: the profile's 99th percentile, its controller: a high percentile of
    the last measurements). For every query and every profiled batch size there is a latest start, ``D - lat(b)``;
    an idle device gets the batch with the earliest one that is still to come. A query that no device can finish in
    time any more is refused at once. Models are not moved: the placement is given (its LOADs swap models that do
    not fit; ours fit).
    """

    name = "clockwork"

    def arrived(self, query: SimulatedQuery) -> None:
        line = self.route(query)
        if line is None or line.misses(query, self._free_ms(line) + line.profile.tail_ms(1)):
            self.world.refuse(query)
            return
        line.add(query)
        self.poll(line)

    def urgency_ms(self, line: Line) -> float:
        best = self._best(line)
        return best[0] if best is not None else INF

    def leave_ms(self, line: Line, device: Device) -> float:
        while line and line.misses(line.head, self.world.now_ms + line.profile.tail_ms(1)):
            self.world.refuse(line.take(1)[0])
        return 0.0 if line else INF

    def batch(self, line: Line, device: Device) -> list[SimulatedQuery]:
        best = self._best(line)
        return line.take_from(*best[1:]) if best is not None else []

    def _best(self, line: Line) -> tuple[float, int, int] | None:
        """Latest start, how many stay before it, and rows, of the most urgent batch that can still be in time."""
        found: tuple[float, int, int] | None = None
        now_ms, profile = self.world.now_ms, line.profile
        for index, size in enumerate(profile.sizes):
            first = line.first_due(now_ms + profile.p99_ms[index])
            if first + size <= len(line):
                latest_ms = line.due_ms(line.peek(first)) - profile.p99_ms[index]
                if found is None or latest_ms <= found[0]:
                    found = latest_ms, first, size
        if found is None and line:  # fewer than the smallest profiled size
            return line.due_ms(line.head) - profile.tail_ms(1), 0, min(len(line), profile.sizes[0])
        return found

    def _free_ms(self, line: Line) -> float:
        """When the first of its devices will be free."""
        now_ms = self.world.now_ms
        return min(
            (self._ends_ms(device.running) if device.running else now_ms for device in line.devices if device.alive),
            default=now_ms,
        )

    def _ends_ms(self, running: Running) -> float:
        return max(self.world.now_ms, running.start_ms + running.variant.tail_ms(len(running.queries)))


class ProteusBatching(Nexus):
    """Deadline-driven and not work-conserving: q queries wait until ``D - lat(q + 1)``, D the head's deadline.

    Proteus (ASPLOS'24); source (github.com/UMass-LIDS/Proteus): core/predictor.py, ``batching_algo ==
    'accscale'``: a batch leaves when one more query would make the head miss, or when it has the largest size with
    ``2 * lat(b)`` in the latency; heads that would be late with all that wait are dropped
    (``pop_while_first_expires``).
    """

    name = "proteus-batching"

    def leave_ms(self, line: Line, device: Device) -> float:
        if len(line) >= self.rows_planned(line):
            return 0.0
        return line.due_ms(line.head) - line.profile.lat_ms(len(line) + 1)

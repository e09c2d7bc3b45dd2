"""When to start again what died. Pure."""

from __future__ import annotations

YOUNG_MS = 10_000.0
DELAY_MS_MIN = 500.0
DELAY_MS_MAX = 30_000.0


class RestartPolicy:
    """When to start a part that died.

    The first death, and every death after ``YOUNG_MS`` of life, is answered at once; further young deaths in a row
    with a delay that doubles from ``DELAY_MS_MIN`` to ``DELAY_MS_MAX``. A part that was killed from outside has done
    nothing wrong: it is never kept waiting for longer than ``DELAY_MS_MIN``, however often that happens.
    """

    def __init__(self) -> None:
        self._started_ms = 0.0
        self._young_deaths = 0

    def started(self, now_ms: float) -> None:
        self._started_ms = now_ms

    def died(self, now_ms: float, *, was_killed: bool = False) -> float:
        """The delay in ms before it is started again."""
        if was_killed:
            return 0.0 if now_ms - self._started_ms >= DELAY_MS_MIN else DELAY_MS_MIN
        if now_ms - self._started_ms >= YOUNG_MS:
            self._young_deaths = 0
            return 0.0
        self._young_deaths += 1
        if self._young_deaths == 1:
            return 0.0
        return float(min(DELAY_MS_MIN * 2 ** min(self._young_deaths - 2, 20), DELAY_MS_MAX))

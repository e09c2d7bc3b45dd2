"""What the checkers of the simulated system know by themselves: who there is, and what a broken promise is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from modelless.messages import Labels

TOPIC = "modelless.queries"
SESSION_MS = 400.0
SETTLE_MS = 150.0
COMMIT_MS = 100.0
JUDGE_MS = 500.0
LATE_BOUND_MS = 3_000.0
"""Of ``on_miss: late`` without a worker; also the latency of those who state none."""


@dataclass(frozen=True)
class Variant:
    """The checkers' own idea of a variant."""

    name: str
    group: str
    accuracy: float
    price_per_hour: float
    curve: tuple[tuple[int, float], ...]

    def ms(self, rows: int) -> float:
        """For one to eight rows: that of the next larger measured size."""
        return next(ms for size, ms in self.curve if rows <= size)

    @property
    def cost(self) -> float:
        """USD per 1,000 rows in the largest batches."""
        size, ms = self.curve[-1]
        return ms / size * self.price_per_hour / 3_600_000 * 1000


FLEET = (
    Variant("tiny", "cpu", 0.80, 0.36, ((1, 2.0), (2, 2.3), (4, 2.9), (8, 4.0))),
    Variant("small", "cpu", 0.90, 0.36, ((1, 5.0), (2, 6.0), (4, 8.0), (8, 12.0))),
    Variant("large", "cpu", 0.95, 0.36, ((1, 30.0), (2, 40.0), (4, 60.0), (8, 100.0))),
    Variant("large", "gpu", 0.95, 36.0, ((1, 4.0), (2, 4.3), (4, 4.9), (8, 6.0))),
)
GROUPS = ("cpu", "gpu")
CANARY = Labels("small", stable=1, canary=2, canary_weight=0.3, shadow="2", shadow_weight=1.0)
"""The canary, which is the shadow too, runs as its stable version does; so does ``tiny:2``, registered meanwhile."""


def loadable(group: str, *, swapped: bool) -> frozenset[str]:
    """Every version's variant that a worker of the group could load."""
    names = [v.name for v in FLEET if v.group == group]
    seconds = {"small", "tiny"} if swapped else {"small"}
    return frozenset([f"{name}:1/onnx-fp32" for name in names] + [f"{n}:2/onnx-fp32" for n in names if n in seconds])


class ViolationError(AssertionError):
    """A promise was broken."""


def fail(why: str) -> NoReturn:
    raise ViolationError(why)

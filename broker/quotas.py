"""What a tenant may have run, in USD an hour: a token bucket for each one that has a quota. Pure.

Every query that is placed takes what it is predicted to cost (price times device time of its rows, at the batches that
its group runs of late). While a bucket is empty, queries of its tenant are refused, with the time until it is not;
those without a deadline wait in it. A bucket holds what comes in some seconds, so that short bursts pass; a query that
costs more than is left is placed and leaves a debt, or else it never would be.

Every broker enforces its part: that of the partitions that it reads. Where more is written to its partitions than to
others', it refuses although the others' part is not used up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from broker.ledger import Entry
from broker.usage import tenant_of
from modelless.messages import MS_PER_HOUR, RecordId

INF = float("inf")
WAIT_MS_MIN = 1.0
"""Nobody is told to come back sooner."""
ROUNDING_MS = 0.01


@dataclass(slots=True, eq=False)
class Bucket:
    """One tenant's, on this broker."""

    tenant: str
    usd_per_hour: float
    """Its quota, on all brokers together."""
    burst_s: float
    share: float = 1.0
    """This broker's part."""
    left_usd: float = INF
    """Below 0: a debt. At first it is full."""
    at_ms: float = -INF
    """When that was so."""
    held: dict[RecordId, Entry] = field(default_factory=dict)
    """Those without a deadline, the first to come first."""

    @property
    def usd_per_ms(self) -> float:
        return self.usd_per_hour * self.share / MS_PER_HOUR

    def wait_ms(self, now_ms: float) -> float:
        """Until a query may be placed; 0: now."""
        self._fill(now_ms)
        wait_ms = -self.left_usd / self.usd_per_ms
        return max(WAIT_MS_MIN, wait_ms) if wait_ms > ROUNDING_MS else 0.0

    def take(self, cost_usd: float, now_ms: float) -> None:
        """A query was placed."""
        self._fill(now_ms)
        self.left_usd -= cost_usd

    def _fill(self, now_ms: float) -> None:
        most_usd = self.usd_per_ms * self.burst_s * 1000
        passed_ms = max(0.0, now_ms - self.at_ms)
        self.left_usd = most_usd if passed_ms == INF else min(most_usd, self.left_usd + passed_ms * self.usd_per_ms)
        self.at_ms = max(self.at_ms, now_ms)


class Quotas:
    """The buckets of all tenants that have a quota.

    Args:
        usd_per_hour: by tenant: a query topic, or the name that queries give.
        burst_s: a full bucket holds what comes in so long.
    """

    def __init__(self, usd_per_hour: Mapping[str, float] | None = None, burst_s: float = 10.0) -> None:
        self._buckets = {name: Bucket(name, usd, burst_s) for name, usd in (usd_per_hour or {}).items()}

    def __bool__(self) -> bool:
        return bool(self._buckets)

    @property
    def tenants(self) -> Collection[str]:
        return self._buckets.keys()

    def of(self, entry: Entry) -> Bucket | None:
        """None: its tenant may have what it likes."""
        return self._buckets.get(tenant_of(entry)) if self._buckets else None

    def put_shares(self, shares: Mapping[str, float]) -> None:
        """This broker's parts, as :func:`shares` says; who is not in it keeps the last one."""
        for tenant, share in shares.items():
            self._buckets[tenant].share = share

    @property
    def held(self) -> int:
        """Entries that wait in buckets."""
        return sum(len(bucket.held) for bucket in self._buckets.values())

    def wake_ms(self, now_ms: float) -> float:
        """When the first that is held may be placed."""
        return min([now_ms + each.wait_ms(now_ms) for each in self._buckets.values() if each.held], default=INF)

    def released(self, now_ms: float) -> Iterator[Entry]:
        """Those held that may be placed now; each is to be placed before the next is asked for."""
        for bucket in self._buckets.values():
            while bucket.held and not bucket.wait_ms(now_ms):
                entry = bucket.held.pop(next(iter(bucket.held)))
                entry.place = None
                yield entry

    def drop(self) -> None:
        """Forget everything that is held."""
        for bucket in self._buckets.values():
            for entry in bucket.held.values():
                entry.place = None
            bucket.held.clear()


def shares(
    tenants: Iterable[str],
    owned: Iterable[tuple[str, int]],
    partitions: Mapping[str, int],
    tenant_topics: Collection[str],
) -> dict[str, float]:
    """A broker's part of each tenant's quota: that of the partitions of its topic, or of all that may name it.

    Args:
        owned: partitions that it reads.
        partitions: how many there are, by topic.
        tenant_topics: whose queries may name a tenant.
    """
    own = Counter(topic for topic, _ in owned)
    found = {}
    for tenant in tenants:
        topics = [tenant] if tenant in partitions else [topic for topic in tenant_topics if topic in partitions]
        of_own, of_all = (sum(count.get(topic, 0) for topic in topics) for count in (own, partitions))
        if of_own:
            found[tenant] = of_own / of_all
    return found

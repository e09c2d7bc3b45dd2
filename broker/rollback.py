"""Rolling back a canary that is worse than stable: the leader's part that talks.

While this broker leads and some model has a canary, it follows the fleet, adds up what all brokers announced under the
present labels, and writes labels without the canary when :func:`broker.canary.verdict` says so. The labels are read
again in the registry's transaction: what an operator changed meanwhile stays as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog
from aiokafka.errors import KafkaError

from broker.canary import verdict
from modelless.catalog import Catalog
from modelless.clock import KafkaClock
from modelless.config import Config
from modelless.errors import ModellessError
from modelless.fleet import FleetView
from modelless.kafka import raise_if_cancelled
from modelless.labels import tally, unlabelled
from modelless.messages import Labels
from modelless.registry import settle

INTERVAL_S = 1.0

_log = structlog.get_logger(__name__)


class RollBack:
    """See the module.

    Args:
        labels: as they are now, by model name.
        leads: whether this broker leads.
    """

    def __init__(
        self, config: Config, clock: KafkaClock, labels: Callable[[], Mapping[str, Labels]], leads: Callable[[], bool]
    ) -> None:
        self._config, self._clock, self._labels, self._leads = config, clock, labels, leads
        self._fleet: FleetView | None = None

    async def run(self) -> None:
        """Until cancelled. Kafka may vanish meanwhile."""
        try:
            while True:
                await asyncio.sleep(INTERVAL_S)
                try:
                    await self._look()
                except (ModellessError, KafkaError, OSError, TimeoutError, asyncio.CancelledError) as error:
                    raise_if_cancelled(error)
                    _log.warning("canaries could not be judged, trying again", error=repr(error))
        finally:
            await self._unfollow()

    async def _look(self) -> None:
        canaries = [labels for labels in self._labels().values() if labels.canary is not None]
        if not canaries or not self._leads():
            await self._unfollow()
            return
        if self._fleet is None:
            fleet = FleetView(self._config, self._clock)
            await fleet.start()
            self._fleet = fleet
        for labels in canaries:
            reason = verdict(labels, tally(labels, self._fleet.brokers()))
            if reason is not None:
                await self._roll_back(labels, reason)

    async def _roll_back(self, judged: Labels, reason: str) -> None:
        def decide(catalog: Catalog) -> Labels:
            present = catalog.labels(judged.name)
            if present is not None and present != judged:
                return present
            return unlabelled(catalog, judged.name, "canary", self._clock.now_ms(), reason)

        written = await settle(self._config, decide)
        if written.reason == reason:
            _log.error("canary rolled back", model=judged.name, canary=judged.canary, reason=reason)

    async def _unfollow(self) -> None:
        fleet, self._fleet = self._fleet, None
        if fleet is not None:
            await fleet.stop()

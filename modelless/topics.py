"""Names of the topics that the system uses, and which reply topics a query may ask for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

_LEGAL = re.compile(r"[A-Za-z0-9._-]{1,249}")
JUDGED_MAX = 1000


@dataclass(frozen=True, slots=True)
class Topics:
    """Every name, from one prefix."""

    prefix: str = "modelless"

    @property
    def queries(self) -> str:
        return f"{self.prefix}.queries"

    @property
    def offline(self) -> str:
        return f"{self.prefix}.queries.offline"

    @property
    def replies(self) -> str:
        return f"{self.prefix}.replies"

    @property
    def cancel(self) -> str:
        return f"{self.prefix}.cancel"

    @property
    def registry(self) -> str:
        return f"{self.prefix}.registry"

    @property
    def profiles(self) -> str:
        return f"{self.prefix}.profiles"

    @property
    def plan(self) -> str:
        return f"{self.prefix}.plan"

    @property
    def fleet(self) -> str:
        return f"{self.prefix}.fleet"

    @property
    def feedback(self) -> str:
        return f"{self.prefix}.feedback"

    @property
    def usage(self) -> str:
        return f"{self.prefix}.usage"

    @property
    def dead_letter(self) -> str:
        return f"{self.prefix}.dead-letter"

    def task_queries(self, task: str) -> str:
        """The query topic bound to one task."""
        return f"{self.prefix}.queries.{task}"

    @lru_cache(maxsize=1000)  # noqa: B019 - a few instances per process, each for its whole life
    def task_of(self, topic: str) -> str | None:
        """The task that a query topic is bound to; None for the catch-all, the offline and foreign topics."""
        head = f"{self.prefix}.queries."
        task = topic.removeprefix(head) if topic.startswith(head) else ""
        return task if task and task != "offline" else None

    @property
    def query_pattern(self) -> str:
        """Regular expression of all our query topics."""
        return rf"^{re.escape(self.prefix)}\.queries(\..+)?$"


class ReplyTopicRule:
    """Which reply topics may be written: ``<prefix>.replies``, ``<prefix>.replies.*``, and what is configured.

    ``allowed`` holds names; a trailing ``*`` makes one a prefix. Nothing of Kafka's own (``__*``) and nothing else
    of ours is ever allowed, whatever the configuration says, since a reply there would be a loop or damage.
    """

    def __init__(self, topics: Topics, allowed: Iterable[str] = ()) -> None:
        self._topics = topics
        self._exact = {topics.replies}
        self._prefixes = [f"{topics.replies}."]
        for name in allowed:
            if name.endswith("*"):
                self._prefixes.append(name[:-1])
            else:
                self._exact.add(name)
        self._judged: dict[str, bool] = {}

    def allows(self, topic: str) -> bool:
        allowed = self._judged.get(topic)
        if allowed is None:
            if len(self._judged) >= JUDGED_MAX:
                self._judged.clear()
            allowed = self._judged[topic] = self._judge(topic)
        return allowed

    def _judge(self, topic: str) -> bool:
        if not _LEGAL.fullmatch(topic) or topic in (".", "..") or topic.startswith("__"):
            return False
        if topic in self._exact and (topic == self._topics.replies or not self._is_ours(topic)):
            return True
        return any(topic.startswith(p) for p in self._prefixes) and not self._is_ours(topic)

    def _is_ours(self, topic: str) -> bool:
        """True for our topics that are not reply topics."""
        mine = self._topics.prefix
        return (topic == mine or topic.startswith(f"{mine}.")) and not topic.startswith(f"{self._topics.replies}.")

"""What several tests of a worker's parts need."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import planted_builders
import pytest
from worker_builders import ENV

from workers import builders
from workers.executor import ChildExecutor


@pytest.fixture
async def child() -> AsyncIterator[ChildExecutor]:
    executor = await ChildExecutor.spawn("cpu", 1, lambda _: None, ENV)
    yield executor
    await executor.close()


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The planted builders are installed."""
    planted_builders.install(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    builders.installed.cache_clear()
    yield
    builders.installed.cache_clear()

"""Commands that ask wait for Kafka, and say so once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from modelless.commands import asking
from modelless.config import Config
from modelless.errors import UnavailableError


async def never() -> None:
    raise AssertionError("there is nobody to ask")


def test_a_kafka_that_is_not_there_is_named_with_what_to_do(
    make_config: Callable[[str], Config],
    free_port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(asking, "PATIENCE_S", 1.0)
    monkeypatch.setattr(asking, "RETRY_S", 0.01)
    with pytest.raises(UnavailableError, match=f"127.0.0.1:{free_port} does not answer.*modelless up"):
        asking.run(make_config(f"127.0.0.1:{free_port}"), never())
    assert capsys.readouterr().err == f"waiting for Kafka at 127.0.0.1:{free_port}, 1 s at most\n"
    assert not caplog.records

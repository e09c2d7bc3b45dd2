"""The system under the demo: a configuration of its own and ``modelless up`` as a child process."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from modelless.config import Config, load_config
from modelless.errors import UnavailableError

READY_TIMEOUT_S = 180.0
"""The first start fetches the embedded Kafka, and workers import torch."""
STOP_TIMEOUT_S = 60.0
MEASURE_S = 3.0
"""At most, for each of some thirty variants."""
BUILDERS = ("torch-fp32", "torch-bf16", "torch-int8", "onnx-fp32", "onnx-int8", "openvino-fp32")
"""Without ``torch-compile``, which takes as long as all others together."""
_LOG_LINES_SHOWN = 25
_PR_SET_PDEATHSIG = 1


def write_config(folder: Path, base: Config | None, builders: Sequence[str] = BUILDERS) -> Path:
    """A modelless.toml in ``folder`` for one broker and one worker of one thread.

    Args:
        builders: that may make variants; none: all that can work here.
        base: whose ``[kafka]`` settings to use; None, or without ``bootstrap_servers``: an embedded Kafka of the
            demo's own, empty, on a free port.
    """
    kafka: dict[str, Any] = {"topic_prefix": "modelless-demo"}
    if base is None or base.kafka.bootstrap_servers is None:
        shutil.rmtree(folder / "kafka", ignore_errors=True)
        kafka |= {"embedded_port": _free_port(), "embedded_data": folder / "kafka"}
    else:
        kafka = base.kafka.model_dump(exclude_unset=True) | kafka
    sections: dict[str, Mapping[str, Any]] = {
        "kafka": kafka,
        "broker": {"brokers": 1},
        "worker": {
            "factories_allowed": ["modelless.demo.factories"],
            "batch_size_max": 64,
            "measure_s": MEASURE_S,
            "builders": builders,
        },
        "store": {"url": folder / "store", "cache": folder / "cache"},
        "metrics": {"port": 0},
    }
    group = {"name": "cpu-small", "device": "cpu", "threads": 1, "workers": 1, "price_per_hour": 0.17}
    text = f"state = {_toml(folder / 'run')}\n\n"
    text += "\n".join(f"[{name}]\n{_lines(section)}" for name, section in sections.items())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "modelless.toml"
    path.write_text(f"{text}\n[[groups]]\n{_lines(group)}")
    return path


class System:
    """``modelless up`` with ``config_file``; an async context manager that returns when broker and workers are ready.

    Its log goes to ``log``. It ends when this process does, however that ends.
    """

    def __init__(self, config_file: Path, log: Path) -> None:
        self.config_file = config_file
        self.log = log
        self.config = load_config(config_file)
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        libc = ctypes.CDLL(None)
        command = [sys.executable, "-m", "modelless", "up", "--config", str(self.config_file)]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours to pass on, once
                preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
            )
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await self._ready()
        except TimeoutError:
            await self.stop()
            raise UnavailableError(self._complaint(f"was not ready within {READY_TIMEOUT_S:g} s")) from None
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """SIGTERM, which drains; SIGKILL to all of it when that takes too long."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            await asyncio.to_thread(process.wait)

    async def wait(self) -> None:
        """Until it ends by itself."""
        assert self._process is not None
        await asyncio.to_thread(self._process.wait)

    def check(self) -> None:
        """Raises UnavailableError, with the end of its log, when it is no longer there."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise UnavailableError(self._complaint(f"ended with status {self._process.returncode}"))

    async def _ready(self) -> None:
        """It says so in a line on stdout; an empty line is its end."""
        assert self._process is not None and self._process.stdout is not None
        if not await asyncio.to_thread(self._process.stdout.readline):
            await asyncio.to_thread(self._process.wait)
            self.check()

    def _complaint(self, what: str) -> str:
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:])
        return f"`modelless up` {what}; the end of {self.log}:\n{tail}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _lines(section: Mapping[str, Any]) -> str:
    return "".join(f"{name} = {_toml(value)}\n" for name, value in section.items())


def _toml(value: Any) -> str:
    """Strings, paths, numbers and lists of them are written alike in JSON and TOML."""
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)

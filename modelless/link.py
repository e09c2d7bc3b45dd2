"""The link: one long-lived connection between a broker and a worker, carrying :mod:`modelless.frames`.

Brokers listen, workers dial. By default that is a Unix socket with owner-only rights; a TCP address that is not
loopback needs mutual TLS, or :func:`serve` and :func:`dial` refuse to start. A link that has not heard from its
peer for ``PING_MISSES_MAX`` pings is dead, the same as one at its end of file: ``on_lost`` is called exactly once.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import os
import ssl
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

from modelless.codec import decode_frame, encode_frame
from modelless.config import Config, LinkConfig
from modelless.errors import ConfigurationError, DecodeError
from modelless.frames import FRAME_BYTES_MAX, LINK_VERSION, PING_INTERVAL_MS, PING_MISSES_MAX, Frame, Hello, Ping

_LENGTH = struct.Struct(">I")
_UNIX_PATH_BYTES_MAX = 100
_HANDSHAKE_S_MAX = 5.0
_UNSENT_BYTES_MAX = 4 * FRAME_BYTES_MAX


class Link(asyncio.Protocol):
    """One connection, seen from either side. Used from its event loop only.

    Args:
        hello: what we say first.
        on_open: called once, when the peer's Hello is here (``link.peer``).
        on_frame: every frame after that. It must not raise.
        on_lost: once, with the reason, only after ``on_open`` was called.
    """

    def __init__(
        self,
        hello: Hello,
        on_open: Callable[[Link], None],
        on_frame: Callable[[Link, Frame], None],
        on_lost: Callable[[Link, str], None],
    ) -> None:
        self.peer: Hello | None = None
        self._hello = hello
        self._on_open, self._on_frame, self._on_lost = on_open, on_frame, on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._heard_s = self._loop.time()
        self._ticker: asyncio.TimerHandle | None = None
        self._reason: str | None = None

    @property
    def name(self) -> str:
        return self.peer.name if self.peer else "?"

    def send(self, frame: Frame) -> None:
        """Queue one frame; nothing happens on a link that is closed (``on_lost`` says what became of it)."""
        if self._transport is None or self._transport.is_closing():
            return
        data = encode_frame(frame)
        if len(data) > FRAME_BYTES_MAX:
            raise ValueError(f"frame of {len(data)} bytes, at most {FRAME_BYTES_MAX} may be sent")
        self._transport.write(_LENGTH.pack(len(data)) + data)
        if self._transport.get_write_buffer_size() > _UNSENT_BYTES_MAX:
            self.close("the peer does not read")

    def close(self, reason: str = "closed by us") -> None:
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.abort() if self._transport.get_write_buffer_size() else self._transport.close()

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.send(self._hello)
        self._tick()

    def data_received(self, data: bytes) -> None:
        self._heard_s = self._loop.time()
        received = self._received
        received += data
        start = 0
        try:
            while len(received) - start >= 4:
                (length,) = _LENGTH.unpack_from(received, start)
                if length > FRAME_BYTES_MAX:
                    raise DecodeError(f"frame of {length} bytes, at most {FRAME_BYTES_MAX} is accepted")
                if len(received) - start - 4 < length:
                    break
                frame = bytes(memoryview(received)[start + 4 : start + 4 + length])
                start += 4 + length
                self._dispatch(decode_frame(frame))
        except DecodeError as error:
            self.close(f"malformed frame: {error.message}")
            received.clear()
            return
        if start:
            del received[:start]

    def connection_lost(self, error: Exception | None) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        if self.peer is not None:
            self._on_lost(self, self._reason or (str(error) if error else "the peer closed the connection"))

    def _dispatch(self, frame: Frame) -> None:
        if self.peer is not None:
            if not isinstance(frame, Ping):
                self._on_frame(self, frame)
        elif not isinstance(frame, Hello):
            self.close("the first frame was not a hello")
        elif frame.version != LINK_VERSION:
            self.close(f"the peer speaks link version {frame.version}, we speak {LINK_VERSION}")
        else:
            self.peer = frame
            self._on_open(self)

    def _tick(self) -> None:
        silence_ms = (self._loop.time() - self._heard_s) * 1000
        if silence_ms > PING_INTERVAL_MS * PING_MISSES_MAX:
            self.close(f"no ping for {silence_ms:.0f} ms")
            return
        self.send(Ping(self._loop.time() * 1000))
        self._ticker = self._loop.call_later(PING_INTERVAL_MS / 1000, self._tick)


class LinkServer:
    """A broker's listening side. ``endpoint`` is what workers dial."""

    def __init__(self, server: asyncio.Server, endpoint: str) -> None:
        self._server = server
        self.endpoint = endpoint

    def close(self) -> None:
        """Stop listening; links that are open stay open."""
        self._server.close()
        if self.endpoint.startswith("unix:"):
            Path(self.endpoint.removeprefix("unix:")).unlink(missing_ok=True)


async def serve(
    config: Config,
    hello: Hello,
    on_open: Callable[[Link], None],
    on_frame: Callable[[Link, Frame], None],
    on_lost: Callable[[Link, str], None],
) -> LinkServer:
    """Listen where ``config.link.listen`` says.

    Raises:
        ConfigurationError: an address off loopback without the three TLS files.
    """
    loop = asyncio.get_running_loop()

    def make() -> Link:
        return Link(hello, on_open, on_frame, on_lost)

    if config.link.listen == "unix":
        path = _socket_path(config.state, hello.name)
        path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            server = await loop.create_unix_server(make, str(path))
        finally:
            os.umask(mask)
        return LinkServer(server, f"unix:{path}")
    host, port = _split(config.link.listen)
    server = await loop.create_server(make, host, port, ssl=_tls(config.link, host, ssl.Purpose.CLIENT_AUTH))
    bound_port = server.sockets[0].getsockname()[1]
    return LinkServer(server, config.link.advertise or f"{host}:{bound_port}")


async def dial(
    endpoint: str,
    config: Config,
    hello: Hello,
    on_open: Callable[[Link], None],
    on_frame: Callable[[Link, Frame], None],
    on_lost: Callable[[Link, str], None],
) -> Link:
    """Connect to a broker's endpoint and say hello; ``on_open`` follows when it answers.

    Raises:
        OSError: nobody there (ssl.SSLError is one: a certificate that is not accepted).
        ConfigurationError: an address off loopback without the three TLS files.
    """
    loop = asyncio.get_running_loop()

    def make() -> Link:
        return Link(hello, on_open, on_frame, on_lost)

    async with asyncio.timeout(_HANDSHAKE_S_MAX):
        if endpoint.startswith("unix:"):
            _, link = await loop.create_unix_connection(make, endpoint.removeprefix("unix:"))
            return link
        host, port = _split(endpoint)
        tls = _tls(config.link, host, ssl.Purpose.SERVER_AUTH)
        _, link = await loop.create_connection(make, host, port, ssl=tls)
        return link


def _socket_path(state: Path, name: str) -> Path:
    """A path in ``state``, or in a folder of our own below the temporary one when that would be too long."""
    folder = (state / "run").absolute()
    path = folder / f"{name}.sock"
    if len(os.fsencode(path)) > _UNIX_PATH_BYTES_MAX:
        folder = Path(tempfile.gettempdir()) / f"modelless-{os.getuid()}"
        path = folder / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:24]}.sock"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise ConfigurationError(f"state: the folder {folder} belongs to somebody else; set `state` to one of yours")
    return path


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigurationError(f'link.listen: {address!r} is neither "unix" nor host:port')
    return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _tls(config: LinkConfig, host: str, purpose: ssl.Purpose) -> ssl.SSLContext | None:
    """Mutual TLS when it is configured; None only on loopback."""
    files = (config.ca_file, config.certificate_file, config.key_file)
    if not any(files) and _is_loopback(host):
        return None
    if config.ca_file is None or config.certificate_file is None or config.key_file is None:
        raise ConfigurationError(
            f"link: {host} is not loopback, so link.ca_file, link.certificate_file and link.key_file must all be set"
        )
    context = ssl.create_default_context(purpose, cafile=str(config.ca_file))
    context.load_cert_chain(str(config.certificate_file), str(config.key_file))
    context.verify_mode = ssl.CERT_REQUIRED
    return context

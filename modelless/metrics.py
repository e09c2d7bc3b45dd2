"""A Prometheus endpoint per process, over a registry of its own."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import structlog

from modelless.config import MetricsConfig
from modelless.errors import ConfigurationError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

PORTS_TRIED_MAX = 100


def serve_metrics(config: MetricsConfig, port_offset: int, registry: CollectorRegistry) -> str | None:
    """Serve ``registry`` from a daemon thread on ``config.port + port_offset``, or the next free port.

    Returns:
        ``host:port``, or None when metrics are off (port 0).

    Raises:
        ConfigurationError: no port could be bound; names the setting.
    """
    if config.port == 0:
        return None
    from prometheus_client import start_http_server

    wanted = config.port + port_offset
    for port in range(wanted, min(wanted + PORTS_TRIED_MAX, 65_536)):
        try:
            start_http_server(port, config.host, registry)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            raise ConfigurationError(f"metrics.host {config.host!r}: cannot listen there ({error.strerror})") from None
        if port != wanted:
            structlog.get_logger().warning("metrics port is taken, using the next free one", wanted=wanted, port=port)
        return f"{config.host}:{port}"
    raise ConfigurationError(f"metrics.port: no free port within {PORTS_TRIED_MAX} from {wanted}; choose another, or 0")

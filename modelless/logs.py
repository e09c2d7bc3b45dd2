"""Structured logs on stderr: for people on a terminal, one JSON object per line elsewhere.

Lines of other libraries (aiokafka, say) pass through the same renderer, from WARNING up, and what repeats itself
(aiokafka writes a hundred lines a second while Kafka is away) once per ``REPEAT_S``, with how often. What aiokafka
tries again by itself, since Kafka told it to (a leader that is just being chosen), is said only once it lasts.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, TextIO

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from modelless.config import LogConfig

_SECRET_PARTS = ("password", "secret", "token", "credential", "private_key")
REDACTED = "[redacted]"
REPEAT_S = 10.0
LASTS_S = 3.0
"""From when on what can be tried again is worth a line."""
_REPEATERS_MAX = 1000


def configure(
    config: LogConfig, component: str, name: str | None = None, *, stream: TextIO | None = None
) -> FilteringBoundLogger:
    """Set up logging of this process once and return its logger.

    Args:
        component: what this process is (``broker``, ``worker``, ``up``); in every line.
        name: which one (``broker-0``); in every line when given.
        stream: default ``sys.stderr``.
    """
    stream = stream or sys.stderr
    level = logging.getLevelNamesMapping()[config.level.upper()]
    console = config.format == "console" or (config.format == "auto" and stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if console else "iso", utc=not console),
        _named(component, name),
        _redact,
    ]
    render: list[Processor] = [_flatten, structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=0)]
    if not console:
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    _adopt_foreign(stream, max(level, logging.WARNING), shared, render)
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


def _named(component: str, name: str | None) -> Processor:
    def add(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("component", component)
        if name is not None:
            event.setdefault("name", name)
        return event

    return add


def _flatten(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """On a console the component is who speaks, not two more key=value pairs."""
    component, name = event.pop("component", ""), event.pop("name", None)
    event["event"] = f"{name or component}: {event.get('event', '')}"
    return event


def _redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in event:
        if any(part in key.lower() for part in _SECRET_PARTS):
            event[key] = REDACTED
    return event


class Squelch(logging.Filter):
    """Lets one line of a kind (logger, message template) pass per ``REPEAT_S``, by the records' own time.

    A first one about an error that can be tried again passes only if there are others ``LASTS_S`` later.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        name, now_s = (record.name, str(record.msg)), record.created
        if len(self._kinds) >= _REPEATERS_MAX:
            self._kinds.clear()
        kind = self._kinds.get(name)
        if kind is None or now_s - kind.last_s >= REPEAT_S:
            wait_s = LASTS_S if _can_be_tried_again(record) else 0.0
            held_back = 0 if kind is None else kind.held_back
            kind = self._kinds[name] = _Kind(now_s, now_s + wait_s, held_back)
        kind.last_s = now_s
        if now_s < kind.next_s:
            kind.held_back += 1
            return False
        if kind.held_back:
            record.msg = f"{record.getMessage()} (and {kind.held_back} more since)"
            record.args = ()
        kind.next_s, kind.held_back = now_s + REPEAT_S, 0
        return True


@dataclass(slots=True)
class _Kind:
    last_s: float
    next_s: float
    """Not before this another one passes."""
    held_back: int


def _can_be_tried_again(record: logging.LogRecord) -> bool:
    """Kafka answered so; a node that cannot be reached is another matter."""
    return isinstance(record.args, tuple) and any(
        getattr(each, "retriable", False) and getattr(each, "errno", -1) > 0 for each in record.args
    )


def _adopt_foreign(stream: TextIO, level: int, shared: list[Processor], render: list[Processor]) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    handler.addFilter(Squelch())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)

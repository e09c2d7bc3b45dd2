"""Errors: whose fault it is, and what to do next.

::

    ModellessError                     code, retriable
    ├── InvalidArgumentError           the caller sent something that cannot be served as it is
    │   ├── DecodeError                bytes that are not a message of the contract
    │   └── ConfigurationError         a setting or a model specification; names the field
    ├── NotFoundError                  no such task, model, version or variant
    ├── PermissionDeniedError          a topic that may not be used
    ├── FailedPreconditionError        no variant can meet the constraints; names the nearest that is feasible
    ├── ResourceExhaustedError         load would make it miss; ``retry_after_ms``
    ├── DeadlineExceededError          its time is over
    ├── UnavailableError               nobody there that could run it
    ├── CancelledError                 the caller no longer wants it
    └── InternalError                  our fault, or the model's

``code`` is a gRPC status name. It travels in replies and is never renamed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from modelless.messages import Reply

OK = "OK"


class ModellessError(Exception):
    """Base of every error that this package raises on purpose."""

    code: ClassVar[str] = "INTERNAL"
    retriable: ClassVar[bool] = False
    reply: Reply | None = None
    """The reply that says so, where a client raises it for one."""

    def __init__(self, message: str, *, retry_after_ms: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_ms = retry_after_ms


class InvalidArgumentError(ModellessError):
    code = "INVALID_ARGUMENT"


class DecodeError(InvalidArgumentError):
    """Bytes, headers or JSON that do not decode to a message of the contract, for whatever reason."""


class ConfigurationError(InvalidArgumentError):
    """A setting or a model specification is wrong; the message names the field and what is expected."""


class NotFoundError(ModellessError):
    code = "NOT_FOUND"


class PermissionDeniedError(ModellessError):
    code = "PERMISSION_DENIED"


class FailedPreconditionError(ModellessError):
    code = "FAILED_PRECONDITION"


class ResourceExhaustedError(ModellessError):
    code = "RESOURCE_EXHAUSTED"
    retriable = True


class DeadlineExceededError(ModellessError):
    code = "DEADLINE_EXCEEDED"
    retriable = True


class UnavailableError(ModellessError):
    code = "UNAVAILABLE"
    retriable = True


class CancelledError(ModellessError):
    code = "CANCELLED"


class InternalError(ModellessError):
    code = "INTERNAL"


BY_CODE: dict[str, type[ModellessError]] = {
    cls.code: cls
    for cls in (
        InvalidArgumentError,
        NotFoundError,
        PermissionDeniedError,
        FailedPreconditionError,
        ResourceExhaustedError,
        DeadlineExceededError,
        UnavailableError,
        CancelledError,
        InternalError,
    )
}
STATUSES: frozenset[str] = frozenset({OK, *BY_CODE})


def error_for(code: str, message: str, retry_after_ms: float | None = None) -> ModellessError:
    """The typed error for a reply's ``status``."""
    return BY_CODE.get(code, InternalError)(message, retry_after_ms=retry_after_ms)

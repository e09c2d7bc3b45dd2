from __future__ import annotations

import pytest

from modelless import errors
from modelless.errors import BY_CODE, OK, STATUSES, DecodeError, ModellessError, error_for


def _classes(base: type[ModellessError]) -> list[type[ModellessError]]:
    return [base, *[cls for child in base.__subclasses__() for cls in _classes(child)]]


def test_statuses_are_those_of_the_contract() -> None:
    assert {
        "OK", "INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
        "PERMISSION_DENIED", "UNAVAILABLE", "INTERNAL", "CANCELLED",
    } == STATUSES  # fmt: skip


def test_every_class_has_a_status_and_stands_in_the_tree() -> None:
    assert errors.__doc__
    for cls in _classes(ModellessError):
        assert cls.code in STATUSES - {OK}
        if cls.__module__ == errors.__name__:
            assert cls.__name__ in errors.__doc__


@pytest.mark.parametrize("code", BY_CODE)
def test_an_error_comes_back_from_its_code(code: str) -> None:
    error = error_for(code, "why", retry_after_ms=5.0)
    assert (error.code, error.message, str(error), error.retry_after_ms) == (code, "why", "why", 5.0)


def test_an_unknown_code_is_internal() -> None:
    assert error_for("TEAPOT", "why").code == "INTERNAL"


def test_what_may_be_tried_again() -> None:
    assert {code for code, cls in BY_CODE.items() if cls.retriable} == {
        "RESOURCE_EXHAUSTED",
        "DEADLINE_EXCEEDED",
        "UNAVAILABLE",
    }
    assert not DecodeError("x").retriable

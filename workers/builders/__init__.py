"""Builders: what variants can be made of a registered model, and how.

A **builder** is a recipe: it takes a model in some **formats** and makes one variant of it, perhaps by building a file
first (an exported graph, a compiled library), perhaps only in how it loads. It has two halves:

* a *descriptor*, :class:`Builder`, which the supervisor holds. It says what the builder takes and makes and whether it
  can work on this machine, and imports no framework for that;
* a *module*, which only executor children import. It has ``load``, and ``build`` where there is a file to build:
  see :mod:`workers.formats`.

Descriptors are found through the entry points ``modelless.builders``, our own (:mod:`workers.builders.builtin`) and
everybody else's alike. What a worker offers is every builder for its kind of device that does not refuse; a **refusal**
is a sentence for the operator, told once, and never keeps the rest from working.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Protocol

from modelless.config import GroupConfig

GROUP = "modelless.builders"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""No dots: a variant of an early exit is ``<builder>.exit<k>``."""


class Builder(Protocol):
    """A descriptor. ``device`` is a group's: ``cpu``, ``cuda:N`` or ``emulated``."""

    @property
    def name(self) -> str:
        """As in the variants' names, ``model:version/<name>``; its entry point has the same name."""

    @property
    def devices(self) -> Sequence[str]:
        """Kinds of device that it is for: ``cpu``, ``cuda``, ``emulated``. On others nobody misses it."""

    @property
    def formats(self) -> Mapping[str, str | None]:
        """Model formats that it takes, each with the extension of the one file that it builds; None: it builds none."""

    @property
    def module(self) -> str:
        """Full name of the module with ``load`` and ``build``."""

    def version(self) -> str:
        """Its own revision and its libraries' versions: what was built with another one is built anew."""

    def refusal(self, device: str) -> str | None:
        """Why it cannot work here (library, instruction set, compiler), and what to change; None: it can."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a worker can make."""

    pairs: tuple[tuple[str, str], ...]
    """(model format, builder)."""
    refusals: Mapping[str, str]
    """By the name of a builder: why it is not offered."""


@dataclass(frozen=True, slots=True)
class Installed:
    """All entry points: descriptors, and what is wrong with the others, both by name."""

    builders: Mapping[str, Builder]
    broken: Mapping[str, str]


def offer(group: GroupConfig, allowed: Sequence[str] = ()) -> Offer:
    """What a worker of ``group`` can make.

    Args:
        allowed: ``worker.builders``; names of builders, none: all. The group's own setting narrows it.
    """
    found = installed()
    pairs: list[tuple[str, str]] = []
    refusals = dict(found.broken)
    for name in {*allowed, *group.builders} - found.builders.keys() - refusals.keys():
        refusals[name] = f"there is no builder of this name; installed are: {', '.join(sorted(found.builders))}"
    for name, builder in found.builders.items():
        if any(names and name not in names for names in (allowed, group.builders)):
            continue
        if group.device.partition(":")[0] not in builder.devices:
            continue
        if (reason := _refusal(builder, group.device)) is not None:
            refusals[name] = reason
        else:
            pairs += [(format, name) for format in builder.formats]
    if not pairs and not refusals:
        refusals[GROUP] = "no builder is for this device; if ours are missing, install modelless again"
    return Offer(tuple(pairs), refusals)


def find(name: str) -> Builder | None:
    return installed().builders.get(name)


@cache
def installed() -> Installed:
    """Read once per process. A broken entry point is nobody else's problem."""
    builders: dict[str, Builder] = {}
    broken: dict[str, str] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            builder = entry.load()
            problem = _problem(entry.name, builder)
        except Exception as error:  # somebody else's code, imported for the first time
            problem = f"{entry.value} cannot be imported: {type(error).__name__}: {error}"
        if problem is None and entry.name in builders:
            problem = "two entry points have this name; the first one is used"
        if problem is not None:
            broken[entry.name] = problem[:500]
        else:
            builders[entry.name] = builder
    return Installed(builders, broken)


def _problem(name: str, builder: Builder) -> str | None:
    """What is wrong with a descriptor, read in full here so that nothing later is surprised."""
    if builder.name != name or not _NAME.fullmatch(name):
        return f"its name is {builder.name!r}; it must be its entry point's: small letters, digits, dashes, underscores"
    if not all(suffix is None or suffix.startswith(".") for suffix in dict(builder.formats).values()):
        return f"formats must map each format to an extension like '.onnx' or to None, got {builder.formats!r}"
    if not (isinstance(builder.module, str) and isinstance(builder.version(), str) and list(builder.devices)):
        return "module and version() must be text, and devices must name at least one kind"
    return None


def _refusal(builder: Builder, device: str) -> str | None:
    try:
        return builder.refusal(device)
    except Exception as error:  # as above
        return f"refusal() failed: {type(error).__name__}: {error}"[:500]

"""What goes wrong in a simulation, from texts: faults at an instant, and profiles that are wrong all along.

``lost:gpu-0@60000``: the worker is gone at that ms, with what it ran; ``back:gpu-0@90000``: there again, empty;
``slow:cpu-1*3@1000``: three times slower than its profile from then on; ``price:gpu=1.2@5000``: the group costs that
many USD per hour from then on; ``m:1/onnx@gpu*1.5``: that variant is 1.5 times slower on that group than its profile.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from modelless.errors import ConfigurationError
from simulator.facts import GroupSpec, Portfolio, group_of
from simulator.files import nearest
from simulator.world import Fault

FORMS = {
    "lost": "lost:WORKER@MS",
    "back": "back:WORKER@MS",
    "slow": "slow:WORKER*TIMES@MS",
    "price": "price:GROUP=USD@MS",
}
_NUMBER = r"(?P<{}>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)"
_FAULT = re.compile(rf"(?P<kind>\w+):(?P<name>.+?)(?:(?P<sign>[*=]){_NUMBER.format('value')})?@{_NUMBER.format('at')}")
_WRONG = re.compile(rf"(?P<variant>.+)@(?P<group>[^@]+?)\*{_NUMBER.format('value')}")
_SIGNS = {"slow": "*", "price": "="}


def parse_fault(text: str, fleet: Sequence[GroupSpec]) -> Fault:
    """Raises ConfigurationError: another form, a worker or group that is not in the fleet, faster than its profile."""
    found = _FAULT.fullmatch(text.strip())
    if found is None or found["kind"] not in FORMS or found["sign"] != _SIGNS.get(found["kind"]):
        raise ConfigurationError(f"--fault {text!r}: expected one of the forms {', '.join(FORMS.values())}")
    kind, name = found["kind"], found["name"]
    groups = [spec.name for spec in fleet]
    known = groups if kind == "price" else [worker for spec in fleet for worker in _possible(spec)]
    if name not in known:
        raise ConfigurationError(f"--fault {text!r}: the fleet has no {name!r}; it has {nearest(name, known)}")
    if kind == "back" and any(spec.scales and spec.name == group_of(name) for spec in fleet):
        raise ConfigurationError(f"--fault {text!r}: workers of {group_of(name)} are back when they are rented again")
    value = float(found["value"] or 1.0)
    if kind == "slow" and value < 1.0:
        raise ConfigurationError(f"--fault {text!r}: 1 or more times slower; nobody is faster than its profile")
    return Fault(float(found["at"]), kind, name, value)


def _possible(spec: GroupSpec) -> list[str]:
    """All workers that it may have."""
    return [f"{spec.name}-{number}" for number in range(spec.workers_max or spec.workers)]


def parse_wrong_profiles(texts: Iterable[str], portfolio: Portfolio) -> dict[tuple[str, str], float]:
    """By (variant, group), how much slower it is than its profile says."""
    truth: dict[tuple[str, str], float] = {}
    for text in texts:
        found = _WRONG.fullmatch(text.strip())
        if found is None:
            raise ConfigurationError(f"--wrong-profile {text!r}: expected VARIANT@GROUP*TIMES")
        key, value = (found["variant"], found["group"]), float(found["value"])
        if key not in portfolio.by_key:
            known = nearest(f"{key[0]}@{key[1]}", (f"{variant}@{group}" for variant, group in portfolio.by_key))
            raise ConfigurationError(f"--wrong-profile {text!r}: there is no such profile; there are {known}")
        if value < 1.0:
            raise ConfigurationError(f"--wrong-profile {text!r}: 1 or more; nobody is faster than its profile")
        truth[key] = value
    return truth

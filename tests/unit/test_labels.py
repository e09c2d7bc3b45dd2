"""What may be labelled, what is refused and how it says so, and counts of several brokers together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from broker_builders import model, profile

from modelless.errors import FailedPreconditionError, InvalidArgumentError, ModellessError, NotFoundError
from modelless.labels import Label, labelled, shadow_of, tally, unlabelled
from modelless.messages import Labels, Member, ModelVersion, Profile, Served


class Known:
    """Versions 1 to 3 of ``m``, measured; version 4 was not, version 5 failed."""

    def __init__(self, labels: Labels | None = None) -> None:
        self._labels = labels

    def models(self) -> list[ModelVersion]:
        return [model("m", version) for version in range(1, 6)]

    def profiles(self, of: ModelVersion) -> list[Profile]:
        if of.version == 5:
            return [replace(profile(of), status="failed", reason="needs 3 GB")]
        return [] if of.version == 4 else [profile(of)]

    def labels(self, name: str) -> Labels | None:
        return self._labels


def put(target: str, label: Label, before: Labels | None = None, **numbers: Any) -> Labels:
    return labelled(Known(before), target, label, now_ms=7.0, **numbers)


STABLE = Labels("m", stable=1, changed_ms=3.0)
CANARY = replace(STABLE, canary=2, canary_weight=0.1)


def test_labels_stand_beside_each_other() -> None:
    assert put("m:1", "stable") == Labels("m", stable=1, changed_ms=7.0)
    canary = put("m:2", "canary", STABLE, weight=0.25, errors_margin=0.1, latency_margin=2.0, samples_min=10)
    assert (canary.stable, canary.canary, canary.canary_weight) == (1, 2, 0.25)
    assert (canary.errors_margin, canary.latency_margin, canary.samples_min) == (0.1, 2.0, 10)
    shadowed = put("m:3/onnx-fp32", "shadow", canary, weight=0.5)
    assert (shadowed.shadow, shadowed.shadow_weight, shadowed.canary) == ("m:3/onnx-fp32", 0.5, 2)
    assert shadow_of(shadowed) == ("m:3", "m:3/onnx-fp32")
    assert shadow_of(put("m:3", "shadow")) == ("m:3", None)
    assert shadow_of(STABLE) is None


def test_promoting_a_canary_ends_it_and_forgets_why_another_was_rolled_back() -> None:
    promoted = put("m:2", "stable", replace(CANARY, reason="it failed"))
    assert (promoted.stable, promoted.canary, promoted.canary_weight, promoted.reason) == (2, None, 0.0, None)


def test_the_same_again_changes_nothing_and_a_change_is_always_later() -> None:
    assert put("m:1", "stable", STABLE) is STABLE
    ahead = replace(STABLE, changed_ms=100.0)
    assert put("m:2", "stable", ahead).changed_ms == 101.0


def test_removing() -> None:
    rolled_back = unlabelled(Known(CANARY), "m", "canary", 9.0, "it failed")
    assert rolled_back == replace(STABLE, reason="it failed", changed_ms=9.0)
    assert unlabelled(Known(STABLE), "m", "stable", 9.0).stable is None
    assert unlabelled(Known(put("m:3", "shadow")), "m", "shadow", 9.0).shadow is None
    with pytest.raises(FailedPreconditionError, match="--remove canary"):
        unlabelled(Known(CANARY), "m", "stable", 9.0)
    with pytest.raises(NotFoundError, match="there are m"):
        unlabelled(Known(), "x", "canary", 9.0)


@pytest.mark.parametrize(
    ("target", "label", "before", "numbers", "error", "words"),
    [
        ("x:1", "stable", None, {}, NotFoundError, "there are m"),
        ("m:9", "stable", None, {}, NotFoundError, "no version 9; it has 1, 2, 3"),
        ("m:new", "stable", None, {}, InvalidArgumentError, "a version is a number"),
        ("m", "stable", None, {}, InvalidArgumentError, "modelless label m:2 stable"),
        ("m:1/onnx-fp32", "stable", None, {}, InvalidArgumentError, "only a shadow is one variant"),
        ("m:1/other", "shadow", None, {}, FailedPreconditionError, "no group has measured it"),
        ("m:4", "stable", None, {}, FailedPreconditionError, "no group has measured it"),
        ("m:5", "stable", None, {}, FailedPreconditionError, "needs 3 GB"),
        ("m:2", "canary", None, {}, FailedPreconditionError, "first `modelless label m:N stable`"),
        ("m:1", "canary", STABLE, {}, FailedPreconditionError, "is stable already"),
        ("m:2", "canary", STABLE, {"weight": 0.0}, InvalidArgumentError, "--weight is a share"),
        ("m:2", "canary", STABLE, {"weight": 1.01}, InvalidArgumentError, "--weight is a share"),
        ("m:2", "canary", STABLE, {"errors_margin": -0.1}, InvalidArgumentError, "--errors-margin is from 0 to 1"),
        ("m:2", "canary", STABLE, {"latency_margin": -1.0}, InvalidArgumentError, "--latency-margin is from 0"),
        ("m:2", "canary", STABLE, {"samples_min": 0}, InvalidArgumentError, "--samples-min is at least 1"),
        ("m:2", "shadow", None, {"weight": 2.0}, InvalidArgumentError, "--weight is a share"),
    ],
)
def test_refusals_say_what_to_change(
    target: str,
    label: Label,
    before: Labels | None,
    numbers: dict[str, Any],
    error: type[ModellessError],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        put(target, label, before, **numbers)


def test_counts_of_all_brokers_under_the_present_labels() -> None:
    def broker(name: str, *served: Served) -> Member:
        return Member("broker", name, "1", "ready", served=served)

    now = Served("m:2", 10, 1, 5.0, 4, 3, 8, 2, since_ms=3.0)
    brokers = (
        broker("a", now, Served("m:1", 90, 0, 9.0, since_ms=3.0), Served("mm:2", 5, 5, 0.0, since_ms=3.0)),
        broker("b", now, Served("m:1", 1000, 900, 9.0, since_ms=2.0)),  # has not read the present labels yet
    )
    assert tally(CANARY, brokers) == {
        "m:1": Served("m:1", 90, 0, 9.0, since_ms=3.0),
        "m:2": Served("m:2", 20, 2, 10.0, 8, 6, 16, 4, since_ms=3.0),
    }

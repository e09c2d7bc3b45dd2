"""Labels of a model's versions: what an operator may set, and what was counted since. Pure.

**stable** answers; without it the newest version that can be served does. **canary** answers a share of what stable
would, and is rolled back by the leader when it fails more often, or is slower, than stable by a margin. **shadow**
gets copies of a share of the queries; what it answers is compared and dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, Protocol, get_args

from modelless.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from modelless.messages import Labels, Member, ModelVersion, Profile, Served, split_variant

Label = Literal["stable", "canary", "shadow"]
LABELS: tuple[Label, ...] = get_args(Label)
CANARY_WEIGHT, SHADOW_WEIGHT = 0.1, 1.0
_DEFAULT = Labels("")


class Catalog(Protocol):
    """What is registered and measured: :class:`modelless.catalog.Catalog`."""

    def models(self) -> Sequence[ModelVersion]: ...
    def profiles(self, model: ModelVersion) -> Sequence[Profile]: ...
    def labels(self, name: str) -> Labels | None: ...


def split_target(target: str) -> tuple[str, int | None, str | None]:
    """``name``, ``name:version`` or ``name:version/builder`` as (name, version, variant).

    Raises:
        InvalidArgumentError: the version is no number.
    """
    key, builder = split_variant(target)
    name, colon, version = key.partition(":")
    if not colon and not builder:
        return name, None, None
    if not version.isdigit():
        raise InvalidArgumentError(f"{target!r}: a version is a number, as in {name}:2; `modelless models` lists them")
    return name, int(version), target if builder else None


def labelled(
    catalog: Catalog,
    target: str,
    label: Label,
    *,
    weight: float | None = None,
    errors_margin: float | None = None,
    latency_margin: float | None = None,
    samples_min: int | None = None,
    now_ms: float,
) -> Labels:
    """The labels of the target's model once ``target`` has the label.

    Raises:
        NotFoundError: no such model, version or variant.
        InvalidArgumentError: a number out of range, or a target that cannot have the label.
        FailedPreconditionError: no group can serve it yet; or a canary without a stable version beside it.
    """
    name, version, variant = split_target(target)
    if version is None:
        raise InvalidArgumentError(f"which version of {name} is {label}? Say `modelless label {name}:2 {label}`")
    if variant is not None and label != "shadow":
        raise InvalidArgumentError(f"only a shadow is one variant; say `modelless label {name}:{version} {label}`")
    _check_served(catalog, name, version, variant)
    before = _present(catalog, name)
    if label == "stable":
        canary = None if before.canary == version else before.canary
        after = replace(before, stable=version, canary=canary, canary_weight=before.canary_weight if canary else 0.0)
    elif label == "canary":
        _check_compared(before, name, version)
        after = replace(
            before,
            canary=version,
            canary_weight=_share("--weight", CANARY_WEIGHT if weight is None else weight),
            errors_margin=_margin("--errors-margin", errors_margin, _DEFAULT.errors_margin, 1.0),
            latency_margin=_margin("--latency-margin", latency_margin, _DEFAULT.latency_margin, 100.0),
            samples_min=_samples(samples_min),
        )
    else:
        shadow_weight = _share("--weight", SHADOW_WEIGHT if weight is None else weight)
        after = replace(before, shadow=variant or str(version), shadow_weight=shadow_weight)
    return _changed(before, replace(after, reason=before.reason if label == "shadow" else None), now_ms)


def unlabelled(catalog: Catalog, name: str, label: Label, now_ms: float, reason: str | None = None) -> Labels:
    """The labels of a model once nothing of it has the label.

    Raises:
        NotFoundError: no such model.
        FailedPreconditionError: a canary would have no stable version beside it.
    """
    check_known(catalog, name)
    before = _present(catalog, name)
    if label == "stable":
        if before.canary is not None:
            raise FailedPreconditionError(
                f"{name}:{before.canary} is canary beside stable: first `modelless label {name} --remove canary`, "
                f"or promote it with `modelless label {name}:{before.canary} stable`"
            )
        after = replace(before, stable=None)
    elif label == "canary":
        after = replace(before, canary=None, canary_weight=0.0)
    else:
        after = replace(before, shadow=None, shadow_weight=0.0)
    return _changed(before, replace(after, reason=reason or before.reason), now_ms)


def check_known(catalog: Catalog, name: str) -> None:
    """Raises NotFoundError when no model has this name."""
    names = sorted({model.name for model in catalog.models()})
    if name not in names:
        raise NotFoundError(f"no model is named {name!r}; there are {', '.join(names) or 'none'}")


def shadow_of(labels: Labels) -> tuple[str, str | None] | None:
    """(``name:version``, the variant where it is one) that gets copies."""
    if labels.shadow is None:
        return None
    if labels.shadow.isdigit():
        return f"{labels.name}:{labels.shadow}", None
    return split_variant(labels.shadow)[0], labels.shadow


def tally(labels: Labels, brokers: Iterable[Member]) -> dict[str, Served]:
    """What the model's versions, and its shadow's variants, answered at all brokers under these very labels."""
    sums: dict[str, Served] = {}
    for broker in brokers:
        for served in broker.served:
            if served.since_ms == labels.changed_ms and split_variant(served.model)[0].partition(":")[0] == labels.name:
                so_far = sums.get(served.model)
                sums[served.model] = served if so_far is None else _sum(so_far, served)
    return sums


def _sum(one: Served, other: Served) -> Served:
    return Served(
        one.model,
        one.answered + other.answered,
        one.failed + other.failed,
        one.execute_ms + other.execute_ms,
        one.shadowed + other.shadowed,
        one.agreed + other.agreed,
        one.batches + other.batches,
        one.slow + other.slow,
        one.since_ms,
    )


def _present(catalog: Catalog, name: str) -> Labels:
    return catalog.labels(name) or Labels(name)


def _changed(before: Labels, after: Labels, now_ms: float) -> Labels:
    return before if after == before else replace(after, changed_ms=max(now_ms, before.changed_ms + 1))


def _check_served(catalog: Catalog, name: str, version: int, variant: str | None) -> None:
    models = [model for model in catalog.models() if model.name == name]
    model = next((model for model in models if model.version == version), None)
    if model is None:
        check_known(catalog, name)
        raise NotFoundError(f"{name} has no version {version}; it has {', '.join(str(m.version) for m in models)}")
    profiles = catalog.profiles(model)
    if variant is not None:
        profiles = [profile for profile in profiles if profile.variant == variant]
    if any(profile.status == "ready" for profile in profiles):
        return
    what = variant or model.key
    if not profiles:
        raise FailedPreconditionError(
            f"{what} cannot be served yet: no group has measured it; `modelless models` shows when one has"
        )
    reason = next((profile.reason for profile in profiles if profile.reason), "it did not say why")
    raise FailedPreconditionError(f"{what} cannot be served: it failed on {profiles[0].group} ({reason})")


def _check_compared(labels: Labels, name: str, version: int) -> None:
    if labels.stable is None:
        raise FailedPreconditionError(
            f"{name} has no stable version to compare a canary with: first `modelless label {name}:N stable`"
        )
    if labels.stable == version:
        raise FailedPreconditionError(
            f"{name}:{version} is stable already; a canary is another version, or make another one stable first"
        )


def _share(option: str, value: float) -> float:
    if not 0 < value <= 1:
        raise InvalidArgumentError(f"{option} is a share of the queries, more than 0 and at most 1; got {value:g}")
    return value


def _margin(option: str, value: float | None, default: float, most: float) -> float:
    if value is None:
        return default
    if not 0 <= value <= most:
        raise InvalidArgumentError(f"{option} is from 0 to {most:g}; got {value:g}")
    return value


def _samples(value: int | None) -> int:
    if value is not None and value < 1:
        raise InvalidArgumentError(f"--samples-min is at least 1; got {value}")
    return _DEFAULT.samples_min if value is None else value

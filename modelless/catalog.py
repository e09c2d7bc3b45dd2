"""What is registered and how it runs: the registry and the profiles, folded from their topics.

The registry has models (``model/<name>:<version>``) and labels (``labels/<name>``); the profiles' topic has profiles
(``<variant>@<group>``), conditions (``condition/<variant>@<group>``) and corrections (``correction/<variant>``).

:class:`Catalog` is the pure fold, a record at a time; :class:`CatalogView` follows the topics into one.
A record that cannot be right (undecodable, another key's, a digest that is not its content's) is refused with an
alarm, and the last good one stays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any, Protocol, TypeVar

import structlog

from modelless.codec import decode_record
from modelless.config import Config
from modelless.errors import ConfigurationError, DecodeError
from modelless.messages import Condition, Correction, Evaluation, Labels, ModelVersion, Profile, split_variant
from modelless.padding import layout_of
from modelless.tables import Follower
from modelless.tensors import TensorSpec
from modelless.topics import Topics

_Keyed = TypeVar("_Keyed", Profile, Condition, Correction, Labels)


class Record(Protocol):
    """What is read of a Kafka record."""

    @property
    def topic(self) -> str: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


def model_digest(
    *,
    name: str,
    task: str,
    format: str,
    artifact_sha256: str,
    factory: str | None,
    exits: int,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    evaluation: Evaluation,
) -> str:
    """SHA-256 (hex) over everything that decides how a model behaves, as canonical JSON; not where its files lie."""
    content = {
        "name": name,
        "task": task,
        "format": format,
        "artifact_sha256": artifact_sha256,
        "factory": factory,
        "exits": exits,
        "inputs": [_content(spec) for spec in inputs],
        "outputs": [_content(spec) for spec in outputs],
        "evaluation": [evaluation.accuracy, evaluation.data_sha256, evaluation.metric],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _content(spec: TensorSpec) -> list[Any]:
    padding = [] if spec.padding is None else [astuple(spec.padding)]
    return [spec.name, spec.datatype, list(spec.shape), *padding]


def digest_of(model: ModelVersion) -> str:
    """What ``model.digest`` must be."""
    return model_digest(
        name=model.name,
        task=model.task,
        format=model.format,
        artifact_sha256=model.artifact_sha256,
        factory=model.factory,
        exits=model.exits,
        inputs=model.inputs,
        outputs=model.outputs,
        evaluation=model.evaluation,
    )


def read_model(key: str, value: bytes | None) -> ModelVersion | None:
    """The model version of a registry record, None for a removed one. ``key`` is ``name:version``.

    Raises:
        DecodeError: undecodable, of another key, with a digest that is not its content's, or padded as nothing can be.
    """
    if value is None:
        return None
    model = decode_record(ModelVersion, value)
    if model.key != key:
        raise DecodeError(f"it is of {model.key!r}")
    if model.digest != digest_of(model):
        raise DecodeError("its digest is not its content's")
    try:
        layout_of(model.inputs, model.outputs)
    except ConfigurationError as error:
        raise DecodeError(error.message) from None
    return model


def read_profile(key: str, value: bytes | None) -> Profile | None:
    """The profile of a record, None for a removed one. ``key`` is ``variant@group``. Raises DecodeError."""
    return _read(Profile, key, value)


def read_condition(key: str, value: bytes | None) -> Condition | None:
    """Likewise; ``key`` is ``condition/variant@group``."""
    return _read(Condition, key, value)


def read_correction(key: str, value: bytes | None) -> Correction | None:
    """Likewise; ``key`` is ``correction/variant``."""
    return _read(Correction, key, value)


def read_labels(key: str, value: bytes | None) -> Labels | None:
    """Likewise; ``key`` is ``labels/name``."""
    return _read(Labels, key, value)


def _read(kind: type[_Keyed], key: str, value: bytes | None) -> _Keyed | None:
    if value is None:
        return None
    read = decode_record(kind, value)
    if read.key != key:
        raise DecodeError(f"it is of {read.key!r}")
    return read


class Catalog:
    """Everything by its record's key, as the topics say now."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._models: dict[str, ModelVersion] = {}
        self._labels: dict[str, Labels] = {}
        self._profiles: dict[str, Profile] = {}
        self._conditions: dict[str, Condition] = {}
        self._corrections: dict[str, Correction] = {}

    def apply(self, record: Record) -> str | None:
        """Take a record of either topic; a sentence for the log when it is refused."""
        key = (record.key or b"").decode("utf-8", "replace")
        try:
            if record.topic == self._topics.registry:
                self._apply_registry(key, record.value)
            if record.topic == self._topics.profiles:
                self._apply_profiles(key, record.value)
        except DecodeError as error:
            return f"record of {key!r} refused: {error.message}"
        return None

    def _apply_registry(self, key: str, value: bytes | None) -> None:
        if key.startswith("model/"):
            name = key.removeprefix("model/")
            _keep(self._models, name, read_model(name, value))
        elif key.startswith("labels/"):
            _keep(self._labels, key, read_labels(key, value))

    def _apply_profiles(self, key: str, value: bytes | None) -> None:
        if key.startswith("condition/"):
            _keep(self._conditions, key, read_condition(key, value))
        elif key.startswith("correction/"):
            _keep(self._corrections, key, read_correction(key, value))
        else:
            _keep(self._profiles, key, read_profile(key, value))

    def models(self) -> list[ModelVersion]:
        """By name, then version."""
        return sorted(self._models.values(), key=lambda model: (model.name, model.version))

    def model(self, key: str) -> ModelVersion | None:
        """``key`` is ``name:version``."""
        return self._models.get(key)

    def profile(self, variant: str, group: str) -> Profile | None:
        """The last one, though it may be stale."""
        return self._profiles.get(f"{variant}@{group}")

    def profiles(self, model: ModelVersion) -> list[Profile]:
        """Of the model's variants as they are now, by variant and group; stale ones are left out."""
        fresh = [
            profile
            for profile in self._profiles.values()
            if split_variant(profile.variant)[0] == model.key and profile.digest == model.digest
        ]
        return sorted(fresh, key=lambda profile: profile.key)

    def all_profiles(self) -> list[Profile]:
        """Of all models, by name and version."""
        return [profile for model in self.models() for profile in self.profiles(model)]

    def condition(self, profile: Profile) -> Condition | None:
        """How the profiled variant lives on its group, by the leader's last snapshot."""
        condition = self._conditions.get(f"condition/{profile.key}")
        return condition if condition is not None and condition.digest == profile.digest else None

    def conditions(self) -> list[Condition]:
        """Of everything with a profile."""
        return [found for profile in self.all_profiles() if (found := self.condition(profile)) is not None]

    def correction(self, model: ModelVersion, variant: str) -> Correction | None:
        """What labels say of one of the model's variants."""
        correction = self._corrections.get(f"correction/{variant}")
        return correction if correction is not None and correction.digest == model.digest else None

    def corrections(self) -> list[Correction]:
        """Of everything with a profile, each once."""
        digests = {profile.variant: profile.digest for profile in self.all_profiles()}
        return [each for each in self._corrections.values() if each.digest == digests.get(each.variant)]

    def labels(self, name: str) -> Labels | None:
        """Which versions of a model answer, where an operator said so."""
        return self._labels.get(f"labels/{name}")

    def find_digest(self, digest: str) -> ModelVersion | None:
        """The newest version with this digest."""
        return next((model for model in reversed(self.models()) if model.digest == digest), None)

    def next_version(self, name: str) -> int:
        return 1 + max((model.version for model in self._models.values() if model.name == name), default=0)


def _keep(table: dict[str, Any], key: str, value: Any) -> None:
    """None: it was removed."""
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value


class CatalogView:
    """A catalog that follows its topics; ``on_change`` is called after every record (sync)."""

    def __init__(self, config: Config, on_change: Callable[[], None] | None = None) -> None:
        topics = Topics(config.kafka.topic_prefix)
        self.catalog = Catalog(topics)
        self._on_change = on_change or (lambda: None)
        self._follower = Follower(config, [topics.registry, topics.profiles], self._on_record)

    async def start(self) -> None:
        """Return once everything that was there is known. Raises UnavailableError."""
        await self._follower.start()

    async def stop(self) -> None:
        await self._follower.stop()

    def _on_record(self, record: Any) -> None:
        alarm = self.catalog.apply(record)
        if alarm:
            structlog.get_logger().error(alarm, topic=record.topic, offset=record.offset)
        self._on_change()

"""What is registered and how it runs: the registry and the profiles, folded from their topics.

:class:`Catalog` is the pure fold, a record at a time; :class:`CatalogView` follows the topics into one.
A record that cannot be right (undecodable, another key's, a digest that is not its content's) is refused with an
alarm, and the last good one stays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import structlog

from modelless.codec import decode_record
from modelless.config import Config
from modelless.errors import DecodeError
from modelless.messages import Evaluation, ModelVersion, Profile, split_variant
from modelless.tables import Follower
from modelless.tensors import TensorSpec
from modelless.topics import Topics


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
        "inputs": [[spec.name, spec.datatype, list(spec.shape)] for spec in inputs],
        "outputs": [[spec.name, spec.datatype, list(spec.shape)] for spec in outputs],
        "evaluation": [evaluation.accuracy, evaluation.data_sha256, evaluation.metric],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


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
        DecodeError: undecodable, of another key, or with a digest that is not its content's.
    """
    if value is None:
        return None
    model = decode_record(ModelVersion, value)
    if model.key != key:
        raise DecodeError(f"it is of {model.key!r}")
    if model.digest != digest_of(model):
        raise DecodeError("its digest is not its content's")
    return model


def read_profile(key: str, value: bytes | None) -> Profile | None:
    """The profile of a record, None for a removed one. ``key`` is ``variant@group``. Raises DecodeError."""
    if value is None:
        return None
    profile = decode_record(Profile, value)
    if profile.key != key:
        raise DecodeError(f"it is of {profile.key!r}")
    return profile


class Catalog:
    """The models by ``name:version`` and the profiles by ``(variant, group)``, as the topics say now."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._models: dict[str, ModelVersion] = {}
        self._profiles: dict[tuple[str, str], Profile] = {}

    def apply(self, record: Record) -> str | None:
        """Take a record of either topic; a sentence for the log when it is refused."""
        key = (record.key or b"").decode("utf-8", "replace")
        try:
            if record.topic == self._topics.registry and key.startswith("model/"):
                self._apply_model(key.removeprefix("model/"), record.value)
            if record.topic == self._topics.profiles:
                self._apply_profile(key, record.value)
        except DecodeError as error:
            return f"record of {key!r} refused: {error.message}"
        return None

    def _apply_model(self, key: str, value: bytes | None) -> None:
        model = read_model(key, value)
        if model is None:
            self._models.pop(key, None)
        else:
            self._models[key] = model

    def _apply_profile(self, key: str, value: bytes | None) -> None:
        variant, _, group = key.rpartition("@")
        profile = read_profile(key, value)
        if profile is None:
            self._profiles.pop((variant, group), None)
        else:
            self._profiles[variant, group] = profile

    def models(self) -> list[ModelVersion]:
        """By name, then version."""
        return sorted(self._models.values(), key=lambda model: (model.name, model.version))

    def profiles(self, model: ModelVersion) -> list[Profile]:
        """Of the model's variants as they are now, by variant and group; stale ones are left out."""
        fresh = [
            profile
            for profile in self._profiles.values()
            if split_variant(profile.variant)[0] == model.key and profile.digest == model.digest
        ]
        return sorted(fresh, key=lambda profile: profile.key)

    def find_digest(self, digest: str) -> ModelVersion | None:
        """The newest version with this digest."""
        return next((model for model in reversed(self.models()) if model.digest == digest), None)

    def next_version(self, name: str) -> int:
        return 1 + max((model.version for model in self._models.values() if model.name == name), default=0)


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

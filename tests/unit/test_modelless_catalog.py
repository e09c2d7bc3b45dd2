"""The catalog that commands and workers fold: every kind of record under its key, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace

from broker_builders import model, profile

from modelless.catalog import Catalog, digest_of
from modelless.codec import encode_record
from modelless.messages import Condition, Correction, Labels
from modelless.topics import Topics

TOPICS = Topics()


@dataclass(frozen=True)
class Record:
    topic: str
    key: bytes
    value: bytes | None


MODEL = replace(model(), digest=digest_of(model()))
PROFILE = replace(profile(MODEL), digest=MODEL.digest)
CONDITION = Condition(PROFILE.variant, "cpu", MODEL.digest, "interfered", p50_scale=3.0, p99_scale=4.0)
CORRECTION = Correction(PROFILE.variant, MODEL.digest, 100.0, 90.0, 0.9, 0.85, 0.94)
LABELS = Labels("m", stable=1)


def folded(*records: Record) -> Catalog:
    catalog = Catalog(TOPICS)
    for record in records:
        assert catalog.apply(record) is None
    return catalog


def record(of: Condition | Correction, key: str | None = None) -> Record:
    return Record(TOPICS.profiles, (key or of.key).encode(), encode_record(of))


def test_conditions_corrections_and_labels_stand_beside_models_and_profiles() -> None:
    labels = Record(TOPICS.registry, LABELS.key.encode(), encode_record(LABELS))
    catalog = folded(
        Record(TOPICS.registry, b"model/m:1", encode_record(MODEL)),
        labels,
        Record(TOPICS.profiles, PROFILE.key.encode(), encode_record(PROFILE)),
        record(CONDITION),
        record(CORRECTION),
    )
    assert catalog.models() == [MODEL]
    assert catalog.profiles(MODEL) == [PROFILE]
    assert catalog.condition(PROFILE) == CONDITION
    assert catalog.correction(MODEL, PROFILE.variant) == CORRECTION
    assert catalog.labels("m") == LABELS
    assert catalog.apply(replace(labels, value=None)) is None
    assert catalog.labels("m") is None


def test_what_was_said_of_another_digest_does_not_count() -> None:
    catalog = folded(record(replace(CONDITION, digest="0" * 64)), record(replace(CORRECTION, digest="0" * 64)))
    assert catalog.condition(PROFILE) is None
    assert catalog.correction(MODEL, PROFILE.variant) is None


def test_a_record_under_anothers_key_is_refused_and_the_last_good_one_stays() -> None:
    catalog = folded(record(CONDITION))
    alarm = catalog.apply(record(replace(CONDITION, variant="m:2/onnx-fp32"), CONDITION.key))
    assert alarm is not None
    assert "m:2/onnx-fp32" in alarm
    assert catalog.condition(PROFILE) == CONDITION

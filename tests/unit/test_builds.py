"""What is built once is found again: in the process, by a profile, by the machine's notes; and never by a pickle."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from workshop_builders import Shop, model_of

from modelless import store
from modelless.config import Config, load_config
from modelless.messages import ModelVersion, Profile
from workers.builds import BuildError, build_key
from workers.executor import ExecutionError

pytestmark = pytest.mark.usefixtures("third_party")

PLANTED = "m:1/planted"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(
        store={"url": str(tmp_path / "store"), "cache": tmp_path / "cache"}, worker={"build_s_max": 60, "measure_s": 1}
    )


@pytest.fixture
def model(config: Config, tmp_path: Path) -> ModelVersion:
    return model_of(config, tmp_path)


def on_another_machine(config: Config, tmp_path: Path) -> Config:
    return config.model_copy(update={"store": config.store.model_copy(update={"cache": tmp_path / "elsewhere"})})


def test_a_key_depends_on_everything_that_decides_what_is_built() -> None:
    def key(**other: object) -> str:
        fields = {"model_digest": "d", "builder": "b", "version": "1", "fingerprint": "cpu", "exit": None}
        return build_key(**(fields | other))  # type: ignore[arg-type]

    others = {"model_digest": "e", "builder": "c", "version": "2", "fingerprint": "gpu", "exit": 1}
    keys = [key(), *(key(**{name: value}) for name, value in others.items())]
    assert len(set(keys)) == len(keys)
    assert key() == key()
    assert key(builder="b1", version="") != key(builder="b", version="1")


async def test_built_once_and_found_again(config: Config, model: ModelVersion, tmp_path: Path) -> None:
    first = Shop(config)
    assert first.builds.is_needed(PLANTED, model)
    assert not first.builds.is_needed("m:1/onnx-fp32", model)
    assert await first.builds.find(PLANTED, model) is None
    built = await first.builds.make(PLANTED, model)
    assert built.build_ms > 0
    assert (await first.builds.find(PLANTED, model)) == built
    assert store.file_sha256(built.path) == built.sha256
    assert not list(config.store.cache.glob("building-*"))

    restarted = Shop(config)
    found = await restarted.builds.find(PLANTED, model)
    assert found is not None
    assert (found.key, found.sha256, found.build_ms) == (built.key, built.sha256, 0.0)

    elsewhere = Shop(on_another_machine(config, tmp_path))
    assert await elsewhere.builds.find(PLANTED, model) is None  # nothing in Kafka names it yet
    elsewhere.register(model)
    profile = Profile(PLANTED, "another-group", "ready", model.digest, build_key=built.key)
    named = replace(profile, build_url=built.url, build_sha256=built.sha256)
    await elsewhere.write(elsewhere.topics.profiles, named.key.encode(), _encoded(named))
    found = await elsewhere.builds.find(PLANTED, model)
    assert found is not None
    assert found.path != built.path
    assert found.path.read_bytes() == built.path.read_bytes()
    for shop in (first, restarted, elsewhere):
        assert shop.builds.made == (shop is first)
        await shop.builds.close()


def damage(url: str) -> Path:
    blob = Path(url.removeprefix("file://"))
    blob.write_bytes(b"not what its digest says")
    return blob


def _encoded(profile: Profile) -> bytes:
    from modelless.codec import encode_record

    return encode_record(profile)


async def test_what_is_damaged_or_gone_is_built_anew(config: Config, model: ModelVersion, tmp_path: Path) -> None:
    shop = Shop(config)
    built = await shop.builds.make(PLANTED, model)
    built.path.write_bytes(b"damaged")
    assert await Shop(config).builds.find(PLANTED, model) is None
    note = config.store.cache / "builds" / f"{built.key}.json"
    for text in ("{", "[]", '{"sha256": 7}', json.dumps({"sha256": "0" * 64})):
        note.write_text(text)
        assert await Shop(config).builds.find(PLANTED, model) is None
    blob = damage(built.url)
    elsewhere = Shop(on_another_machine(config, tmp_path))
    elsewhere.register(model)
    named = Profile(
        PLANTED, "cpu", "ready", model.digest, build_key=built.key, build_url=built.url, build_sha256=built.sha256
    )
    await elsewhere.write(elsewhere.topics.profiles, named.key.encode(), _encoded(named))
    assert await elsewhere.builds.find(PLANTED, model) is None
    assert (await elsewhere.builds.make(PLANTED, model)).sha256 == built.sha256
    assert store.file_sha256(blob) == built.sha256
    await shop.builds.close()
    await elsewhere.builds.close()


async def test_two_that_build_the_same_do_each_other_no_harm(config: Config, model: ModelVersion) -> None:
    shops = [Shop(config) for _ in range(3)]
    made = await asyncio.gather(*(shop.builds.make(PLANTED, model) for shop in shops))
    assert len({built.sha256 for built in made}) == 1
    assert store.file_sha256(made[0].path) == made[0].sha256
    for shop in shops:
        assert await shop.builds.find(PLANTED, model) is not None
        await shop.builds.close()


async def test_what_cannot_be_built_says_why(config: Config, model: ModelVersion) -> None:
    shop = Shop(config.model_copy(update={"worker": config.worker.model_copy(update={"build_s_max": 1.0})}))
    with pytest.raises(BuildError, match="operator that nobody knows"):
        await shop.builds.make("m:1/refused", model)
    with pytest.raises(BuildError, match="brought its executor down"):
        await shop.builds.make("m:1/dying", model)
    with pytest.raises(BuildError, match=r"longer than 1 s, which is worker\.build_s_max"):
        await shop.builds.make("m:1/endless", model)
    with pytest.raises(ExecutionError, match="'unknown' is not installed here"):
        shop.builds.is_needed("m:1/unknown", model)
    assert shop.spawned == 3, "each of the three ended the executor that it had"
    assert shop.builds.made == 0
    await shop.builds.close()

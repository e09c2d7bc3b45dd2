"""What is built and measured, in which order, and what happens when it fails. With real executors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from workshop_builders import Shop, model_of

from modelless.config import Config, load_config
from modelless.messages import Profile
from workers import workshop

pytestmark = pytest.mark.usefixtures("third_party")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(
        store={"url": str(tmp_path / "store"), "cache": tmp_path / "cache"},
        worker={"build_s_max": 30, "measure_s": 0.2, "batch_size_max": 4},
    )


@asynccontextmanager
async def running(*shops: Shop) -> AsyncIterator[None]:
    for shop in shops:
        shop.shop.start()
    try:
        yield
    finally:
        for shop in shops:
            await shop.shop.stop()
            assert all(task.cancelled() for task in shop.shop.tasks), "nothing ended by itself"


async def until(reached: Callable[[], bool], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not reached():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def states(shop: Shop) -> list[tuple[str, str]]:
    return [(profile.variant.partition("/")[2], profile.status) for profile in shop.written]


async def test_quick_ones_first_and_failures_in_nobodys_way(config: Config, tmp_path: Path) -> None:
    shop = Shop(config)
    shop.register(model_of(config, tmp_path))
    variants = tuple(f"m:1/{name}" for name in ("dying", "unknown", "refused", "planted", "onnx-fp32"))
    shop.plan(measure=variants)
    async with running(shop):
        await until(lambda: len(shop.written) == 5)
        await asyncio.sleep(0.3)
    assert states(shop)[0] == ("onnx-fp32", "ready")
    found = dict(states(shop))
    assert found == {
        "onnx-fp32": "ready",
        "planted": "ready",
        "dying": "failed",
        "unknown": "failed",
        "refused": "failed",
    }
    assert len(shop.written) == 5, "each says once how it went"
    by_name = {profile.variant.partition("/")[2]: profile for profile in shop.written}
    assert "operator that nobody knows" in (by_name["refused"].reason or "")
    planted = by_name["planted"]
    assert planted.build_ms > 0
    assert planted.build_key
    assert planted.build_url
    assert planted.build_sha256
    assert (planted.accuracy, planted.accuracy_low) == (0.9, 0.9)
    assert by_name["onnx-fp32"].build_key is None
    assert shop.errors == {}
    assert shop.spawned <= 5, "what nothing went wrong in is used again"


async def test_another_worker_and_another_group_need_not_build(config: Config, tmp_path: Path) -> None:
    first, model = Shop(config), model_of(config, tmp_path)
    first.register(model)
    first.plan(measure=("m:1/planted",))
    async with running(first):
        await until(lambda: bool(first.written))
    elsewhere = config.model_copy(update={"store": config.store.model_copy(update={"cache": tmp_path / "elsewhere"})})
    second = Shop(elsewhere, first.catalog, worker="cpu-1")
    second.plan(load=("m:1/planted",))
    second.shop.ask("m:1/planted", model)
    async with running(second):
        await until(lambda: bool(second.asked_for))
    assert second.asked_for == [("m:1/planted", None)]
    assert (first.builds.made, second.builds.made) == (1, 0)


async def test_what_is_built_for_loading_and_fails_is_told_and_its_groups_profile_stays(
    config: Config, tmp_path: Path
) -> None:
    shop, model = Shop(config), model_of(config, tmp_path)
    shop.register(model)
    other = Profile("m:1/refused", "cpu", "ready", model.digest, build_key="another machine's", build_sha256="0" * 64)
    await shop.write(shop.topics.profiles, other.key.encode(), encoded(other))
    shop.plan(load=("m:1/refused",))
    shop.shop.ask("m:1/refused", model)
    async with running(shop):
        await until(lambda: bool(shop.asked_for))
    assert shop.asked_for == [("m:1/refused", "this model has an operator that nobody knows")]
    assert shop.written == [other]


def encoded(profile: Profile) -> bytes:
    from modelless.codec import encode_record

    return encode_record(profile)


async def test_outdated_is_measured_again_without_building(config: Config, tmp_path: Path) -> None:
    shop = Shop(config)
    shop.register(model_of(config, tmp_path))
    shop.plan(measure=("m:1/planted",))
    async with running(shop):
        await until(lambda: len(shop.written) == 1)
        first = shop.written[0]
        shop.plan(planted=first.measured_ms - 1)
        await asyncio.sleep(0.3)
        assert len(shop.written) == 1, "it is newer than that"
        shop.plan(planted=first.measured_ms)
        await until(lambda: len(shop.written) == 2)
        await asyncio.sleep(0.3)
    again = shop.written[1]
    assert len(shop.written) == 2
    assert again.measured_ms > first.measured_ms
    assert (again.build_key, again.build_ms) == (first.build_key, first.build_ms)
    assert shop.builds.made == 1


async def test_measuring_again_in_vain_leaves_the_profile(config: Config, tmp_path: Path) -> None:
    shop, model = Shop(config), model_of(config, tmp_path)
    shop.register(model)
    good = Profile("m:1/unknown", "cpu", "ready", model.digest, measured_ms=5.0)
    await shop.write(shop.topics.profiles, good.key.encode(), encoded(good))
    shop.plan(unknown=5.0)
    async with running(shop):
        await until(lambda: bool(shop.errors))
        await asyncio.sleep(0.2)
    assert "its profile stays" in shop.errors["m:1/unknown"]
    assert shop.changes == 2, "it began and ended once"
    assert shop.written == [good]


async def test_a_new_model_does_not_wait_for_a_build(config: Config, tmp_path: Path) -> None:
    """It is measured beside it, and once more when nothing is built any more."""
    limited = config.model_copy(update={"worker": config.worker.model_copy(update={"build_s_max": 3.0})})
    shop = Shop(limited)
    for name in ("m", "n"):
        shop.register(model_of(limited, tmp_path, name))
    shop.plan(measure=("m:1/endless", "m:1/onnx-fp32"))
    async with running(shop):
        await until(lambda: states(shop) == [("onnx-fp32", "ready")])
        await asyncio.sleep(0.2)
        shop.plan(measure=("m:1/endless", "n:1/onnx-fp32", "n:1/planted"))
        await until(lambda: len(shop.written) == 2, 2.5)
        assert shop.written[1].variant == "n:1/onnx-fp32"
        await until(lambda: len(shop.written) == 5)
    rest = [profile.variant for profile in shop.written[2:]]
    assert rest[0] == "m:1/endless"
    assert sorted(rest[1:]) == ["n:1/onnx-fp32", "n:1/planted"]


async def test_what_may_pass_is_tried_again(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the cache cannot be written for a while."""
    monkeypatch.setattr(workshop, "RETRY_S", 0.3)
    shop, model = Shop(config), model_of(config, tmp_path)
    shop.register(model)
    config.store.cache.write_text("a file is in the way")
    shop.plan(measure=("m:1/onnx-fp32", "m:1/planted"))
    async with running(shop):
        await until(lambda: len(shop.errors) == 2)
        assert shop.written == []
        config.store.cache.unlink()
        await until(lambda: len(shop.written) == 2)
    assert {status for _, status in states(shop)} == {"ready"}
    assert shop.errors == {}

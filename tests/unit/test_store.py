"""The store: what goes in comes out by digest, and nothing that could be a pickle does either."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from modelless import store
from modelless.config import Config, StoreConfig
from modelless.errors import InvalidArgumentError, NotFoundError

EMULATED = b"group,batch_size,p50_ms,p99_ms,load_ms,memory_mb\ngpu,1,1.0,1.2,100,50\n"


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(store=StoreConfig(url=str(tmp_path / "store"), cache=tmp_path / "cache"))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def protobuf_onnx() -> bytes:
    return bytes([0x08, 8, 0x12, 2]) + b"me" + bytes([0x3A, 3]) + b"abc" + bytes([0x42, 0])


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"ab"


def npz(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.asarray(value) for name, value in arrays.items()})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("m.onnx", protobuf_onnx()),
        ("m.safetensors", safetensors()),
        ("m.csv", EMULATED),
        ("m.npz", npz(x=[1.0], labels=[1])),
    ],
)
def test_round_trip(config: Config, tmp_path: Path, name: str, data: bytes) -> None:
    url, sha256, size_bytes = store.put(config, write(tmp_path / name, data))

    assert sha256 == hashlib.sha256(data).hexdigest()
    assert size_bytes == len(data)
    assert url.endswith(f"/{sha256[:2]}/{sha256}{Path(name).suffix}")
    local = store.fetch(config, url, sha256)
    assert local.read_bytes() == data
    assert [p.name for p in (tmp_path / "store").rglob("incoming-*")] == []


def test_another_working_folder_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    url, sha256, _ = store.put(Config(), write(tmp_path / "m.csv", EMULATED))
    monkeypatch.chdir(tmp_path / "elsewhere")

    assert store.fetch(Config(), url, sha256).read_bytes() == EMULATED


def test_other_filesystems(tmp_path: Path) -> None:
    config = Config(store=StoreConfig(url="memory://models", cache=tmp_path / "cache"))
    url, sha256, _ = store.put(config, write(tmp_path / "m.csv", EMULATED))

    assert url.startswith("memory://")
    assert store.fetch(config, url, sha256).read_bytes() == EMULATED


def test_cache_answers_without_the_store(config: Config, tmp_path: Path) -> None:
    url, sha256, _ = store.put(config, write(tmp_path / "m.csv", EMULATED))
    first = store.fetch(config, url, sha256)
    Path(url.removeprefix("file://")).unlink()

    assert store.fetch(config, url, sha256) == first


def test_damaged_cache_is_replaced(config: Config, tmp_path: Path) -> None:
    url, sha256, _ = store.put(config, write(tmp_path / "m.csv", EMULATED))
    store.fetch(config, url, sha256).write_bytes(EMULATED + b"gpu,2,1,1,1,1\n")

    assert store.fetch(config, url, sha256).read_bytes() == EMULATED


def test_damaged_blob_is_refused_and_not_cached(config: Config, tmp_path: Path) -> None:
    url, sha256, _ = store.put(config, write(tmp_path / "m.csv", EMULATED))
    Path(url.removeprefix("file://")).write_bytes(EMULATED + b"x")

    with pytest.raises(InvalidArgumentError, match="has digest"):
        store.fetch(config, url, sha256)
    assert list((tmp_path / "cache").rglob("*.csv")) == []


def test_missing_blob(config: Config) -> None:
    with pytest.raises(NotFoundError, match="register the model again"):
        store.fetch(config, "file:///nowhere/x.onnx", "0" * 64)


@pytest.mark.parametrize("sha256", ["", "../../etc/passwd", "A" * 64, "0" * 63])
def test_digest_must_be_one(config: Config, sha256: str) -> None:
    with pytest.raises(InvalidArgumentError, match="SHA-256"):
        store.fetch(config, "file:///nowhere/x.onnx", sha256)


@pytest.mark.parametrize("extension", [".onnx", ".safetensors", ".csv", ".npz", ".pt", ".pkl", ".pt2", ""])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickles_are_refused_under_every_name(config: Config, tmp_path: Path, extension: str, protocol: int) -> None:
    canary = tmp_path / "canary"
    blob = pickle.dumps(Canary(canary), protocol=protocol)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("model/data.pkl", blob)
    objects = npz(x=np.array([Canary(canary)], dtype=object))

    for data in (blob, zipped.getvalue(), objects):
        path = write(tmp_path / f"m{extension}", data)
        with pytest.raises(InvalidArgumentError):
            store.put(config, path)
        with pytest.raises(InvalidArgumentError):
            store.fetch(config, f"file://{path}", hashlib.sha256(data).hexdigest())
    assert not canary.exists()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("m.onnx", protobuf_onnx()[:-1]),
        ("m.onnx", b""),
        ("m.onnx", b"\x08" + b"\xff" * 20),
        ("m.safetensors", struct.pack("<Q", 1000) + b"{}"),
        ("m.safetensors", b"\x01"),
        ("m.csv", b"a,b\n1,2\n"),
        ("m.npz", b"PK\x03\x04"),
        ("m.npz", npz()),
    ],
)
def test_files_that_are_not_what_they_say(config: Config, tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"^{name}: "):
        store.put(config, write(tmp_path / name, data))


def test_what_this_process_has_verified_is_not_read_again_until_somebody_writes_to_it(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, sha256, _ = store.put(config, write(tmp_path / "m.csv", EMULATED))
    local = store.fetch(config, url, sha256)
    read: list[Path] = []
    real = store.file_sha256
    monkeypatch.setattr(store, "file_sha256", lambda path: (read.append(path), real(path))[1])
    assert store.fetch(config, url, sha256) == local
    assert read == []
    of = local.stat()
    local.write_bytes(EMULATED[::-1])
    os.utime(local, ns=(of.st_atime_ns, of.st_mtime_ns))
    assert store.fetch(config, url, sha256).read_bytes() == EMULATED, "as long, and as old as before, and noticed"
    assert read == [local]

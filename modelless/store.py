"""The store: artifacts named by their digest, at any fsspec address (default: a local folder).

A blob lies at ``<store>/<sha256[:2]>/<sha256>.<extension>``. What it may be is decided by its extension *and*
its structure, on the way in and again on the way out, and nothing that could be a pickle passes: no ``.pt``, no
zip but an ``.npz`` of plain arrays, no file whose first bytes are not those of its format.

What workers **build** of a model lies there too. It may be of any kind that a builder makes, compiled code included,
so it is only ever fetched by a digest that a worker wrote to Kafka, or kept in its own cache; a pickle it may not be
either.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import numpy as np

from modelless.config import Config
from modelless.errors import ConfigurationError, InvalidArgumentError, NotFoundError

BLOB_BYTES_MAX = 16 * 1024**3
EMULATED_HEADER = "group,batch_size,p50_ms,p99_ms,load_ms,memory_mb"
_BUILT_SUFFIX = re.compile(r"\.[a-z0-9]{1,16}")
_PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".joblib")
_CHUNK_BYTES = 1024 * 1024
_SAFETENSORS_HEADER_BYTES_MAX = 100 * 1000 * 1000  # the format's own limit


def put(config: Config, path: Path, *, built: bool = False) -> tuple[str, str, int]:
    """Copy a file into the store, atomically. Blocks; call it in a thread.

    Args:
        built: a worker made it; see the module.

    Returns:
        Its absolute address, SHA-256 (hex) and size in bytes.

    Raises:
        InvalidArgumentError: the file is not what its extension says, or of a kind that the store refuses.
        ConfigurationError: the store cannot be written.
    """
    inspect(path, built=built)
    filesystem, root = _open_store(_absolute(config.store.url))
    temporary = f"{root}/incoming-{uuid4().hex}"
    try:
        filesystem.makedirs(root, exist_ok=True)
        with path.open("rb") as source, filesystem.open(temporary, "wb") as target:
            sha256, size_bytes = _copy(source, target)
        blob = _blob(root, sha256, path.suffix)
        filesystem.makedirs(blob.rpartition("/")[0], exist_ok=True)
        filesystem.mv(temporary, blob)
    except OSError as error:
        with suppress(OSError):
            filesystem.rm_file(temporary)
        raise ConfigurationError(f"store.url {config.store.url!r}: cannot write there ({_reason(error)})") from error
    return filesystem.unstrip_protocol(blob), sha256, size_bytes


def fetch(config: Config, url: str, sha256: str, *, built: bool = False) -> Path:
    """A local copy of a blob, verified; from the cache when it is there. Blocks; call it in a thread.

    Raises:
        NotFoundError: there is nothing at ``url``.
        InvalidArgumentError: what is there has another digest, or is of a kind that the store refuses.
    """
    suffix = Path(url.rpartition("/")[2]).suffix
    if not (len(sha256) == 64 and all(c in "0123456789abcdef" for c in sha256)):
        raise InvalidArgumentError(f"artifact digest {sha256[:80]!r} is not a SHA-256 in lower-case hex")
    local = cached(config, sha256, suffix)
    if local.is_file() and (_is_verified(local, built) or file_sha256(local) == sha256):
        inspect(local, built=built)
        _verified[local, built] = _identity(local)
        return local
    temporary = local.with_name(f"incoming-{uuid4().hex}{suffix}")
    local.parent.mkdir(parents=True, exist_ok=True)
    try:
        found = _download(url, temporary)
        if found != sha256:
            raise InvalidArgumentError(f"artifact has digest {found}, but {sha256} was registered")
        inspect(temporary, built=built)
        temporary.replace(local)
        _verified[local, built] = _identity(local)
    finally:
        temporary.unlink(missing_ok=True)
    return local


_verified: dict[tuple[Path, bool], tuple[int, ...]] = {}
"""What this process has read and found to be as its name says; it need not be read again, which takes a second for each
gigabyte, while nobody has written to it."""


def _is_verified(path: Path, built: bool) -> bool:
    return _verified.get((path, built)) == _identity(path)


def _identity(path: Path) -> tuple[int, ...]:
    """Another one after any write; its last part cannot be set back."""
    of = path.stat()
    return of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns


def cached(config: Config, sha256: str, suffix: str) -> Path:
    """Where the local copy of a blob lies, if there is one."""
    return Path(_blob(str(config.store.cache.absolute()), sha256, suffix))


def file_sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def inspect(path: Path, *, built: bool = False) -> None:
    """Refuse a file that is not what its extension says, reading as little of it as that takes.

    Args:
        built: it need not be of a kind that can be registered.

    Raises:
        InvalidArgumentError: names the file and what is accepted.
    """
    check = _CHECKS.get(path.suffix.lower(), _check_built if built else None)
    if check is None:
        raise InvalidArgumentError(f"{path.name}: the store holds only {', '.join(_CHECKS)} files")
    size_bytes = path.stat().st_size
    if size_bytes > BLOB_BYTES_MAX:
        raise InvalidArgumentError(f"{path.name}: {size_bytes} bytes are more than the store's {BLOB_BYTES_MAX}")
    problem = check(path, size_bytes)
    if problem:
        raise InvalidArgumentError(f"{path.name}: {problem}")


# --- what a file of each kind looks like: None, or what is wrong with it ------------------------------------------


def _check_onnx(path: Path, size_bytes: int) -> str | None:
    """ONNX is one protobuf message ModelProto: ir_version = 1, graph = 7, both always present."""
    with path.open("rb") as source:
        try:
            fields = set(_protobuf_fields(source, size_bytes))
        except ValueError:
            return "is not an ONNX model"
    return None if {1, 7} <= fields else "is not an ONNX model (it lacks ir_version or graph)"


def _protobuf_fields(source: IO[bytes], size_bytes: int) -> Iterator[int]:
    """Numbers of a message's top-level fields; ValueError unless they fill the file exactly."""
    while source.tell() < size_bytes:
        tag = _varint(source)
        match tag & 7:
            case 0:
                _varint(source)
            case 1:
                source.seek(8, os.SEEK_CUR)
            case 2:
                source.seek(_varint(source), os.SEEK_CUR)
            case 5:
                source.seek(4, os.SEEK_CUR)
            case _:
                raise ValueError("wire type")
        yield tag >> 3
    if source.tell() != size_bytes:
        raise ValueError("truncated")


def _varint(source: IO[bytes]) -> int:
    value = 0
    for shift in range(0, 63, 7):
        byte = source.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("varint")


def _check_safetensors(path: Path, size_bytes: int) -> str | None:
    """An unsigned 64-bit length, then that many bytes of a JSON object, then the tensors."""
    with path.open("rb") as source:
        head = source.read(9)
    if len(head) < 9 or head[8:9] != b"{":
        return "is not a safetensors file"
    (header_bytes,) = struct.unpack("<Q", head[:8])
    if header_bytes > min(size_bytes - 8, _SAFETENSORS_HEADER_BYTES_MAX):
        return "is not a safetensors file (its header is longer than the file)"
    return None


def _check_emulated(path: Path, size_bytes: int) -> str | None:
    with path.open("rb") as source:
        first = source.readline(200).strip()
    return None if first == EMULATED_HEADER.encode() else f"the first line of an emulated model is {EMULATED_HEADER}"


def _check_npz(path: Path, size_bytes: int) -> str | None:
    """A zip of ``.npy`` files, none of which holds objects (they would be pickles)."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if not names or not all(name.endswith(".npy") for name in names):
                return "is not an .npz of plain arrays"
            for name in names:
                with archive.open(name) as member:
                    if _npy_dtype(member).hasobject:
                        return f"array {name.removesuffix('.npy')!r} holds Python objects; save numbers"
    except (zipfile.BadZipFile, ValueError, EOFError):
        return "is not an .npz of plain arrays"
    return None


def _npy_dtype(member: IO[bytes]) -> np.dtype[Any]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(member)[2]


def _check_built(path: Path, size_bytes: int) -> str | None:
    """Of a kind that only its builder knows: no pickle, and no zip with one in it."""
    if not _BUILT_SUFFIX.fullmatch(path.suffix) or path.suffix in _PICKLE_SUFFIXES:
        return f"{path.suffix!r} is no extension for what a builder makes"
    with path.open("rb") as source:
        head = source.read(4)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "is a pickle"
    if head != b"PK\x03\x04":
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if Path(name).suffix in _PICKLE_SUFFIXES]
    except zipfile.BadZipFile:
        return "is a broken zip"
    return f"holds a pickle, {pickles[0]!r}" if pickles else None


_CHECKS: dict[str, Callable[[Path, int], str | None]] = {
    ".onnx": _check_onnx,
    ".safetensors": _check_safetensors,
    ".csv": _check_emulated,
    ".npz": _check_npz,
}


# --- addresses and copies -----------------------------------------------------------------------------------------


def _absolute(url: str) -> str:
    return url if "://" in url else str(Path(url).absolute())


def _blob(root: str, sha256: str, suffix: str) -> str:
    return f"{root}/{sha256[:2]}/{sha256}{suffix.lower()}"


def _open_store(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of an address and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise ConfigurationError("the store needs fsspec: install modelless[broker]") from None
    try:
        filesystem, root = url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ConfigurationError(f"store.url {url!r}: {error}") from None
    return filesystem, root.rstrip("/")


def _download(url: str, target: Path) -> str:
    filesystem, blob = _open_store(url)
    try:
        with filesystem.open(blob, "rb") as source, target.open("wb") as copy:
            return _copy(source, copy)[0]
    except FileNotFoundError:
        raise NotFoundError(f"no artifact at {url}; register the model again") from None


def _copy(source: IO[bytes], target: IO[bytes]) -> tuple[str, int]:
    digest, size_bytes = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK_BYTES):
        size_bytes += len(chunk)
        if size_bytes > BLOB_BYTES_MAX:
            raise InvalidArgumentError(f"artifact is larger than the store's {BLOB_BYTES_MAX} bytes")
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest(), size_bytes


def _reason(error: OSError) -> str:
    return error.strerror or str(error)

"""What builders make of models, made once.

A builder turns a model into one file (an exported graph, compiled code), which takes from seconds to minutes. The
**build key** names that file by everything that decides it: the model's digest, the builder and its version, the
hardware, the exit. What has the same key need not be built again: it is found

1. by a profile, of any group, that names the key: the file lies in the store, under the digest that the profile states;
2. by this machine's own notes, ``<store.cache>/builds/<key>.json``, which outlive a Kafka that starts empty.

Both are as trustworthy as the worker that loads the file: Kafka's topics, which only workers write, and a folder of its
own. The store is not (anybody who can write to it could plant compiled code), so it holds files and no index of them.

Two workers that build the same at once do each other no harm: each puts a whole file under its own digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import structlog

from modelless import store
from modelless.catalog import Catalog
from modelless.config import Config, GroupConfig
from modelless.errors import InvalidArgumentError, NotFoundError
from modelless.messages import ModelVersion, Profile, split_exit, split_variant
from workers import hardware
from workers.apart import Apart
from workers.evaluation import Evaluation, read_evaluation, write_calibration
from workers.executor import ExecutionError, Executor, ExecutorDiedError, LoadSpec, builder_of
from workers.metrics import WorkerMetrics

PREPARE_S_MAX = 300.0
"""For importing a builder's libraries."""

_log = structlog.get_logger(__name__)


class BuildError(Exception):
    """It cannot be built here; the message is for the operator."""


@dataclass(frozen=True, slots=True)
class Built:
    """What a builder made. ``path`` is local and verified."""

    key: str
    path: Path
    url: str
    sha256: str
    build_ms: float
    """0: it was made before this process."""


def build_key(model_digest: str, builder: str, version: str, fingerprint: str, exit: int | None) -> str:
    """SHA-256 (hex) over everything that decides what is built, as canonical JSON."""
    content = json.dumps([model_digest, builder, version, fingerprint, exit], separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


class Builds:
    """See the module. One build at a time; ``apart`` is the executor for it."""

    def __init__(
        self, config: Config, group: GroupConfig, catalog: Catalog, apart: Apart, metrics: WorkerMetrics
    ) -> None:
        self._config = config
        self._group = group
        self._catalog = catalog
        self._apart = apart
        self._metrics = metrics
        self._found: dict[str, Built] = {}
        self.made = 0
        """By this process."""

    async def close(self) -> None:
        await self._apart.close()

    def foresee(self, variant: str) -> None:
        """It will be made soon: have an executor ready for it."""
        self._apart.foresee(split_exit(split_variant(variant)[1])[0])

    def is_needed(self, variant: str, model: ModelVersion) -> bool:
        """Whether there is anything to build of it. Raises ExecutionError: its builder is not here."""
        return self._suffix(variant, model) is not None

    def key(self, variant: str, model: ModelVersion) -> str:
        """May block for a moment, the first time."""
        name, exit = split_exit(split_variant(variant)[1])
        fingerprint = hardware.fingerprint(self._group.device, self._group.threads)
        return build_key(model.digest, name, builder_of(name).version(), fingerprint, exit)

    async def spec(self, variant: str, model: ModelVersion, built: Built | None) -> LoadSpec:
        """Raises what fetching from the store raises."""
        path = await asyncio.to_thread(store.fetch, self._config, model.artifact_url, model.artifact_sha256)
        builder, exit = split_exit(split_variant(variant)[1])
        return LoadSpec(
            variant=variant,
            builder=builder,
            exit=exit,
            path=path,
            inputs=model.inputs,
            outputs=model.outputs,
            factory=model.factory,
            factories_allowed=self._config.worker.factories_allowed,
            built=built.path if built is not None else None,
        )

    async def evaluation(self, model: ModelVersion) -> Evaluation | None:
        """The whole set; None: the accuracy was declared. Raises EvaluationError, and what the store raises."""
        data = model.evaluation
        if data.accuracy is not None or not data.data_url or not data.data_sha256:
            return None
        path = await asyncio.to_thread(store.fetch, self._config, data.data_url, data.data_sha256)
        return await asyncio.to_thread(read_evaluation, path, model.inputs)

    async def find(self, variant: str, model: ModelVersion) -> Built | None:
        """What was built of it before, here or elsewhere; None: it has to be made."""
        key = await asyncio.to_thread(self.key, variant, model)
        known = self._found.get(key)
        if known is not None and known.path.is_file():
            return known
        profile = next((p for p in self._catalog.profiles(model) if p.build_key == key and p.build_sha256), None)
        found = await asyncio.to_thread(self._look, key, profile, self._suffix(variant, model))
        if found is not None:
            self._found[key] = found
            self._metrics.builds.labels("found").inc()
            _log.info("found what was built before", variant=variant, build_key=key[:12])
        return found

    async def make(self, variant: str, model: ModelVersion) -> Built:
        """Build it, put it into the store, and note that.

        Raises:
            BuildError: it cannot be built.
            ModellessError, OSError: something around it failed, and may work later.
        """
        key, suffix = await asyncio.to_thread(self.key, variant, model), self._suffix(variant, model)
        spec, data = await self.spec(variant, model, None), await self.evaluation(model)
        _log.info("building", variant=variant, build_key=key[:12])
        try:
            with tempfile.TemporaryDirectory(prefix="building-", dir=self._config.store.cache.absolute()) as folder:
                calibration = Path(folder) / "calibration.npz" if data is not None else None
                if data is not None and calibration is not None:
                    await asyncio.to_thread(write_calibration, data, calibration)
                target = Path(folder) / f"built{suffix}"
                async with self._executor(spec.builder) as executor:
                    build_ms = await executor.build(spec, calibration, target)
                built = await asyncio.to_thread(self._keep, key, target, build_ms)
        except BuildError:
            self._metrics.builds.labels("failed").inc()
            raise
        self.made += 1
        self._found[key] = built
        self._metrics.builds.labels("made").inc()
        _log.info("built", variant=variant, build_ms=round(build_ms), kilobytes=built.path.stat().st_size >> 10)
        return built

    @asynccontextmanager
    async def _executor(self, builder: str) -> AsyncIterator[Executor]:
        """For one build, within its limit, which importing libraries is no part of; what goes wrong is a BuildError."""
        limit_s = self._config.worker.build_s_max
        try:
            async with self._apart.lent() as executor:
                async with asyncio.timeout(PREPARE_S_MAX):
                    await executor.prepare([builder])
                async with asyncio.timeout(limit_s):
                    yield executor
        except ExecutionError as error:
            raise BuildError(str(error)) from None
        except ExecutorDiedError:
            raise BuildError("building it brought its executor down (was there enough memory?)") from None
        except TimeoutError:
            raise BuildError(f"building it took longer than {limit_s:g} s, which is worker.build_s_max") from None

    # --- in threads ---------------------------------------------------------------------------------------------------

    def _look(self, key: str, profile: Profile | None, suffix: str | None) -> Built | None:
        if profile is not None and profile.build_url and profile.build_sha256:
            try:
                path = store.fetch(self._config, profile.build_url, profile.build_sha256, built=True)
            except (NotFoundError, InvalidArgumentError) as error:
                _log.warning("what was built before is not usable", build_key=key[:12], reason=error.message)
            else:
                return Built(key, path, profile.build_url, profile.build_sha256, 0.0)
        try:
            sha256 = json.loads(self._note(key).read_text())["sha256"]
            path = store.cached(self._config, sha256, suffix or "")
            if store.file_sha256(path) == sha256:
                return Built(key, path, store.put(self._config, path, built=True)[0], sha256, 0.0)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass  # never noted, or damaged: as if it had never been built
        return None

    def _keep(self, key: str, target: Path, build_ms: float) -> Built:
        try:
            url, sha256, _ = store.put(self._config, target, built=True)
        except InvalidArgumentError as error:
            raise BuildError(f"what its builder made is refused: {error.message}") from None
        path = store.fetch(self._config, url, sha256, built=True)
        note = self._note(key)
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_name(f"{uuid4().hex}.tmp")
        temporary.write_text(json.dumps({"sha256": sha256}))
        temporary.replace(note)
        return Built(key, path, url, sha256, build_ms)

    def _note(self, key: str) -> Path:
        return self._config.store.cache / "builds" / f"{key}.json"

    @staticmethod
    def _suffix(variant: str, model: ModelVersion) -> str | None:
        return builder_of(split_exit(split_variant(variant)[1])[0]).formats.get(model.format)

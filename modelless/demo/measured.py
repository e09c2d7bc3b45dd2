"""Registers the family, and waits while the system makes and measures the variants."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from modelless.catalog import CatalogView
from modelless.config import Config
from modelless.demo.family import Family
from modelless.demo.scenario import Measured
from modelless.errors import DeadlineExceededError, UnavailableError
from modelless.messages import ModelVersion
from modelless.registration import GroupProgress, register
from modelless.variants import Variant, variants

Made = Callable[[str, int, int], None]
"""Told a model, how many of its variants are measured or failed, and how many there will be as far as is known."""


async def register_family(config: Config, family: Family, made: Made, timeout_s: float) -> tuple[Variant, ...]:
    """What is not made by then is left out.

    Raises:
        UnavailableError: a model is not served; with the reason.
    """

    def on_progress(model: ModelVersion, groups: Sequence[GroupProgress]) -> None:
        states = [variant.state for group in groups for variant in group.variants]
        made(model.name, sum(state != "waiting" for state in states), len(states))

    async def one(path: Path) -> None:
        """The content is the same, so that it is not registered again; only waited for."""
        try:
            await register(config, path, wait_all=True, timeout_s=timeout_s, on_progress=on_progress)
        except DeadlineExceededError:
            return  # what there is by then is what we go on with

    for path in family.specifications:
        await register(config, path, wait=False)
    await asyncio.gather(*(one(path) for path in family.specifications))
    view = CatalogView(config)
    await view.start()
    await view.stop()
    found = variants(view.catalog, view.catalog.models())
    for path in family.specifications:
        own = [variant for variant in found if variant.model.name == path.stem]
        if not any(variant.point is not None for variant in own):
            reasons = "; ".join(f"{v.builder}: {v.profile.reason}" for v in own if v.profile.reason) or "none was made"
            raise UnavailableError(f"{path.stem} is registered, but no variant of it is ready ({reasons})")
    return tuple(found)


def measured(found: Sequence[Variant]) -> tuple[Measured, ...]:
    """What the scenario needs of those that are ready."""
    return tuple(
        Measured(
            variant=variant.name,
            model=variant.model.name,
            accuracy=variant.point.accuracy,
            cost=variant.point.cost,
            batches=tuple((batch.batch_size, batch.p50_ms) for batch in variant.profile.batches),
            price_per_hour=variant.profile.price_per_hour,
        )
        for variant in found
        if variant.point is not None
    )

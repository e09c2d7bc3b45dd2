"""Exporting a torch network as a graph: what the builders that do so share.

The first dimension of every input is free in the graph, whatever its size was when it was traced; tracing fails when
the network fixes it. Since a tracer may also take a branch for good or get a batch of one wrong, what was built is run
and compared with the network before it is believed (:func:`check_same`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch.export import Dim
from torch.fx.experimental import _config as symbols

from modelless.padding import layout_of
from modelless.tensors import NUMPY_DTYPES
from workers.formats import Array, FormatError, Model, Source
from workers.formats.torch_module import Network, network

ROWS_TRACED = 3
ROWS_CHECKED = (1, 2, 5)
FREE_SIZE = 8
"""Of free dimensions besides the batch, where no calibration rows say better."""
TOLERANCE = 1e-3
"""Largest difference, as a share of the largest output: reordered float32 sums differ by less."""


def example(
    source: Source, calibration: Mapping[str, Array] | None, rows: int, length: int | None = None
) -> dict[str, Array]:
    """Inputs of so many rows: the calibration's, or random ones; if padded, of ``length`` (None: the longest)."""
    rng = np.random.default_rng(0)
    made = {}
    for spec in source.inputs:
        if calibration is not None and len(calibration[spec.name]):
            given = calibration[spec.name]
            made[spec.name] = given[np.arange(rows) % len(given)]
        else:
            shape = (rows, *(FREE_SIZE if size == -1 else size for size in spec.shape[1:]))
            made[spec.name] = (rng.random(shape) < 0.5 if spec.datatype == "BOOL" else rng.random(shape)).astype(
                NUMPY_DTYPES[spec.datatype]
            )
    layout = layout_of(source.inputs)
    if layout is None:
        return made
    if calibration is None:
        made |= {spec.name: np.ones_like(made[spec.name]) for spec in layout.made}
    return layout.stretched(made, length or layout.lengths[-1])


def export(
    made: Network, source: Source, calibration: Mapping[str, Array] | None, device: str
) -> torch.export.ExportedProgram:
    """The network's graph, for any number of rows. Whatever tracing raises, the operator's own code included."""
    arrays = example(source, calibration, ROWS_TRACED)
    tensors = tuple(torch.from_numpy(arrays[spec.name]).to(device) for spec in source.inputs)
    free = tuple(
        {0: Dim.DYNAMIC} | {axis: Dim.AUTO for axis, size in enumerate(spec.shape) if axis > 0 and size == -1}
        for spec in source.inputs
    )
    # Else a free batch is taken to be at least 2, and a batch of one may be answered wrongly.
    with torch.no_grad(), symbols.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(made, tensors, dynamic_shapes=(free,))


def to_onnx(source: Source, calibration: Mapping[str, Array] | None, target: Path, threads: int) -> Network:
    """Write the source's network as one ONNX file. Raises FormatError when it cannot be exported."""
    torch.set_num_threads(threads)
    made = network(source)
    try:  # exported here, since torch.onnx would fall back to taking one branch for good
        program = torch.onnx.export(
            export(made, source, calibration, "cpu"),
            input_names=[spec.name for spec in source.inputs],
            output_names=[spec.name for spec in source.outputs],
            verbose=False,
        )
        assert program is not None, "as documented, for a graph"
        program.save(target, external_data=False)
    except Exception as error:  # the exporter raises dozens of types
        raise FormatError(f"torch cannot export it as ONNX: {reason(error)}") from None
    return made


def check_same(made: Network, model: Model, source: Source, calibration: Mapping[str, Array] | None) -> None:
    """Raises FormatError unless the model answers as the network, for several numbers of rows, and of every length."""
    device = next((weight.device for weight in made.parameters()), torch.device("cpu"))
    layout = layout_of(source.inputs)
    for rows, length in product(ROWS_CHECKED, (None,) if layout is None else layout.lengths):
        inputs = example(source, calibration, rows, length)
        with torch.inference_mode():
            expected = made(*(torch.from_numpy(inputs[spec.name]).to(device) for spec in source.inputs))
        for spec, want, got in zip(source.outputs, expected, model.run(inputs), strict=True):
            if (problem := _difference(want.cpu().numpy(), got)) is not None:
                of = f"{rows} rows" if length is None else f"{rows} rows of length {length}"
                raise FormatError(f"built, it answers {of} otherwise than the network: {spec.name!r} {problem}")


def _difference(want: Array, got: Array) -> str | None:
    if want.shape != got.shape or want.dtype != got.dtype:
        return f"is {got.dtype} {list(got.shape)}, expected {want.dtype} {list(want.shape)}"
    if not want.size:
        return None
    if want.dtype.kind != "f":
        return None if (want == got).mean() > 1 - TOLERANCE else "differs"
    both_nan = np.isnan(want) & np.isnan(got)
    error = float(np.abs(np.where(both_nan, 0, want - got)).max())
    scale = float(np.nanmax(np.abs(want), initial=1.0))
    return None if error <= TOLERANCE * scale else f"differs by {error:.2g} at values up to {scale:.2g}"


def reason(error: BaseException) -> str:
    """What tracing failed for, in a few hundred characters: the innermost cause says it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines: Sequence[str] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)}"[:500]

"""Builder ``torch-compile``: a torch network compiled ahead of time by AOTInductor, so that loading compiles nothing.

Building exports the network with a free batch, generates C++ (or Triton kernels on CUDA) and compiles it into one
``.pt2``, a zip with a shared library in it. That takes a C++ compiler and tens of seconds, and makes machine code for
this processor and this number of threads: what was built is for machines like this one.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from workers.formats import Array, FormatError, Source
from workers.formats.torch_module import TorchModel, network

_MODEL = "model"
_SETTINGS: dict[str, Any] = {
    "compile_threads": 1,
    "aot_inductor.embed_kernel_binary": True,  # CUDA: the files beside the library are gone once it is loaded
    "aot_inductor.precompile_headers": False,  # pays only from the second build with the same cache on
    "cpp_cache_precompile_headers": False,
    "cpp.vec_isa_ok": True,  # what the processor says it can do it can; else each is compiled and tried, 8 s
}


def build(source: Source, calibration: Mapping[str, Array] | None, target: Path, device: str, threads: int) -> None:
    """Raises FormatError when the network cannot be exported or compiled, or answers otherwise when it is."""
    from workers.formats import exporting

    torch.set_num_threads(threads)
    made = network(source, device)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # all that the compiler leaves behind goes with it
        try:
            _compile(exporting.export(made, source, calibration, device), Path(folder) / f"{_MODEL}.pt2")
        except Exception as error:  # tracing runs the operator's code, and the compiler is a process of its own
            raise FormatError(f"torch cannot compile it: {exporting.reason(error)}") from None
        (Path(folder) / f"{_MODEL}.pt2").replace(target)
    exporting.check_same(made, load(source, target, device, threads), source, calibration)


def load(source: Source, built: Path | None, device: str, threads: int) -> TorchModel:
    """Raises FormatError when the package is not one, or is for another kind of machine.

    It is run by the C++ loader itself: its Python front imports the whole compiler, 150 MB and seconds.
    """
    assert built is not None, "it builds a file of every format"
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:  # unpacked by us, since the loader would leave it when killed
        try:
            with zipfile.ZipFile(built) as package:
                package.extractall(folder)
            index = int(device.partition(":")[2] or -1)
            loader = torch._C._aoti.AOTIModelPackageLoader(folder, _MODEL, True, 1, index)
        except (RuntimeError, OSError, zipfile.BadZipFile) as error:
            raise FormatError(f"the compiled package cannot be loaded: {str(error).strip()[:300]}") from None
    return TorchModel(lambda *tensors: loader.run(list(tensors)), source, device)


def _compile(program: torch.export.ExportedProgram, package: Path) -> None:
    from torch._inductor import aoti_compile_and_package, config

    with config.patch(_SETTINGS):
        aoti_compile_and_package(program, package_path=str(package))

"""What of this machine decides whether something that was built elsewhere runs here as it did there.

A **fingerprint** is a line of text; two workers with the same one may share what is built. On a processor: its model,
the instruction sets that numeric code is compiled for, the C library, and the threads that the executor may use
(compilers write their number into loops). On a GPU: its name and compute capability.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
NVIDIA_S_MAX = 20.0
BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""x86 with AVX-512 or AMX, and Arm: multiplies bfloat16 itself. Without one of them it is slower than float32."""
INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
"""Sums products of 8-bit numbers in 32 bits. x86 without one of them sums in 16, and saturates."""
_MODEL = ("model name", "cpu family", "model", "CPU implementer", "CPU part")
_FLAGS = re.compile(r"(avx|amx|fma|sse4|f16c|sve|sme|asimd|neon)\w*|\w*(bf16|fp16|vnni|i8mm|dotprod)\w*")


@cache
def fingerprint(device: str, threads: int) -> str:
    """Of a group's ``device``: ``cpu``, ``cuda:N`` or ``emulated``. Blocks for a moment the first time."""
    kind, _, index = device.partition(":")
    if kind == "cuda":
        return f"cuda {_gpu(index)}"
    if kind == "cpu":
        libc = "".join(platform.libc_ver())
        return f"cpu {platform.machine()} {libc} {processor(_cpu_info())} threads={threads}"
    return kind


def processor(cpu_info: str) -> str:
    """The first processor of a /proc/cpuinfo: what names it, and its numeric instruction sets in order."""
    fields = _fields(cpu_info)
    names = [fields[name] for name in _MODEL if name in fields]
    return " ".join([*names, *sorted(flag for flag in _flags(fields) if _FLAGS.fullmatch(flag))])


def flags() -> frozenset[str]:
    """This processor's instruction sets, as Linux names them; none where it does not say."""
    return frozenset(_flags(_fields(_cpu_info())))


def _fields(cpu_info: str) -> dict[str, str]:
    lines = [line.partition(":") for line in cpu_info.split("\n\n")[0].splitlines()]
    return {name.strip(): value.strip() for name, _, value in lines}


def _flags(fields: Mapping[str, str]) -> list[str]:
    return (fields.get("flags") or fields.get("Features") or "").split()


def _cpu_info() -> str:
    try:
        return CPU_INFO.read_text()
    except OSError:
        return f"model name: {platform.processor()}"


def _gpu(index: str) -> str:
    """Name and compute capability; without the driver's tool nothing is shared with other machines."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    chosen = visible[int(index)] if int(index) < len(visible) else index
    command = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader", "-i", chosen]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=NVIDIA_S_MAX).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"of {platform.node()} number {chosen}"

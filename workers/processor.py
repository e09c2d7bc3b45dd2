"""What this machine's processor can do, without importing a framework to ask it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

BF16 = ("avx512_bf16", "amx_bf16", "bf16")
"""x86 with AVX-512 or AMX, and Arm: multiplies bfloat16 itself. Without one of them it is slower than float32."""
INT8 = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""Sums products of 8-bit numbers in 32 bits. x86 without it sums them in 16, and saturates."""


@cache
def flags() -> frozenset[str]:
    """Instruction sets as Linux names them: ``flags`` on x86, ``Features`` on Arm; empty where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    listed = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(listed, []))

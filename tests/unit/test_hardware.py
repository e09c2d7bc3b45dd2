"""Fingerprints: the same where something built may be shared, another where not."""

from __future__ import annotations

import pytest

from workers import hardware

EPYC = """processor	: 0
model name	: AMD EPYC
flags		: fpu sse4_1 avx2 fma avx512f avx512_bf16 avx512_vnni rdrand

processor	: 1
model name	: AMD EPYC
"""
GRAVITON = "CPU implementer\t: 0x41\nCPU part\t: 0xd40\nFeatures\t: fp asimd asimddp sve i8mm bf16 crc32\n"


def test_a_processor_is_its_name_and_its_numeric_instruction_sets() -> None:
    assert hardware.processor(EPYC) == "AMD EPYC avx2 avx512_bf16 avx512_vnni avx512f fma sse4_1"
    assert hardware.processor(GRAVITON) == "0x41 0xd40 asimd asimddp bf16 i8mm sve"
    assert hardware.processor("") == ""
    without = EPYC.replace("avx512_vnni ", "")
    assert hardware.processor(without) != hardware.processor(EPYC)
    assert hardware.processor(EPYC.replace("rdrand", "rdseed")) == hardware.processor(EPYC)


def test_threads_and_device_count() -> None:
    one, two = hardware.fingerprint("cpu", 1), hardware.fingerprint("cpu", 2)
    assert one != two
    assert hardware.fingerprint("emulated", 1) == "emulated"


def test_a_gpu_without_its_driver_is_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert hardware.fingerprint("cuda:1", 1).endswith(" number 5")

"""Limits every contestant, and what measures the machine, to an older instruction set. Standard library only."""

from __future__ import annotations

import os

# What BatchLLM, oneDNN (torch's, vLLM's and OpenVINO's), torch's own kernels and MKL read when they start.
LIMITS = {
    "avx2": {
        "BATCHLLM_ISA": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}


def limit(isa: str) -> None:
    """Limits the processes that this one starts."""
    os.environ.update(LIMITS[isa])


def limited_to() -> str | None:
    """One of LIMITS, or None where this process may use what the CPU has."""
    return next((isa for isa, settings in LIMITS.items() if settings.items() <= os.environ.items()), None)

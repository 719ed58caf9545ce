"""Numbers and types that kernels of all GPUs share."""

from __future__ import annotations

WARP = 32
"""Threads of a warp."""
FP8 = "float8_e4m3fn"
"""The 8-bit floating-point type that tensor cores multiply."""

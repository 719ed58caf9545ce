"""Launches of attention kernels for the interpreter of PTX: two heads that share keys, with a causal mask."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from moec.targets.cuda.kernels.attention_few import attention_few
from moec.targets.cuda.kernels.attention_mma import attention_mma
from moec.targets.cuda.kernels.attention_tiled import attention_tiled
from moec.targets.cuda.kernels.attention_wgmma import attention_wgmma
from moec.targets.tvm.lower.attention import AttentionProblem

from ...attention_cases import expected, operands
from .launches import Launch

PROBLEM = AttentionProblem(8, 8, 0.35, 2, causal="first", softcap=2.0)
SHORT = dataclasses.replace(PROBLEM, softcap=0.0)
"""A problem with half as much PTX, which contains the code for the cap once for each score of a thread."""
KERNELS = {
    "attention_few": lambda: attention_few(PROBLEM, "float32"),
    "attention_tiled": lambda: attention_tiled(SHORT, "float32"),
    "attention_mma": lambda: attention_mma(SHORT, "float16"),
    "attention_wgmma": lambda: attention_wgmma(SHORT, "float16"),
}


def _attention(
    problem: AttentionProblem, queries: int, keys: int, dtype: str, grid: int, block: int, **options: Any
) -> Launch:
    tensors = operands(problem, queries, keys, batch=1, groups=1)
    given = {name: array.astype(dtype) for name, array in tensors.items()}
    sizes = {"B": 1, "G": 1, "P": keys, "S": queries}
    result = np.full_like(given["query"], np.nan)
    one_part = {"parts": 1, "Q": queries, "sums": np.zeros(0, np.float32), "statistics": np.zeros(0, np.float32)}
    return Launch(
        {**given, **one_part, "result": result, **sizes}, {"result": expected(problem, given)}, grid, block, **options
    )


LAUNCHES = {
    "attention_few": lambda: _attention(PROBLEM, 3, 40, "float32", 3, 128, tolerance=1e-5),
    "attention_tiled": lambda: _attention(SHORT, 5, 40, "float32", 1, 256, tolerance=1e-5),
    "attention_mma": lambda: _attention(SHORT, 5, 70, "float16", 1, 128, pool_bytes=24576, tolerance=4e-3),
    "attention_wgmma": lambda: _attention(SHORT, 70, 300, "float16", 2, 384, pool_bytes=81992, tolerance=4e-3),
}

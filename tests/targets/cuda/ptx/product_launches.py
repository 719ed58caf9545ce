"""Launches of products for the interpreter of PTX: with quantised matrices, and without tensor cores."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from moec.ir.weights import encode as encodings
from moec.targets.cuda.kernels import dispatch
from moec.targets.cuda.kernels.grouped_gemm_mma import grouped_gemm_mma
from moec.targets.cuda.kernels.grouped_gemm_simt import grouped_gemm_simt
from moec.targets.cuda.kernels.grouped_gemm_wgmma import grouped_gemm_wgmma
from moec.targets.cuda.kernels.grouped_gemv import grouped_gemv
from moec.targets.cuda.kernels.grouped_problem import GroupedProblem

from ..kernels.layers import DTYPES, GroupedKernel
from ..kernels.test_dispatch import expected_order
from ..kernels.test_quantized import FORMATS, E, encoded, packed
from .launches import HOPPER_POOL_BYTES, Launch

SLOTS = 2


@dataclasses.dataclass(frozen=True)
class Product:
    """A product to launch. ``form``: a key of :data:`FORMATS`, or empty for a matrix of floats; ``block``: threads."""

    kernel: GroupedKernel
    form: str
    inner: int
    width: int
    dtype: str
    block_rows: int
    block: int
    pool_bytes: int = 0
    tokens: int = 5

    def build(self) -> Any:
        stored = FORMATS[self.form][1] if self.form else None
        problem = GroupedProblem(E, self.inner, self.width, self.block_rows, dtype=self.dtype, stored=stored)
        return self.kernel(dataclasses.replace(problem, gathered=True, scattered=True), lambda total: total)

    def launch(self) -> Launch:
        random = np.random.default_rng(0)
        x = random.standard_normal((self.tokens, self.inner)).astype(DTYPES[self.dtype])
        ids = random.integers(-1, E, (self.tokens, SLOTS)).astype(np.int32)
        matrices, decoded = self._matrices(random)
        bias = random.standard_normal((E, self.width), np.float32)
        order, grid = self._order(ids)
        out = np.full((ids.size, self.width), np.nan, np.float32)
        for pair, expert in enumerate(ids.flat):
            if expert >= 0:
                out[pair] = decoded[expert] @ x[pair // SLOTS].astype(np.float32) + bias[expert]
        arguments = {"rows": x, **matrices, "bias": bias, **order, "out": np.full_like(out, np.nan), "slots": SLOTS}
        tolerance = {"float32": 1e-5, "float16": 2e-2}[self.dtype]
        return Launch(arguments, {"out": out}, grid, self.block, self.pool_bytes, tolerance)

    def _matrices(self, random: np.random.Generator) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """The matrices as the kernel's arguments, and the decoded numbers."""
        if not self.form:
            matrix = random.standard_normal((E, self.width, self.inner), np.float32)
            return {"matrix": matrix}, list(matrix)
        form, stored = FORMATS[self.form]
        several = encoded(form, self.width, self.inner)
        names = ("matrix", "scales", "zero_points")
        decoded = [encodings.decode(matrix, form) for matrix in several]
        return dict(zip(names, packed(stored, several), strict=True)), decoded

    def _order(self, ids: np.ndarray) -> tuple[dict[str, Any], int]:
        """The arguments that assign rows to experts, and the number of blocks of threads."""
        if self.kernel is grouped_gemv:
            return {"chosen": ids, "tokens": self.tokens}, ids.size
        places, experts = expected_order(E, self.block_rows, ids)
        blocks = dispatch.most_blocks(E, ids.size, self.block_rows)
        order = {"pairs": np.full(blocks * self.block_rows, -1, np.int32), "blocks": np.full(blocks, -7, np.int32)}
        order["pairs"][: len(places)], order["blocks"][: len(experts)] = places, experts
        order = {**order, "count": np.array([len(experts)], np.int32), "B": blocks}
        if self.kernel is grouped_gemm_wgmma:
            return {**order, "multiprocessors": 2}, 2
        return order, blocks


PRODUCTS = {
    "simt": Product(grouped_gemm_simt, "", 20, 12, "float32", 16, 256),
    "simt_mxfp4": Product(grouped_gemm_simt, "mxfp4", 32, 12, "float32", 16, 256),
    "gemv_int8": Product(grouped_gemv, "int8 with zero points", 64, 12, "float16", 16, 128),
    "mma_int4": Product(grouped_gemm_mma, "int4", 128, 64, "float16", 16, 128, 73728),
    "wgmma_int4": Product(grouped_gemm_wgmma, "int4", 128, 128, "float16", 64, 384, HOPPER_POOL_BYTES),
}

"""A layer of experts, computed by the CUDA kernels one after another, and by the reference."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from moec.ir import semantics
from moec.ir.dialect import ExpertsSpec
from moec.targets.cuda.kernels.grouped_gemm_umma import grouped_gemm_umma
from moec.targets.cuda.kernels.grouped_gemm_wgmma import grouped_gemm_wgmma
from moec.targets.gpu.kernels import combine, dispatch
from moec.targets.gpu.kernels.activation import experts_epilogue
from moec.targets.gpu.kernels.grouped_gemv import grouped_gemv
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem, interleave
from moec.targets.tvm.heavy.experts import CombineProblem

from .kernel_runner import Kernel, build

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
TOLERANCES = {"float32": 5e-6, "float16": 4e-3, "bfloat16": 3e-2}
"""Tolerances by type, as a share of the largest output."""
GATED = ExpertsSpec(gate_layout="separate")

GroupedKernel = Callable[[GroupedProblem, Callable[..., Any]], Any]


@dataclasses.dataclass(frozen=True)
class Layer:
    """The sizes and types of a layer; kernels are built once for each."""

    experts: int
    inner: int
    hidden: int
    block_rows: int
    spec: ExpertsSpec = GATED
    dtype: str = "float32"

    @property
    def problems(self) -> tuple[GroupedProblem, GroupedProblem]:
        stored = {"dtype": self.dtype, "matrix_dtype": self.dtype, "out_dtype": self.dtype}
        gated, weighted = self.spec.gated, self.spec.weight_on_input
        first = GroupedProblem(self.experts, self.inner, self.hidden, self.block_rows, **stored)
        first = dataclasses.replace(first, gated=gated, gathered=True, weighted=weighted)
        second = GroupedProblem(self.experts, self.hidden, self.inner, self.block_rows, scattered=True, **stored)
        return first, second


class Data:
    """Random operands for a layer, rounded to its type."""

    def __init__(self, layer: Layer, ids: np.ndarray, seed: int = 0) -> None:
        random, dtype = np.random.default_rng(seed), DTYPES[layer.dtype]
        E, d, f = layer.experts, layer.inner, layer.hidden

        def normal(*shape: int) -> np.ndarray:
            return random.standard_normal(shape, np.float32)

        self.gate, self.up = ((normal(E, f, d) / d**0.5).astype(dtype) for _ in range(2))
        self.down = (normal(E, d, f) / f**0.5).astype(dtype)
        self.gate_bias, self.up_bias, self.down_bias = normal(E, f), normal(E, f), normal(E, d)
        self.layer, self.ids = layer, ids.astype(np.int32)
        self.x, self.weights = normal(len(ids), d).astype(dtype), random.random(ids.shape, np.float32)

    @property
    def first(self) -> tuple[np.ndarray, np.ndarray]:
        """Matrix and bias of the first product."""
        if not self.layer.spec.gated:
            return self.up, self.up_bias
        bias = interleave(self.gate_bias[..., None], self.up_bias[..., None])
        return interleave(self.gate, self.up), bias[..., 0]

    def reference(self) -> np.ndarray:
        gate = (self.gate, self.gate_bias) if self.layer.spec.gated else (None, None)
        wide = [None if a is None else a.astype(np.float32) for a in (self.x, self.up, self.down, gate[0])]
        x, up, down, gate_weight = wide
        return semantics.experts(
            self.layer.spec,
            x,
            self.weights,
            self.ids,
            up,
            down,
            gate_weight,
            self.up_bias,
            self.down_bias,
            gate[1],
        )


def undefined(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An array of NaN, in place of memory that was never written."""
    return np.full(shape, np.nan, DTYPES[dtype])


@functools.cache
def _combine(layer: Layer) -> Kernel:
    spec = layer.spec
    problem = CombineProblem(
        layer.experts,
        layer.inner,
        layer.dtype,
        weighted=not spec.weight_on_input,
        identity_experts=spec.identity_experts,
        limit=spec.output_limit,
        pair_dtype=layer.dtype,
    )
    return build(combine.combine(problem))


@functools.cache
def _dispatch(experts: int, block_rows: int) -> Kernel:
    return build(dispatch.dispatch(experts, block_rows))


def sort_pairs(experts: int, block_rows: int, ids: np.ndarray) -> list[np.ndarray]:
    """``sorted_pairs``, ``block_experts`` and ``block_count`` by the kernel; -7 where it wrote nothing."""
    blocks = dispatch.most_blocks(experts, ids.size, block_rows)
    outputs = [np.full(size, -7, np.int32) for size in (blocks * block_rows, blocks, 1)]
    return _dispatch(experts, block_rows).outputs(3, ids.astype(np.int32), *outputs)


def architecture_of(kernel: GroupedKernel) -> str:
    """The oldest architecture that runs a grouped product."""
    return {grouped_gemm_wgmma: "sm_90a", grouped_gemm_umma: "sm_100a"}.get(kernel, "sm_80")


@functools.cache
def products(layer: Layer, kernel: GroupedKernel, **options: Any) -> tuple[Kernel, Kernel]:
    architecture = architecture_of(kernel)
    first, second = layer.problems
    epilogue = experts_epilogue(layer.spec, first.out_dtype)
    return (
        build(kernel(first, epilogue), architecture, **options),
        build(kernel(second, lambda total: total), architecture, **options),
    )


def compute(data: Data, kernel: GroupedKernel, **options: Any) -> np.ndarray:
    """The layer's output, with rows sorted by expert for both products, or pair by pair for :func:`grouped_gemv`."""
    layer, pairs = data.layer, data.ids.size
    first, second = products(layer, kernel, **options)
    order = [data.ids] if kernel is grouped_gemv else sort_pairs(layer.experts, layer.block_rows, data.ids)
    places = pairs if kernel is grouped_gemv else len(order[0])
    hidden = first(data.x, *data.first, data.weights, *order, undefined((places, layer.hidden), layer.dtype))
    result = undefined((pairs, layer.inner), layer.dtype)
    results = second(hidden, data.down, data.down_bias, data.weights, *order, result)
    return _combine(layer)(data.x, data.weights, data.ids, results, undefined(data.x.shape, layer.dtype))


def assert_matches(data: Data, kernel: GroupedKernel, **options: Any) -> None:
    """Compare the layer's output with the reference. ``options``: for the emulator."""
    y, expected = compute(data, kernel, **options).astype(np.float32), data.reference()
    scale = float(np.abs(expected).max(initial=0)) or 1.0
    np.testing.assert_allclose(y / scale, expected / scale, rtol=0, atol=TOLERANCES[data.layer.dtype])

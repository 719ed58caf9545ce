"""The CPU kernels against numpy, for any number of threads, and their text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels.attention import attention
from moec.targets.cpu.kernels.batched_matmul import batched_matmul
from moec.targets.cpu.kernels.emit import Parameter, emit_kernel, quotient
from moec.targets.cpu.kernels.normalization import layer_norm, rms_norm
from moec.targets.cpu.kernels.softmax import softmax
from moec.targets.tvm.heavy.attention import AttentionProblem
from moec.targets.tvm.text import printed

from ...products import thinned
from .dense_products import dense, pack
from .kernel_runner import build, machines

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("name", machines("sse4", "avx2", "avx512", "neon"))
@settings(max_examples=4, deadline=None)
@given(inner=st.integers(1, 70), columns=st.integers(1, 70), seed=st.integers(0, 1000))
def test_gemm_of_any_size(name, inner, columns, seed):
    machine = Machine.for_name(name)
    weight, bias = normal(inner, columns), normal(columns)
    run = build(dense(inner, columns, machine), machine)
    for rows in (0, 1, 7, 12, 193):
        x = normal(rows, inner)
        y = run(x, pack(weight, machine), bias, np.empty((rows, columns), np.float32))
        np.testing.assert_allclose(y, x @ weight + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_gemm_converts_half_precision_on_load(storage):
    import ml_dtypes

    dtype = ml_dtypes.bfloat16 if storage == "bfloat16" else np.float16
    machine = Machine.host()
    x, weight, bias = (array.astype(dtype) for array in (normal(5, 34), normal(34, 20), normal(20)))
    run = build(dense(34, 20, machine, storage), machine)
    y = run(x, pack(weight, machine, storage), bias, np.empty((5, 20), dtype))
    expected = x.astype(np.float64) @ weight.astype(np.float64) + bias.astype(np.float64)
    np.testing.assert_allclose(y.astype(np.float64), expected, rtol=1e-2, atol=1e-2)


def test_a_row_does_not_depend_on_the_other_rows():
    machine = Machine.host()
    x, weight, bias = normal(37, 65), pack(normal(65, 40), machine), normal(40)
    run = build(dense(65, 40, machine), machine)
    together = run(x, weight, bias, np.empty((37, 40), np.float32))
    for row in range(37):
        alone = run(x[row : row + 1].copy(), weight, bias, np.empty((1, 40), np.float32))
        np.testing.assert_array_equal(alone[0], together[row])


CASES: dict[str, Callable[[Machine], tuple[Any, list[np.ndarray], tuple[int, ...]]]] = {
    "gemm": lambda machine: (
        dense(65, 70, machine),
        [normal(230, 65), pack(normal(65, 70), machine), normal(70)],
        (230, 70),
    ),
    "batched_matmul": lambda machine: (
        batched_matmul(machine),
        [normal(3, 50, 33), normal(3, 33, 70)],
        (3, 50, 70),
    ),
    "softmax": lambda machine: (softmax(machine), [normal(50, 77)], (50, 77)),
    "rms_norm": lambda machine: (rms_norm(1e-6, machine), [normal(50, 77), normal(77)], (50, 77)),
    "layer_norm": lambda machine: (layer_norm(1e-6, machine), [normal(50, 77), normal(77), normal(77)], (50, 77)),
    "attention": lambda machine: (
        attention(AttentionProblem(16, 20, 0.25, heads_per_group=2), machine),
        [normal(2, 4, 60, 16), normal(2, 2, 90, 16), normal(2, 2, 90, 20)],
        (2, 4, 60, 20),
    ),
}
"""A kernel, its inputs and the shape of its result."""


def short_attention(machine: Machine) -> tirx.PrimFunc:
    """Attention of heads that are whole vectors, without the code for a rest of columns."""
    return attention(AttentionProblem(8, 8, 0.25, heads_per_group=2), machine)


@thinned("name", CASES, 3)
def test_results_are_bit_identical_for_any_number_of_threads(name, in_pool):
    machine = Machine.host()
    kernel, inputs, shape = CASES[name](machine)
    run = build(kernel, machine)
    results = [in_pool(threads, lambda: run(*inputs, np.empty(shape, np.float32))) for threads in (1, 2, 3)]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_softmax_of_extreme_scores():
    machine = Machine.host()
    run = build(softmax(machine), machine)
    x = np.array([[-np.inf, 0, -200, 88] + [0] * 60, [-3.4e38] * 64, [np.nan] + [0] * 63], np.float32)
    y = run(x, np.empty_like(x))
    shifted = np.exp(x[:2].astype(np.float64) - x[:2].max(axis=1, keepdims=True))
    np.testing.assert_allclose(y[:2], shifted / shifted.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-38)
    assert np.isnan(y[2]).all()


@pytest.mark.parametrize("name", CASES)
def test_kernel_text(name, golden):
    """Print the text for the machine with the smallest register tile, which makes the shortest."""
    machine = Machine.for_name("sse4")
    kernel = short_attention(machine) if name == "attention" else CASES[name](machine)[0]
    golden(f"cpu_{name}.tir", printed(kernel.with_attr("global_symbol", name)))


def _divisions(function: tirx.PrimFunc) -> list[str]:
    """Floor divisions by what is no constant, for which TVM generates code for all signs."""
    results: list[str] = []

    def note(division: tirx.FloorDiv | tirx.FloorMod) -> None:
        if not isinstance(division.b, tirx.IntImm):
            results.append(str(division))

    tvm_ffi.structural_walk(function.body, [((tirx.FloorDiv, tirx.FloorMod), note)])
    return results


@pytest.mark.parametrize("name", CASES)
def test_quotients_are_of_numbers_that_are_not_negative(name):
    kernel, _, _ = CASES[name](Machine.for_name("avx2"))
    assert not _divisions(kernel)


def test_a_division_of_any_signs_is_found():
    def body(sizes: Any) -> None:
        T.buffer_store(sizes, sizes[0] // sizes[1] + sizes[2] // 4 + quotient(sizes[0], sizes[1]), [0])

    assert len(_divisions(emit_kernel([Parameter("sizes", (4,), "int64")], body))) == 1


@pytest.mark.parametrize("name", ["avx2", "avx512"])
def test_the_sums_of_the_main_loop_stay_in_registers(name):
    import tvm

    machine = Machine.for_name(name)
    module = tvm.IRModule({"kernel": dense(64, 64, machine).with_attr("global_symbol", "kernel")})
    assembly = tvm.tirx.build(module, target=tvm.target.Target(machine.llvm)).inspect_source("asm")
    multiplications = [line for line in assembly.splitlines() if "vfmadd" in line]
    assert len(multiplications) >= machine.row_tile * machine.column_tile // machine.lanes
    assert not [line for line in multiplications if "(%rsp)" in line]

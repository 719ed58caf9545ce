"""Products that skip the inputs that are zero: the same bits as without, and the right choice between the ways."""

from __future__ import annotations

import functools

import ml_dtypes
import numpy as np
import pytest
from tvm.script import tirx as T

from moec.ir.dialect import ExpertsSpec
from moec.ir.semantics import experts
from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels import multiply_float, multiply_pairs, sparse_rows
from moec.targets.cpu.kernels.dot import pair_functions
from moec.targets.cpu.kernels.emit import Parameter, emit_kernel
from moec.targets.cpu.kernels.multiplication import Multiplication, Rows, Weights, WeightTile
from moec.targets.cpu.kernels.tiled_format import TiledFormat

from ...products import sampled, thinned
from .kernel_runner import build, machines
from .one_node import compile_node, lower_node

RANDOM = np.random.default_rng(0)
MACHINES = machines("avx2", "avx512", "avx512bf16", "neon")
WAYS = {"float32": ("float32", "float32"), "float16": ("float16", "float32"), "bfloat16": ("bfloat16", "float32")}
WAYS["pairs"] = ("bfloat16", "bfloat16")
INNER, WIDTH, ROWS = 70, 80, 8
"""No multiple of a vector; rows have spare columns behind their inputs."""


def dtype_of(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


@functools.cache
def kernel(machine_name: str, way: str, sparse: str):
    """``(rows, weights, where[first, count], sums)``; ``sparse``: ``never``, or ``marked`` where the other way writes
    -1 instead of sums, or ``chosen``."""
    machine = Machine.for_name(machine_name)
    stored, arithmetic = WAYS[way]
    product = Multiplication(machine, TiledFormat(stored), arithmetic)
    ways = {"float32": multiply_float, "bfloat16": multiply_pairs}

    def body(rows, weights, where, sums):
        first, count = (T.bind(T.cast(where[i], "int64")) for i in range(2))
        operands = (
            product,
            Rows(rows),
            Weights(weights, crossover=T.int64(1000)),
            WeightTile(0, 0, INNER),
            sums,
            first,
            count,
        )

        def mark() -> None:
            with T.serial(count) as row, T.vectorized(product.columns) as j:
                T.buffer_store(sums, T.float32(-1), [row, j])

        def dense() -> None:
            ways[arithmetic].emit(*operands)

        if sparse == "never":
            dense()
        else:
            sparse_rows.emit(*operands, otherwise=mark if sparse == "marked" else dense)

    parameters = [
        Parameter("rows", (ROWS, WIDTH), arithmetic),
        Parameter("weights", (INNER * product.columns,), stored),
        Parameter("where", (2,), "int32"),
        Parameter("sums", (ROWS, product.columns), "float32"),
    ]
    return product, build(emit_kernel(parameters, body, pair_functions(machine)), machine)


def rows_with(way: str, nonzero: int) -> np.ndarray:
    """Rows with so many inputs that are not zero, in other places in every row; some zeros are negative."""
    rows = np.zeros((ROWS, WIDTH), np.float32)
    rows[:, 1::3] = -0.0
    for row in rows:
        row[RANDOM.permutation(INNER)[:nonzero]] = RANDOM.standard_normal(nonzero)
    rows[:, INNER:] = np.nan
    return rows.astype(dtype_of(WAYS[way][1]))


def run(machine: str, way: str, sparse: str, rows: np.ndarray, weights: np.ndarray, first: int, count: int):
    product, call = kernel(machine, way, sparse)
    sums = np.zeros((ROWS, product.columns), np.float32)
    where = np.array([first, count], np.int32)
    return call(rows, weights, where, sums)[:count]


def weights_of(machine: str, way: str) -> np.ndarray:
    columns = Machine.for_name(machine).column_tile
    return RANDOM.standard_normal(INNER * columns).astype(dtype_of(WAYS[way][0]))


@pytest.mark.parametrize(("machine", "way"), sampled(MACHINES, WAYS, 4))
def test_skipping_zeros_changes_no_bit(machine, way):
    weights = weights_of(machine, way)
    for nonzero in (0, 7, INNER):
        rows = rows_with(way, nonzero)
        for count in (1, 3, 5):
            expected = run(machine, way, "never", rows, weights, 2, count)
            actual = run(machine, way, "chosen", rows, weights, 2, count)
            np.testing.assert_array_equal(actual.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("machine", MACHINES)
def test_few_rows_with_many_zeros_go_by_the_list(machine, way):
    weights = weights_of(machine, way)

    def skips(nonzero: int, count: int) -> bool:
        return not (run(machine, way, "marked", rows_with(way, nonzero), weights, 0, count) == -1).all()

    assert skips(7, 1) and skips(1, sparse_rows.MOST_ROWS)
    assert not skips(INNER, 1)
    assert not skips(1, sparse_rows.MOST_ROWS + 1)


@pytest.mark.parametrize("way", WAYS)
def test_a_nan_is_not_taken_for_a_zero(way):
    name = Machine.host().name
    for number in (np.nan, np.inf, np.float32(1e-40)):
        rows = rows_with(way, 0)
        rows[1, 69] = number
        sums = run(name, way, "chosen", rows, weights_of(name, way), 0, 2)
        assert (sums[0] == 0).all()
        expected = run(name, way, "never", rows, weights_of(name, way), 0, 2)
        assert (np.isfinite(sums[1]) == np.isfinite(expected[1])).all()
        assert np.isfinite(sums[1]).all() == bool(np.isfinite(number))


def test_products_that_go_by_all_inputs():
    machine = Machine.host()
    assert Multiplication(machine, TiledFormat("float16"), rows_have_zeros=True).skips_zeros
    assert not Multiplication(machine, TiledFormat("float16")).skips_zeros
    assert not Multiplication(machine, TiledFormat("int4", 32), rows_have_zeros=True).skips_zeros
    assert not Multiplication(machine, TiledFormat("int8"), "int8", rows_have_zeros=True).skips_zeros


E, d, f, k = 4, 40, 130, 2
SPECS = {
    "relu": ExpertsSpec("relu", "none"),
    "relu2": ExpertsSpec("relu2", "none", hidden_sizes=(130, 0, 77, 16)),
    "gated": ExpertsSpec("relu", "separate", down_transposed=True),
    "bfloat16": ExpertsSpec("relu", "none", arithmetic="bfloat16"),
    "silu": ExpertsSpec("silu", "none"),
}
FEEDS = {
    "x": np.zeros((1, d), np.float32),
    "weights": np.zeros((1, k), np.float32),
    "experts": np.zeros((1, k), np.int32),
}


def expert_weights(spec: ExpertsSpec) -> dict[str, np.ndarray]:
    """Weights of experts whose biases make about 90 of 100 hidden units zero."""
    random = np.random.default_rng(3)
    weights = {"up": random.standard_normal((E, f, d)) / np.sqrt(d), "up_bias": np.full((E, f), -1.3)}
    weights["down"] = random.standard_normal((E, f, d) if spec.down_transposed else (E, d, f))
    if spec.gated:
        weights |= {"gate": weights["up"], "gate_bias": weights["up_bias"], "up": weights["up"] + 1}
    dtype = ml_dtypes.bfloat16 if spec.arithmetic == "bfloat16" else np.float32
    return {name: weight.astype(dtype) for name, weight in weights.items()}


@thinned("name", ["relu", "relu2", "gated", "bfloat16"], 2)
def test_experts_with_many_zeros(name):
    spec, weights = SPECS[name], expert_weights(SPECS[name])
    dtype = np.dtype(weights["up"].dtype)
    run = compile_node("Experts", {**FEEDS, "x": FEEDS["x"].astype(dtype)}, weights, spec)
    random = np.random.default_rng(0)
    for tokens in (0, 1, 3, 9, 40):
        case = {
            "x": random.standard_normal((tokens, d)).astype(dtype),
            "weights": random.random((tokens, k), dtype=np.float32),
            "experts": random.integers(-1, E, (tokens, k)).astype(np.int32),
        }
        expected = experts(spec, **case, **weights, dtype=np.float64)
        (y,) = run(**case)
        tolerance = 0.03 if name == "bfloat16" else 1e-4
        np.testing.assert_allclose(y.astype(np.float64), expected, rtol=tolerance, atol=tolerance)
        for threads in (1, 3):
            np.testing.assert_array_equal(run(threads=threads, **case)[0], y)


def test_the_account_says_which_products_skip_zeros():
    def skipping(name: str, weights: dict[str, np.ndarray]) -> list[bool]:
        lowered = lower_node("Experts", FEEDS, weights, SPECS[name])
        return [record.attributes["skips_zeros"] for record in lowered.kernels.values() if "gemm" in record.name]

    assert skipping("relu", expert_weights(SPECS["relu"])) == [False, True]
    assert skipping("silu", expert_weights(SPECS["silu"])) == [False, False]
    infinite = expert_weights(SPECS["relu"])
    infinite["down"][2, 3, 4] = np.inf
    assert skipping("relu", infinite) == [False, False]

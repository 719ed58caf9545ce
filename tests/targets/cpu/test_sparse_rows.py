"""Products that skip the inputs that are zero: the same bits as without, and the right choice between the ways."""

from __future__ import annotations

import functools

import ml_dtypes
import numpy as np
import pytest
from tvm.script import tirx as T

from moec.targets.cpu.kernels import multiply_float, multiply_pairs, sparse_rows
from moec.targets.cpu.kernels.dot import pair_functions
from moec.targets.cpu.kernels.emit import Parameter, emit_kernel
from moec.targets.cpu.kernels.multiplication import Multiplication, Rows, Tile, Weights
from moec.targets.cpu.kernels.stored import StoredFormat
from moec.targets.cpu.machine import Machine

from .kernel_runner import build, machines

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
    product = Multiplication(machine, StoredFormat(stored), arithmetic)
    ways = {"float32": multiply_float, "bfloat16": multiply_pairs}

    def body(rows, weights, where, sums):
        first, count = (T.bind(T.cast(where[i], "int64")) for i in range(2))
        operands = product, Rows(rows), Weights(weights, crossover=T.int64(1000)), Tile(0, 0, INNER), sums, first, count

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


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("machine", MACHINES)
def test_skipping_zeros_changes_no_bit(machine, way):
    weights = weights_of(machine, way)
    for nonzero in (0, 7, INNER):
        rows = rows_with(way, nonzero)
        for count in (1, 3, 5):
            expected = run(machine, way, "never", rows, weights, 2, count)
            found = run(machine, way, "chosen", rows, weights, 2, count)
            np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32))


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
    assert Multiplication(machine, StoredFormat("float16"), rows_have_zeros=True).skips_zeros
    assert not Multiplication(machine, StoredFormat("float16")).skips_zeros
    assert not Multiplication(machine, StoredFormat("uint4", 32), rows_have_zeros=True).skips_zeros
    assert not Multiplication(machine, StoredFormat("uint8"), "int8", rows_have_zeros=True).skips_zeros

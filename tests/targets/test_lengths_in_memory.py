"""Kernels that read lengths in memory compute the actual elements as before, and read nothing behind them."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax, te, tirx

from moec.targets.tvm.lowering.lengths_in_memory import LengthsInMemory

P, S = (tirx.Var(name, "int64") for name in ("P", "S"))


def built(inputs, outputs, node="n"):
    """The kernel as a function of arrays, the lengths of states, and what it takes after the inputs."""
    lengths = LengthsInMemory()
    lengths.parameters = {P: relax.Var("in_use_P", relax.TensorType([1], "int64"))}
    kernel, extra = lengths.kernel(inputs, outputs, [], node)
    module = tvm.IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")})
    return tvm.compile(module, target="llvm")["kernel"], lengths, [str(value) for value in extra]


def run(kernel, *arrays):
    tensors = [tvm.runtime.tensor(array) if isinstance(array, np.ndarray) else array for array in arrays]
    kernel(*tensors)
    return tensors[-1].numpy()


def test_a_length_in_an_element_is_read_in_memory():
    """Positions of new tokens: the same kernel for every length."""
    positions = te.compute((S,), lambda i: i + P, name="positions")
    kernel, lengths, extra = built([], [positions])
    assert extra == ["in_use_P"] and not lengths.fixed
    for length in (0, 7):
        result = run(kernel, np.array([length]), np.zeros(3, np.int64))
        np.testing.assert_array_equal(result, length + np.arange(3))


def test_elements_behind_the_actual_ones_are_zero():
    """New entries come after the actual ones. Memory for 8 + 2 is there, of which 3 + 2 are in use; without the bound
    the last elements would be read behind the new ones."""
    past, new = te.placeholder((P, 2), name="past"), te.placeholder((S, 2), name="new")
    joined = te.compute((P + S, 2), lambda i, j: tirx.if_then_else(i < P, past(i, j), new(i - P, j)))
    kernel, lengths, _ = built([past, new], [joined])
    assert not lengths.fixed
    before, added = np.full((8, 2), 5, np.float32), np.full((2, 2), 6, np.float32)
    result = run(kernel, before, added, np.array([3]), np.full((10, 2), np.nan, np.float32))
    np.testing.assert_array_equal(result[:, 0], [5, 5, 5, 6, 6, 0, 0, 0, 0, 0])


def test_a_kernel_without_lengths_in_elements_stays():
    source = te.placeholder((P, 2), name="source")
    kernel, lengths, extra = built([source], [te.compute((P, 2), lambda i, j: source(i, j) + 1)])
    assert extra == [] and not lengths.fixed
    np.testing.assert_array_equal(run(kernel, np.ones((2, 2), np.float32), np.zeros((2, 2), np.float32)), 2)


@pytest.mark.parametrize(("reduce", "dtype"), [(te.sum, "int64"), (te.max, "float32"), (te.min, "int32")])
def test_reductions_without_an_order_take_the_actual_elements(reduce, dtype):
    source, k = te.placeholder((P, 2), dtype, name="source"), te.reduce_axis((0, P), name="k")
    kernel, lengths, extra = built([source], [te.compute((2,), lambda j: reduce(source(k, j), axis=k))])
    assert extra == ["in_use_P"] and not lengths.fixed
    numbers = np.array([[-3, 4], [-5, 2], [99, -99]], dtype)
    name = {te.sum: "sum", te.max: "max", te.min: "min"}[reduce]
    np.testing.assert_array_equal(
        run(kernel, numbers, np.array([2]), np.zeros(2, dtype)), getattr(numbers[:2], name)(axis=0)
    )


def test_sums_of_floats_are_noted():
    source, k = te.placeholder((P, 2), name="source"), te.reduce_axis((0, P), name="k")
    assert built([source], [te.compute((2,), lambda j: te.sum(source(k, j), axis=k))], "sum (ReduceSum)")[1].fixed == {
        "sum (ReduceSum)": None
    }
    source, k = te.placeholder((S, 2), name="source"), te.reduce_axis((0, S), name="k")
    assert not built([source], [te.compute((2,), lambda j: te.sum(source(k, j), axis=k))])[1].fixed


def test_kernels_of_other_kinds_are_noted_unless_they_ignore_padding():
    lengths = LengthsInMemory()
    lengths.parameters = {P: relax.Var("in_use_P", relax.TensorType([1], "int64"))}
    mask, other = relax.Var("mask", relax.TensorType([1, P + S], "bool")), relax.Var("x", relax.TensorType([S]))
    lengths.ignored(mask)
    lengths.note([mask, other], [relax.TensorType([S], "float32")], "first")
    assert not lengths.fixed
    lengths.note([other], [relax.TensorType([P], "float32")], "second")
    lengths.note([relax.Var("mask", relax.TensorType([1, P + S], "bool"))], [], "third")
    assert [*lengths.fixed] == ["second", "third"]

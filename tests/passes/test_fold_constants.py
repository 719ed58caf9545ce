from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import MoecError
from moec.ir.interpreter import Evaluator
from moec.passes.fold_constants import FoldConstants
from moec.passes.framework.base import Report

from .before_after import assert_shown, check, model_of

PASSES = "fold-constants,remove-dead-nodes"


def test_a_computation_of_constants_becomes_one():
    check(
        PASSES,
        """(float[T] x) => (float[T] y) <float two = {2}, float three = {3}> {
            p = Mul (two, three) s = Neg (p) y = Add (x, s) }""",
        "(float[T] x) => (float[T] y) <float s = {-6}> { y = Add (x, s) }",
    )


def test_several_outputs_are_folded():
    check(
        PASSES,
        """(float[T] x) => (float[T] y) <int64[2] pair = {2, 3}> {
            a, b = Split <num_outputs = 2> (pair) s = Mul (a, b) f = Cast <to = 1> (s) y = Add (x, f) }""",
        "(float[T] x) => (float[T] y) <float[1] f = {6}> { y = Add (x, f) }",
    )


def test_what_depends_on_an_input_is_not_folded():
    check(PASSES, "(float[T] x) => (float[T] y) <float two = {2}> { s = Mul (x, two) y = Add (s, two) }")


def test_random_operators_and_quantisation_stay(rewrite):
    text = """(float[T] x) => (float[T] y) <int8[1] q = {3}, float scale = {0.5}, float[1] like = {0}> {
        w = DequantizeLinear (q, scale) r = RandomNormalLike (like) s = Add (w, r) y = Add (x, s) }"""
    assert_shown(rewrite(text, "fold-constants"), text)


def test_an_operator_without_a_reference_stays(rewrite):
    text = """(float[1,1,1,1] x) => (float[1,1,1,1] y)
        <float[1,1,1,1] image = {2}, float[1,5] region = {0, 0, 0, 0, 0}> {
        s = MaxRoiPool <pooled_shape = [1, 1]> (image, region) y = Add (x, s) }"""
    assert_shown(rewrite(text, "fold-constants"), text)


def test_running_out_of_memory_is_not_hidden(rewrite, monkeypatch):
    def run(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("moec.ir.interpreter.Evaluator.run", run)
    with pytest.raises(MoecError, match="fold-constants: there is not enough memory"):
        rewrite("(float[T] x) => (float[T] y) <float two = {2}> { s = Neg (two) y = Add (x, s) }", "fold-constants")


def test_a_small_constant_does_not_grow_into_a_large_one():
    check(
        PASSES,
        """(float[1] x) => (float[A,B] y) <int64[2] shape = {1000, 1000}, float[1] one = {1}> {
            big = Expand (one, shape) zeros = ConstantOfShape (shape) s = Add (big, zeros) y = Add (x, s) }""",
    )


def test_a_large_weight_is_transposed_when_it_is_read():
    model = model_of(
        "(float[T,20] x, float[30,20] w) => (float[T,30] y) { t = Transpose <perm = [1,0]> (w) y = MatMul (x, t) }"
    )
    reads = []
    weight = np.arange(600, dtype=np.float32).reshape(30, 20)

    def read() -> ir.TensorProtocol:
        reads.append(1)
        return ir.tensor(weight)

    value = model.graph.inputs.pop(1)
    value.const_value = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape([30, 20]), name="w")
    model.graph.register_initializer(value)
    assert FoldConstants(limit=100).apply(model, Report())
    assert [node.op_type for node in model.graph] == ["MatMul"]
    assert not reads
    np.testing.assert_array_equal(model.graph.initializers["t"].const_value.numpy(), weight.T)


def test_weights_that_are_read_alike_share_what_reads_them(monkeypatch):
    """And those that are turned in another way do not."""
    model = model_of(
        """(float[2,5,5] x, float[2,5,5] a, float[2,5,5] b, float[2,5,5] c) => (float[2,5,5] y) {
        s = Transpose <perm = [0,2,1]> (a) t = Transpose <perm = [0,2,1]> (b) u = Transpose <perm = [0,1,2]> (c)
        p = MatMul (x, s) q = MatMul (p, t) y = MatMul (q, u) }"""
    )
    weights = np.random.default_rng(0).normal(size=(3, 2, 5, 5)).astype(np.float32)
    for value, weight in zip([model.graph.inputs.pop(1) for _ in range(3)], weights, strict=True):
        value.const_value = ir.tensor(weight, name=value.name)
        model.graph.register_initializer(value)
    built, make = [], Evaluator.__init__
    monkeypatch.setattr(
        Evaluator, "__init__", lambda self, *given, **more: built.append(1) or make(self, *given, **more)
    )
    FoldConstants(limit=10).apply(model, Report())
    for _ in range(2):
        read = [model.graph.initializers[name].const_value.numpy() for name in "stu"]
    assert len(built) == 2
    for actual, expected in zip(read, (*weights[:2].transpose(0, 1, 3, 2), weights[2]), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(("size", "folded"), [(2, True), (300, False)])
def test_large_floats_in_16_bits_stay(rewrite, size, folded):
    text = f"(float[T,{size}] x) => (float[T,{size}] y) <bfloat16[{size},{size}] w> "
    model = rewrite(text + "{ wide = Cast <to = 1> (w) y = MatMul (x, wide) }", PASSES)
    assert ("Cast" not in [node.op_type for node in model.graph]) is folded

"""Kernels know the nodes they compute and have readable names, fused or not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tvm
from tvm import relax

from moec.frontend.onnx.importer import import_model
from moec.targets.base import Candidate, KernelRecord
from moec.targets.tvm.phases.provenance import bindings_of, nodes_by_call, nodes_of_kernels
from moec.targets.tvm.phases.records import _header

TWO_EQUAL_LAYERS = """
<ir_version: 10, opset_import: ["" : 24]>
agraph (float[T, 8] x) => (float[T, 8] y) {
   [first_add] a = Add (x, x)
   [first_abs] b = Abs (a)
   [first_softmax] c = Softmax (b)
   [second_add] d = Add (c, c)
   [second_abs] e = Abs (d)
   [second_softmax] y = Softmax (e)
}
"""

TWO_RANGES = """
<ir_version: 10, opset_import: ["" : 24]>
agraph (float[B, S] x) => (int64[B] rows, int64[S] columns) <int64 zero = {0}, int64 one = {1}> {
   [shape] shape = Shape (x)
   [row_count] row_count = Gather (shape, zero)
   [column_count] column_count = Gather (shape, one)
   [row_range] rows = Range (zero, row_count, one)
   [column_range] columns = Range (zero, column_count, one)
}
"""


def _kernels(text: str) -> dict[str, tuple[str, list[str]]]:
    from moec.targets import get

    program = get("cpu").compile(import_model(onnx.parser.parse_model(text)))
    return {kernel.name: (kernel.op, kernel.nodes) for kernel in program.kernels}


def test_equal_groups_share_a_kernel_that_names_the_nodes_of_both():
    kernels = _kernels(TWO_EQUAL_LAYERS)
    assert kernels["add_abs"] == ("Add + Abs", ["first_add", "first_abs", "second_add", "second_abs"])
    assert kernels["softmax"] == ("Softmax", ["first_softmax", "second_softmax"])


def test_calls_that_differ_only_in_the_shape_of_their_result_keep_their_nodes():
    ranges = [nodes for op, nodes in _kernels(TWO_RANGES).values() if op == "Range"]
    assert [name for nodes in ranges for name in nodes] == ["row_range", "column_range"]


@pytest.mark.parametrize("text", [TWO_EQUAL_LAYERS, TWO_RANGES], ids=["layers", "ranges"])
def test_every_kernel_has_nodes_and_a_name_without_gaps(text):
    kernels = _kernels(text)
    assert all(nodes for _, nodes in kernels.values())
    for name in kernels:
        base, _, number = name.rpartition("_")
        assert not number.isdigit() or (base if number == "2" else f"{base}_{int(number) - 1}") in kernels


def test_a_header_lists_what_a_kernel_does_and_not_what_it_leaves():
    attributes = {"gated": True, "biased": False, "causal": "", "mask": None, "up_offset": 0, "tile": [2, 3]}
    record = KernelRecord("k", "Op", ["n"], [Candidate("k", True, "why", chosen=True)], attributes)
    said = [line for line in _header(record, []) if line.partition(":")[0].replace(" ", "_") in attributes]
    assert said == ["gated: True", "up offset: 0", "tile: 2 x 3"]


SCALED = """
@I.ir_module
class Module:
    @T.prim_func
    def scale(x: T.Buffer((4,), "float32"), a: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32")):
        for i in range(4):
            y[i] = x[i] * a[i]

    @R.function
    def main(x: R.Tensor((4,), "float32"), a: R.Tensor((4,), "float32"), b: R.Tensor((4,), "float32")):
        cls = Module
        first = R.call_tir(cls.scale, (x, a), out_ty=R.Tensor((4,), "float32"))
        second = R.call_tir(cls.scale, (x, b), out_ty=R.Tensor((4,), "float32"))
        return (first, second)
"""


@pytest.mark.parametrize("order", [("first", "second"), ("second", "first"), ("second",)])
def test_calls_on_other_constants_are_other_calls(order):
    """Fusion may move a call before another, or remove it."""
    numbers = {name: np.full(4, number, "float32") for name, number in (("a", 2), ("b", 3))}
    before = relax.transform.BindParams("main", numbers)(tvm.script.from_source(SCALED))
    main = before["main"]
    calls = {binding.var.name: binding for binding in bindings_of(main)}
    moved = relax.SeqExpr([relax.BindingBlock([calls[name] for name in order])], calls[order[0]].var)
    after = tvm.IRModule(
        {**before.functions, before.get_global_var("main"): relax.Function(main.params, moved, main.ret_ty)}
    )
    nodes = {name: ir.Node("", name, []) for name in ("first", "second")}
    assert [node.op_type for node in nodes_of_kernels(after, nodes_by_call(before, after, nodes))["scale"]] == list(
        order
    )

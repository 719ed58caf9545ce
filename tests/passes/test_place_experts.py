from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import moec
from moec.common.dtypes import DTYPES
from moec.common.errors import MoecError
from moec.ir.dialect import is_moec
from moec.ir.streaming import is_streamed
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.placing.metadata import layer_of, plan_of
from moec.placing.placement import ExpertPlacement

from ..products import thinned
from .before_after import HEADER, check, model_of
from .profiles import with_measures, write_routed

WEIGHTS = "float[3,4,5] up, float[3,5,4] down"
PLACED = ",place-experts"
ROUTED = 'moec.MoE <gate_layout = "none", up_transposed = 1, down_transposed = 1, k = 2'


def placement_of(model: ir.Model) -> ExpertPlacement | None:
    plan = plan_of(model)
    return None if plan is None else plan.placement


def placed(text: str, passes: str = "place-experts") -> tuple[ir.Model, Report]:
    model, report = model_of(text), Report()
    pipeline.run(model, pipeline.parse(f"infer-shapes,{passes}"), report, verify_each=True)
    return model, report


def test_rows_travel_while_a_shared_expert_computes():
    model, _ = placed(
        f"(float[T,4] x) => (float[T,4] y) <float[4,3] r, {WEIGHTS}, float[4,4] shared> "
        f"{{ a = MatMul (x, r) z = {ROUTED}> (x, a, , up, down) s = MatMul (x, shared) y = Add (s, z) }}"
    )
    order = [node.op_type for node in model.graph]
    sent, received = order.index("SendRows"), order.index("ReceiveRows")
    assert "MatMul" in order[sent:received] and order[-1] == "Add"


def test_weights_travel_where_experts_see_weighted_rows():
    check(
        "infer-shapes,place-experts",
        f"(float[T,4] x, float[T,2] w, int32[T,2] e) => (float[T,4] y) <{WEIGHTS}> "
        '{ y = moec.Experts <gate_layout = "none", up_transposed = 1, down_transposed = 1, weight_on_input = 1> '
        "(x, w, e, up, down) }",
        f'(float[T,4] x, float[T,2] w, int32[T,2] e) => (float[T,4] y) <{WEIGHTS}, float "y.one" = {{1}}> {{ '
        '"y.sent" = moec.SendRows <layer = 0> (x, e, w) '
        '"y.rows", "y.owners", "y.own_weights" = moec.ReceiveRows <layer = 0> ("y.sent", x, e, w) '
        '"y.results" = moec.Experts <gate_layout = "none", up_transposed = 1, down_transposed = 1, '
        'weight_on_input = 1> ("y.rows", "y.own_weights", "y.owners", up, down) '
        '"y.pairs", "y.positions" = moec.ReturnRows <layer = 0> ("y.results", e) '
        '"y.sizes" = Shape (w) "y.ones" = Expand ("y.one", "y.sizes") '
        'y = moec.Combine ("y.pairs", "y.ones", "y.positions") }',
    )


def test_layers_are_numbered_and_placed_in_the_order_of_the_graph():
    model, _ = placed(
        f"(float[T,4] x) => (float[T,4] y) <float[4,3] r, {WEIGHTS}, float[2,4,5] up_2, float[2,5,4] down_2, "
        f"float[4,2] s> {{ a = MatMul (x, r) z = {ROUTED}> (x, a, , up, down) b = MatMul (z, s) "
        f"y = {ROUTED}> (z, b, , up_2, down_2) }}",
        "place-experts{ranks=2}",
    )
    assert [layer_of(node) for node in model.graph if is_moec(node, "Experts")] == [0, 1]
    placement = placement_of(model)
    assert placement is not None and placement.ranks == 2 and is_streamed(model)
    assert [layer.slots for layer in placement.layers] == [((0,), (1, 2)), ((0,), (1,))]


def test_models_without_experts_stay_as_they_are():
    model, report = placed("(float[T,4] x) => (float[T,4] y) { y = Relu (x) }")
    assert [node.op_type for node in model.graph] == ["Relu"] and placement_of(model) is None and not is_streamed(model)
    assert "no layer of experts" in report.remarks[0].message


def test_experts_in_a_branch_are_on_every_rank_with_a_remark():
    model, report = placed(
        f"(float[T,4] x, bool c) => (float[T,4] y) <float[4,3] r, {WEIGHTS}> {{ a = MatMul (x, r) "
        f"y = If (c) <then_branch = t () => (float[T,4] p) {{ p = {ROUTED}> (x, a, , up, down) }}, "
        "else_branch = e () => (float[T,4] q) { q = Identity (x) }> }"
    )
    assert placement_of(model) is None and any("loop or branch" in remark.message for remark in report.remarks)


@thinned("dtype", ["bfloat16", "float16", "float"], 3)
def test_programs_compute_the_same_bits(dtype):
    plain, exchanged = (moec.compile(routed_experts(dtype), passes=f"infer-shapes{more}") for more in ("", PLACED))
    assert plain.artifact.manifest.placement is None and exchanged.artifact.manifest.placement is not None
    for tokens in (0, 1, 7, 64):
        x = np.random.default_rng(tokens).standard_normal((tokens, 4)).astype(DTYPES[exchanged.inputs[0].dtype])
        assert np.array_equal(plain.run({"x": x})["y"], exchanged.run({"x": x})["y"])


def routed_experts(dtype: str) -> onnx.ModelProto:
    """Experts with a bias, on weights of a type."""
    random = np.random.default_rng(0)
    graph = f"({dtype}[T,4] x, {dtype}[4,3] r, {WEIGHTS}, float[3,4] b) => ({dtype}[T,4] y) "
    nodes = f"{{ a = MatMul (x, r) y = {ROUTED}> (x, a, , up, down, , , b) }}"
    model = onnx.parser.parse_model(HEADER + graph.replace("float[3", f"{dtype}[3") + nodes)
    for value in list(model.graph.input)[1:]:
        shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        data = random.standard_normal(shape).astype(ir.DataType(value.type.tensor_type.elem_type).numpy())
        model.graph.initializer.append(ir.to_proto(ir.tensor(data, name=value.name)))
        model.graph.input.remove(value)
    return model


def test_a_profile_places_experts_by_their_loads(tmp_path):
    model = model_of(
        "(float[T,16] x) => (float[T,16] y) <float[16,4] r, float[4,24,16] up, float[4,16,12] down> {"
        " logits = MatMul (x, r) y = moec.MoE <k = 1> (x, logits, , up, down) }"
    )
    path = write_routed(tmp_path / "p.moeprof", model)
    with_measures(path, {"count": np.array([500, 10, 1, 1])})
    pipeline.run(model, pipeline.parse(f"place-experts{{replicas=2,profile={path}}}"), Report())
    placement = placement_of(model)
    assert placement is not None and placement.layers[0].holders()[0] == [0, 1]


def test_replicas_need_a_profile():
    with pytest.raises(MoecError, match="moec profile"):
        placed(
            f"(float[T,4] x) => (float[T,4] y) <float[4,3] r, {WEIGHTS}> "
            f"{{ a = MatMul (x, r) y = {ROUTED}> (x, a, , up, down) }}",
            "place-experts{replicas=1}",
        )

"""raise-moe on whole models."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from moec.frontend.onnx.importer import import_model
from moec.ir import dialect, interpreter
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.passes.raise_moe import RaiseMoE

from .before_after import check

CHAR_LM = Path(__file__).parents[2] / "examples" / "char_lm"


@pytest.fixture
def char_lm() -> ir.Model:
    model = import_model(CHAR_LM / "model.onnx")
    pipeline.run(model, pipeline.parse(pipeline.CLEAN_UP))
    return model


def test_every_block_of_a_trained_model_is_raised(char_lm):
    report = Report()
    assert RaiseMoE().apply(char_lm, report)
    routes = [node for node in char_lm.graph if dialect.is_moec(node, "Route")]
    experts = [node for node in char_lm.graph if dialect.is_moec(node, "Experts")]
    assert len(routes) == len(experts) == 2
    assert {dialect.spec_of(route, dialect.RouteSpec) for route in routes} == {dialect.RouteSpec(k=2, normalize=True)}
    assert {dialect.spec_of(node, dialect.ExpertsSpec).activation for node in experts} == {"silu"}
    assert len({node.metadata_props["moec.block"] for node in experts}) == 2
    assert not [remark for remark in report.remarks if remark.severity == "warning"]


def test_raised_model_computes_what_the_original_does(char_lm):
    (tokens,) = [value for value in char_lm.graph.inputs]
    ids = np.random.default_rng(0).integers(0, 60, size=(2, 9))
    before = interpreter.run(char_lm, {tokens.name: ids})
    RaiseMoE().apply(char_lm, Report())
    pipeline.run(char_lm, pipeline.parse("remove-dead-nodes,infer-shapes"), verify_each=True)
    after = interpreter.run(char_lm, {tokens.name: ids})
    for name, want in before.items():
        np.testing.assert_allclose(after[name], want, atol=1e-4)
    assert not any(node.op_type in ("GatherND", "NonZero") and _is_late(node) for node in char_lm.graph)


def _is_late(node: ir.Node) -> bool:
    """Whether a node belongs to what a raised block should have replaced: it depends on a moec operator's ids."""
    return any(value is not None and dialect.is_moec(p) for value in node.inputs if (p := value.producer()) is not None)


def test_raising_twice_changes_nothing_more(char_lm):
    RaiseMoE().apply(char_lm, Report())
    pipeline.run(char_lm, pipeline.parse("remove-dead-nodes"))
    assert not RaiseMoE().apply(char_lm, Report())


PASSES = "infer-shapes,raise-moe,remove-dead-nodes"
SIGNATURE = "(float[T,6] x) => (float[T,6] y)"
BLOCK = f"""{SIGNATURE} <float[6,4] gate, float[4,6,5] up, float[4,5,6] down, int64[1] k = {{2}}> {{
    logits = MatMul (x, gate)
    top, chosen = TopK <axis = -1> (logits, k)
    w = Softmax <axis = -1> (top)
    shape = Shape (logits)
    zeros = ConstantOfShape (shape)
    mixture = ScatterElements <axis = -1> (zeros, chosen, w)
    h = Einsum <equation = "td,edf->tef"> (x, up)
    a = Relu (h)
    o = Einsum <equation = "tef,efd->ted"> (a, down)
    routed = Einsum <equation = "ted,te->td"> (o, mixture)
    y = Add (x, routed) }}"""


def test_a_residual_sum_stays_outside():
    after = f"""{SIGNATURE} <float[6,4] gate, float[4,6,5] up, float[4,5,6] down> {{
        logits = MatMul (x, gate)
        "routed.weights", "routed.experts" = moec.Route <k = 2, score = "softmax_topk"> (logits)
        "routed.y" = moec.Experts <
            activation = "relu", down_transposed = 1, gate_layout = "none", up_transposed = 1
        > (x, "routed.weights", "routed.experts", up, down)
        y = Add (x, "routed.y") }}"""
    assert not check(PASSES, BLOCK, after)


def test_what_no_proposal_agrees_with_stays_and_is_reported():
    (remark,) = check(PASSES, BLOCK.replace("Relu (h)", "Cos (h)"))
    assert remark.severity == "warning"
    assert "left as ordinary operators: what it computes is not recognised" in remark.message


def test_model_without_experts_is_left_alone():
    assert not check(PASSES, "(float[T,4] x) => (float[T,4] y) { y = Softmax (x) }")

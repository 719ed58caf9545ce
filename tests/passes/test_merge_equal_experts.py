"""Experts with equal weights are stored once, and experts that only look alike are not."""

from __future__ import annotations

import numpy as np
import pytest

from moec.ir import interpreter
from moec.ir.dialect import inputs_of
from moec.ir.origins import origins_of
from moec.passes import pipeline
from moec.passes.framework.base import Report

from .before_after import check, model_of

NAME = "merge-equal-experts"
SIGNATURE = "(float[T,2] x, float[T,4] logits) => (float[T,2] y{more})"
UP, DOWN = "{1, 2, 3, 4, 1, 2, 1, 2}", "{5, 6, 7, 8, 5, 6, 5, 6}"
"""Experts 0, 2 and 3 are equal."""
ROUTE = "w, e = moec.Route <k = 2{routing}> (logits)"
EXPERTS = 'y = moec.Experts <activation = "relu", gate_layout = "none"{attributes}> (x, w, {ids}, {operands})'


def layer(
    up: str = UP, down: str = DOWN, bias: str = "", routing: str = "", attributes: str = "", more: str = ""
) -> str:
    constants = f"float[4,1,2] up = {up}, float[4,2,1] down = {down}"
    constants += f", float[4,2] down_bias = {bias}" if bias else ""
    operands = "up, down, , , down_bias" if bias else "up, down"
    nodes = f"{ROUTE.format(routing=routing)} {EXPERTS.format(attributes=attributes, ids='e', operands=operands)}"
    return f"{SIGNATURE.format(more=more)} <{constants}> {{ {nodes} }}"


def cases(experts: int = 4) -> list[dict[str, np.ndarray]]:
    """No token, one, an odd number and many; ties."""
    random = np.random.default_rng(0)
    numbers = [random.standard_normal((T, experts), dtype=np.float32) for T in (0, 1, 7, 40)]
    numbers.append(np.zeros((3, experts), np.float32))
    return [{"x": random.standard_normal((len(number), 2), dtype=np.float32), "logits": number} for number in numbers]


@pytest.mark.parametrize("routing", ["", ", normalize = 1", ", capacity = 3", ', score = "sigmoid", threshold = 0.5'])
def test_equal_experts_are_stored_once(routing):
    nodes = f"""{ROUTE.format(routing=routing)} e_stored = Gather <axis = 0> (e_table, e)
        {EXPERTS.format(attributes="", ids="e_stored", operands="up_used, down_used")}"""
    constants = "int32[5] e_table = {0, 1, 0, 0, -1}, float[2,1,2] up_used, float[2,2,1] down_used"
    after = f"{SIGNATURE.format(more='')} <{constants}> {{ {nodes} }}"
    (remark,) = check(NAME, layer(routing=routing), after, *cases())
    assert remark.message == "of 4 experts, 2 need to be stored; the others are gone"


DIFFERENT = {
    "a number": layer(up="{1, 2, 3, 4, 1, 3, 1, 4}"),
    "the sign of a zero": layer(up="{0, 2, 3, 4, -0.0, 2, 5, 2}"),
    "a bias": layer(bias="{1, 2, 1, 2, 1, 3, 1, 4}"),
    "hidden units": layer(
        up="{1, 2, 3, 4, 1, 2, 5, 6}", attributes=", hidden_sizes = [1, 1, 0, 1]"
    ),
    "the routing has other users": layer(more=", float[T,2] w"),
}  # fmt: skip


@pytest.mark.parametrize("difference", DIFFERENT)
def test_experts_stay_that_differ_in(difference):
    assert not check(NAME, DIFFERENT[difference], None, *cases())


def test_routing_that_is_fused_already_keeps_its_experts():
    text = layer().replace("w, e = moec.Route <k = 2> (logits) y = moec.Experts <", "y = moec.MoE <k = 2, ")
    (remark,) = check(NAME, text.replace("x, w, e,", "x, logits, ,"))
    assert remark.message == "of 4 experts, 2 need to be stored; run this pass before fuse-route-dispatch"


def test_formats_and_scales_are_looked_at():
    """The third of five experts has another scale, and the fourth the same numbers in another format."""
    model = model_of(
        """(float[T,2] x, float[T,5] logits) => (float[T,2] y)
        <int8[3,1,2] a = {1, 2, 1, 2, 1, 2}, float[3,1,1] scales = {0.5, 0.5, 0.25},
         float[2,1,2] b = {0.5, 1, 0.5, 1}, float[5,2,1] down = {5, 6, 5, 6, 5, 6, 5, 6, 5, 6}> {
        u = DequantizeLinear <axis = 2, block_size = 2, output_dtype = 1> (a, scales)
        up = Concat <axis = 0> (u, b)
        w, e = moec.Route <k = 2> (logits)
        y = moec.Experts <activation = "relu", gate_layout = "none"> (x, w, e, up, down) }"""
    )
    pipeline.run(model, pipeline.parse(f"infer-shapes,{NAME}"), verify_each=True)
    node = model.graph.outputs[0].producer()
    assert node is not None
    assert origins_of(node, 3).experts == ((0, 1), (2,), (3, 4))


def test_a_pair_that_is_not_dispatched_stays_so():
    model = model_of(layer(routing=', score = "sigmoid", threshold = 0.9'))
    pipeline.run(model, pipeline.parse(NAME))
    y = interpreter.run(model, {"x": np.ones((3, 2), np.float32), "logits": np.zeros((3, 4), np.float32)})["y"]
    np.testing.assert_array_equal(y, 0)


def test_identity_experts_keep_their_places():
    text = layer(attributes=", identity_experts = 2").replace("[T,4] logits", "[T,6] logits")
    check(
        NAME,
        text,
        f"""(float[T,2] x, float[T,6] logits) => (float[T,2] y)
        <int32[7] e_table = {{0, 1, 0, 0, 2, 3, -1}}, float[2,1,2] up_used, float[2,2,1] down_used> {{
        {ROUTE.format(routing="")} e_stored = Gather <axis = 0> (e_table, e)
        {EXPERTS.format(attributes=", identity_experts = 2", ids="e_stored", operands="up_used, down_used")} }}""",
        *cases(6),
    )


def test_a_second_table_takes_the_place_of_the_first():
    """Experts that contribute nothing go first."""
    model, report = model_of(layer(attributes=", hidden_sizes = [1, 0, 1, 1]")), Report()
    inputs = cases()
    before = [interpreter.run(model, case)["y"] for case in inputs]
    pipeline.run(model, pipeline.parse(f"fold-trivial-experts,{NAME}"), report, verify_each=True)
    for case, expected in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(interpreter.run(model, case)["y"], expected)
    assert [node.op_type for node in model.graph] == ["Route", "Gather", "Experts"]
    node = model.graph.node(2)
    np.testing.assert_array_equal(model.graph.node(1).inputs[0].const_value.numpy(), [0, -1, 0, 0, -1])
    assert inputs_of(node)["up"].shape.numpy() == (1, 1, 2)
    origins = origins_of(node, 1)
    assert origins.experts == ((0, 2, 3),)
    assert origins.removed == {1: "fold-trivial-experts: it is zero"}
    assert not pipeline.run(model, pipeline.parse(f"drop-dead-experts,fold-trivial-experts,{NAME}"))


@pytest.mark.parametrize(
    "table", ["{0, 1, 2, 9, -1}", "{0, 1, 2, 3, 3}", "{0, 1, 2, -2, -1}"], ids=["too large", "no end", "too small"]
)
def test_other_tables_are_left_alone(table):
    text = layer().replace(") y = ", ") s = Gather <axis = 0> (t, e) y = ").replace("x, w, e,", "x, w, s,")
    model = model_of(text.replace("<float[4,1,2]", f"<int32[5] t = {table}, float[4,1,2]"))
    assert not pipeline.run(model, pipeline.parse(NAME))


def test_layers_that_share_weights_are_not_fused_and_keep_their_metadata():
    model, report = model_of(layer()), Report()
    pipeline.run(model, pipeline.parse(f"{NAME},fuse-route-dispatch"), report, verify_each=True)
    assert [node.op_type for node in model.graph] == ["Route", "Gather", "Experts"]
    assert "a table of ids says which experts share weights" in report.remarks[-1].message


def test_dropped_experts_are_remembered_by_the_fused_layer():
    model = model_of(layer(routing=', score = "sigmoid"').replace("(logits)", "(logits, bias)").replace(
        "<float[4,1,2]", "<float[4] bias = {0, -inf, 0, 0}, float[4,1,2]"))  # fmt: skip
    pipeline.run(model, pipeline.parse("drop-dead-experts,fuse-route-dispatch"), verify_each=True)
    (node,) = (node for node in model.graph if node.op_type == "MoE")
    assert origins_of(node, 3).removed == {1: "drop-dead-experts: its correction bias is too low"}

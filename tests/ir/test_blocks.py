"""Descriptions of blocks in ``describe()["moe_blocks"]``."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import MoecError
from moec.ir.blocks import expert_bits, moe_blocks
from moec.ir.dialect import BLOCK_KEY, FORMULATION_KEY, INPUTS, DispatchSpec, ExpertsSpec, RouteSpec, make_node
from moec.ir.expert_ids import table_node
from moec.ir.origins import Origins, set_origins


def _model(routing: RouteSpec, experts: ExpertsSpec, *, biased: bool = False) -> ir.Model:
    shapes = {"x": ["T", 16], "logits": ["T", 8], "up": [8, 64, 16], "down": [8, 16, 32]}
    if biased:
        shapes["correction_bias"] = [8]
    values = {
        name: ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.BFLOAT16))
        for name, shape in shapes.items()
    }
    node = make_node("MoE", dict(values), routing, experts, name="layer.0.moe")
    node.metadata_props[FORMULATION_KEY] = "loop"
    node.metadata_props[BLOCK_KEY] = "topk"
    graph = ir.Graph(list(values.values()), list(node.outputs), nodes=[node], opset_imports={"": 24, "moec": 1})
    return ir.Model(graph, ir_version=10)


def test_a_block_names_its_sizes_type_and_origin():
    (block,) = moe_blocks(_model(RouteSpec(k=2), ExpertsSpec()))
    expected = {
        "name": "layer.0.moe",
        "num_experts": 8,
        "top_k": 2,
        "router": "softmax",
        "activation": "silu",
        "gate_layout": "gate_up",
        "hidden_size": 16,
        "intermediate_size": 32,
        "dtype": "bfloat16",
        "formulation": "loop",
        "block": "topk",
    }
    assert {key: block[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("routing", "biased", "text"),
    [
        (RouteSpec(2, "sigmoid", normalize=True, scale=2.5), True, "sigmoid, normalize, scale 2.5, correction bias"),
        (RouteSpec(4, groups=4, groups_kept=2), False, "softmax, groups 4, groups kept 2"),
    ],
)
def test_the_router_is_its_score_and_all_that_is_not_default(routing, biased, text):
    (block,) = moe_blocks(_model(routing, ExpertsSpec(), biased=biased))
    assert block["router"] == text
    assert block["routing"]["k"] == routing.k


def test_the_activation_shows_its_parameters():
    experts = ExpertsSpec(gate_layout="interleaved", alpha=1.702, limit=7.0, up_offset=1.0)
    (block,) = moe_blocks(_model(RouteSpec(k=2, score="softmax_topk"), experts))
    assert block["activation"] == "silu, alpha 1.702, limit 7.0, up offset 1.0"
    assert block["gate_layout"] == "interleaved"


@pytest.mark.parametrize("routed_by", [None, "Softmax"])
def test_experts_that_no_route_serves_have_no_router(routed_by):
    shapes = {"x": ["T", 16], "weights": ["T", 3], "up": [8, 64, 16], "down": [8, 16, 32]}
    values = {
        name: ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        for name, shape in shapes.items()
    }
    values["experts"] = ir.Value(name="experts", shape=ir.Shape(["T", 3]), type=ir.TensorType(ir.DataType.INT64))
    operands, nodes = dict(values), []
    if routed_by:
        nodes.append(ir.node(routed_by, [values["weights"]]))
        operands["weights"] = nodes[0].outputs[0]
    nodes.append(make_node("Experts", operands, ExpertsSpec(), name="experts"))
    graph = ir.Graph(list(values.values()), list(nodes[-1].outputs), nodes=nodes, opset_imports={"": 24, "moec": 1})
    (block,) = moe_blocks(ir.Model(graph, ir_version=10))
    assert (block["top_k"], block["router"], block["routing"]) == (3, None, None)


def test_every_expert_has_its_size_and_formats():
    model = _model(RouteSpec(k=2), ExpertsSpec(hidden_sizes=(32, 4) * 4))
    (block,) = moe_blocks(model)
    assert block["formats"] == {}  # they are inputs of the model
    assert block["experts"]["hidden_sizes"] == (32, 4) * 4
    assert block["activation"] == "silu"
    node = model.graph.node(0)
    weights = ir.tensor(np.zeros((8, 16, 32), np.float16))
    node.replace_input_with(INPUTS["MoE"].index("down"), ir.val("stored", const_value=weights))
    (block,) = moe_blocks(model)
    assert block["formats"] == {"down": ["float16"] * 8}


def test_a_block_tells_what_became_of_its_experts():
    model = _model(RouteSpec(k=2), ExpertsSpec())
    assert moe_blocks(model)[0]["origins"] is None
    origins = Origins((*((expert,) for expert in range(7)), (7, 9)), {8: "some-pass: why"})
    set_origins(model.graph.node(0), origins)
    experts = [list(group) for group in origins.experts]
    assert moe_blocks(model)[0]["origins"] == {"experts": experts, "removed": {"8": "some-pass: why"}}


def test_metadata_of_another_number_of_experts_is_refused():
    model = _model(RouteSpec(k=2), ExpertsSpec())
    set_origins(model.graph.node(0), Origins(((0,),)))
    with pytest.raises(MoecError, match=r"layer\.0\.moe: metadata moec\.origin"):
        moe_blocks(model)


def test_bits_of_experts_are_an_average_over_weights():
    experts = {"gate_layout": "gate_up", "hidden_size": 16, "experts": {"hidden_sizes": (8, 24)}}
    formats = {"up": ["int4/32z", "float32"], "down": ["int8", "fp8"]}
    up, down = 2 * 16 * (8 * 4 + 24 * 32), 16 * (8 * 8 + 24 * 8)
    assert expert_bits([{**experts, "formats": formats}]) == (up + down) / (3 * 16 * 32)
    assert expert_bits(moe_blocks(_model(RouteSpec(k=2), ExpertsSpec()))) is None  # its weights are inputs


def test_experts_that_are_a_graph_over_dispatched_rows_are_a_block():
    """Four experts are stored as two: 0 and 2 share their matrices and 1 has none."""
    route = make_node("Route", {"logits": ir.val("logits", shape=["T", 4])}, RouteSpec(k=2))
    table = ir.val("table", const_value=ir.tensor(np.array([0, -1, 0, 1, -1], np.int32)))
    ids = table_node(route.outputs[1], table)
    dispatch = make_node("Dispatch", {"experts": ids.outputs[0]}, DispatchSpec(2), name="layer.0")
    stored = np.zeros((2, 16, 24), np.float16)
    weight = ir.val(
        "weight", const_value=ir.tensor(stored), shape=stored.shape, type=ir.TensorType(ir.DataType.FLOAT16)
    )
    operands = {"x": ir.val("rows"), "weights": weight, "offsets": dispatch.outputs[0]}
    product = make_node("GroupedMatMul", operands, name="widen")
    nodes = [route, ids, dispatch, product]
    graph = ir.Graph([], list(product.outputs), nodes=nodes, opset_imports={"": 24, "moec": 1})
    (block,) = moe_blocks(ir.Model(graph, ir_version=10))
    expected = {"name": "layer.0", "num_experts": 2, "top_k": 2, "router": "softmax", "dtype": "float16"}
    assert {key: block[key] for key in expected} == expected
    assert block["formats"] == {"widen": ["float16", "float16"]}
    assert [(product["name"], product["inputs"], product["outputs"]) for product in block["products"]] == [
        ("widen", 16, 24)
    ]
    assert block["origins"]["experts"] == [[0, 2], [3]] and list(block["origins"]["removed"]) == ["1"]
    assert expert_bits([block]) == 16

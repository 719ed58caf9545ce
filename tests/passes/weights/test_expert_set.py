"""Sets of experts in every layout and format: those that are kept, and those that share weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import UnsupportedError
from moec.ir import interpreter
from moec.ir.dialect import INPUTS, ExpertsSpec, RouteSpec, inputs_of, make_node, spec_of
from moec.ir.origins import origins_of
from moec.ir.verifier import verify
from moec.ir.weights.encode import encode
from moec.ir.weights.format import WeightFormat
from moec.ir.weights.stacks import ExpertStack
from moec.ir.weights.stored import decoding_node, weight_runs
from moec.passes.weights.expert_set import ExpertSet

E, D, F = 6, 4, 8
PLAIN = ExpertsSpec(activation="relu", gate_layout="none")
TOP2 = RouteSpec(k=2, score="softmax_topk")


def constant(name: str, data: np.ndarray) -> ir.Value:
    return ir.val(name, const_value=ir.tensor(data, name=name))


def weights_of(spec: ExpertsSpec) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    both = 2 if spec.fused else 1
    shapes = {"up": (E, both * F, D), "down": (E, D, F), "up_bias": (E, both * F), "down_bias": (E, D)}
    if spec.gate_layout == "separate":
        shapes |= {"gate": (E, F, D), "gate_bias": (E, F)}
    weights = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    for name, transposed in (("up", spec.up_transposed), ("gate", spec.up_transposed), ("down", spec.down_transposed)):
        if transposed and name in weights:
            weights[name] = np.ascontiguousarray(weights[name].transpose(0, 2, 1))
    return weights


def model_of(
    spec: ExpertsSpec, routing: RouteSpec = TOP2, forms: dict[str, list[WeightFormat]] | None = None, *, fused=True
) -> ir.Model:
    """x and logits through a layer; ``forms``: in which formats a weight is stored, run by run of equal length."""
    x, logits = (
        ir.val(name, ir.DataType.FLOAT, ("T", size)) for name, size in (("x", D), ("logits", E + spec.identity_experts))
    )
    nodes: list[ir.Node] = []
    operands: dict[str, ir.Value | None] = {}
    for name, data in weights_of(spec).items():
        axis = 1 if (spec.down_transposed if name == "down" else spec.up_transposed) else 2
        operands[name] = stored(nodes, name, data, axis, (forms or {}).get(name))
    if fused:
        nodes.append(make_node("MoE", {"x": x, "logits": logits, **operands}, routing, spec, name="layer"))
    else:
        route = make_node("Route", {"logits": logits}, routing)
        route.outputs[0].name, route.outputs[1].name = "w", "e"
        route.outputs[0].dtype, route.outputs[1].dtype = ir.DataType.FLOAT, ir.DataType.INT32
        chosen = {"weights": route.outputs[0], "experts": route.outputs[1]}
        nodes += [route, make_node("Experts", {"x": x, **chosen, **operands}, spec, name="layer")]
    nodes[-1].outputs[0].name = "y"
    initializers = {v for node in nodes for v in node.inputs if v is not None and v.const_value is not None}
    graph = ir.Graph(
        [x, logits], nodes[-1].outputs, nodes=nodes, initializers=sorted(initializers, key=lambda v: str(v.name)),
        opset_imports={"": 24, "moec": 1}, name="g",
    )  # fmt: skip
    return ir.Model(graph, ir_version=11)


def stored(nodes: list[ir.Node], name: str, data: np.ndarray, axis: int, forms: list[WeightFormat] | None) -> ir.Value:
    if forms is None:
        return constant(name, data)
    runs = []
    for number, (form, part) in enumerate(zip(forms, np.split(data, len(forms)), strict=True)):
        tables = [
            None if table is None else constant(f"{name}_{number}_{i}", table)
            for i, table in enumerate(encode(part, form, axis)[:3])
        ]
        nodes.append(decoding_node(form, *tables, axis, ir.DataType.FLOAT))
        runs.append(nodes[-1].outputs[0])
        runs[-1].name = f"{name}_{number}"
    if len(runs) == 1:
        return runs[0]
    nodes.append(ir.node("Concat", runs, {"axis": 0}))
    nodes[-1].outputs[0].name, nodes[-1].outputs[0].dtype = name, ir.DataType.FLOAT
    nodes[-1].outputs[0].shape = ir.Shape(data.shape)
    return nodes[-1].outputs[0]


def run(model: ir.Model, logits: np.ndarray) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((len(logits), D), dtype=np.float32)
    return interpreter.run(model, {"x": x, "logits": logits}, dtype=np.float64)["y"]


def logits_of(count: int, kept: list[int]) -> list[np.ndarray]:
    """No token, one and many, of which experts that are not kept are never chosen."""
    random = np.random.default_rng(2)
    results = [random.standard_normal((T, count), dtype=np.float32) for T in (0, 1, 33)]
    for logits in results:
        logits[:, [expert for expert in range(count) if expert not in kept]] = -np.inf
    return results


def kept(model: ir.Model, experts: list[int]) -> ir.Node:
    """The layer with only these experts, which computes the same for tokens that selected no others."""
    node = layer_of(model)
    count = E + spec_of(node, ExpertsSpec).identity_experts
    cases = logits_of(count, experts)
    before = [run(model, logits) for logits in cases]
    ExpertSet(node).keep(model.graph, experts, {e: f"why {e}" for e in range(count) if e not in experts})
    verify(model)
    for logits, expected in zip(cases, before, strict=True):
        np.testing.assert_array_equal(run(model, logits), expected)
    return layer_of(model)


def layer_of(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type in ("MoE", "Experts"))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("layout", ["none", "separate", "gate_up", "interleaved"])
@pytest.mark.parametrize("fused", [False, True])
def test_experts_are_kept_in_every_layout(layout, transposed, fused):
    spec = ExpertsSpec(gate_layout=layout, up_transposed=transposed, down_transposed=transposed)
    node = kept(model_of(spec, fused=fused), [0, 2, 5])
    down = inputs_of(node)["down"].const_value
    assert isinstance(down, ExpertStack) and down.shape.numpy()[0] == 3
    np.testing.assert_array_equal(down.expert(2), weights_of(spec)["down"][5])
    assert origins_of(node, 3).experts == ((0,), (2,), (5,))
    assert origins_of(node, 3).removed == {1: "why 1", 3: "why 3", 4: "why 4"}


FORMATS = [
    [WeightFormat("int8")],
    [WeightFormat("int8", zero_points=True)],
    [WeightFormat("int4", 4, zero_points=True)],
    [WeightFormat("float16")],
    [WeightFormat("int8"), WeightFormat("int4", 4), WeightFormat("bfloat16")],
]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("forms", FORMATS, ids=lambda forms: "+".join(map(str, forms)))
def test_every_expert_keeps_its_format(forms, transposed):
    spec = ExpertsSpec(activation="relu", gate_layout="none", up_transposed=transposed, down_transposed=transposed)
    model = model_of(spec, forms={"up": forms, "down": forms})
    node = kept(model, [1, 2, 3])
    names = [form.name for form in forms for _ in range(E // len(forms))]
    for name in ("up", "down"):
        runs = weight_runs(inputs_of(node)[name])
        assert [run.format.name for run in runs for _ in range(run.count)] == names[1:4]
    assert len(model.graph.initializers) <= 2 + 2 * 3 * 3  # nothing is left of what was there


def test_experts_may_change_places():
    model = model_of(PLAIN, forms={"down": FORMATS[-1]})
    weights = weights_of(PLAIN)
    node = kept(model, [4, 0, 5])
    runs = weight_runs(inputs_of(node)["down"])
    assert [(run.first, run.format.name) for run in runs] == [(0, "bfloat16"), (1, "int8"), (2, "bfloat16")]
    np.testing.assert_array_equal(inputs_of(node)["up_bias"].const_value.numpy(), weights["up_bias"][[4, 0, 5]])


def test_hidden_sizes_go_with_their_experts():
    spec = ExpertsSpec(activation="relu", gate_layout="none", hidden_sizes=(1, 2, 3, 4, 5, 6))
    assert spec_of(kept(model_of(spec), [1, 4]), ExpertsSpec).hidden_sizes == (2, 5)


def test_identity_experts_may_go_too():
    spec = ExpertsSpec(activation="relu", gate_layout="none", identity_experts=2)
    node = kept(model_of(spec), [0, 3, 7])
    assert spec_of(node, ExpertsSpec).identity_experts == 1
    assert inputs_of(node)["up"].shape.numpy()[0] == 2
    assert origins_of(node, 3).experts == ((0,), (3,), (7,))


def test_the_softmax_of_all_selects_those_that_are_left():
    assert spec_of(kept(model_of(PLAIN, RouteSpec(k=6, selection="all")), [1, 2]), RouteSpec).k == 2


def test_whole_groups_may_go():
    routing = RouteSpec(k=2, score="sigmoid", groups=3, groups_kept=1)
    node = layer_of(model_of(PLAIN, routing))
    ExpertSet(node).keep(node.graph, [0, 1, 4, 5], dict.fromkeys((2, 3), "why"))
    assert spec_of(node, RouteSpec) == RouteSpec(k=2, score="sigmoid", groups=2, groups_kept=1)


INFEASIBLE = {
    "1 experts are left, of which 2 are chosen": (TOP2, [3]),
    "no expert with weights is left": (TOP2, [6, 7]),
    "identity experts come behind the others": (TOP2, [6, 1]),
    "experts choose tokens, which then choose among the others": (
        RouteSpec(k=8, selection="expert_choice", capacity=2), [0, 1],
    ),
    "the capacity of 3 is that of 8 experts": (RouteSpec(k=2, capacity=3), [0, 1]),
    "of 4 groups, the experts left are [2, 1]; expected equal groups": (
        RouteSpec(k=2, groups=4, groups_kept=2), [0, 1, 2],
    ),
    "of 4 groups, the experts left are [1, 1]; expected equal groups": (
        RouteSpec(k=2, groups=4, groups_kept=2), [2, 0],
    ),
    "1 groups are left, of which 2 are kept": (RouteSpec(k=2, groups=4, groups_kept=2), [0, 1]),
    "the groups kept hold 2 experts, of which 3 are chosen": (RouteSpec(k=3, groups=4, groups_kept=2), [0, 2, 4, 6]),
}  # fmt: skip


@pytest.mark.parametrize("reason", INFEASIBLE)
def test_sets_that_a_layer_cannot_have(reason):
    routing, experts = INFEASIBLE[reason]
    spec = ExpertsSpec(activation="relu", gate_layout="none", identity_experts=2)
    model = model_of(spec, routing)
    actual = ExpertSet(layer_of(model))
    assert actual.feasible(experts) == reason
    assert actual.feasible(list(range(8))) == (reason if routing.capacity else None)
    with pytest.raises(UnsupportedError):
        actual.keep(model.graph, experts, {})


def test_biases_have_to_be_constant():
    model = model_of(PLAIN)
    node = layer_of(model)
    computed = ir.node("Neg", [inputs_of(node)["up_bias"]])
    model.graph.insert_before(node, computed)
    node.replace_input_with(INPUTS["MoE"].index("up_bias"), computed.outputs[0])
    with pytest.raises(UnsupportedError, match="up_bias is computed when the model runs"):
        ExpertSet(node)

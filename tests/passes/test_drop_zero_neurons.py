"""Hidden units that contribute nothing, in every layout and format, and units that only look alike."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from moec.ir import interpreter
from moec.ir.dialect import ExpertsSpec, RouteSpec, inputs_of, make_node, spec_of
from moec.ir.verifier import verify
from moec.ir.weights.encode import encode
from moec.ir.weights.format import WeightFormat
from moec.ir.weights.stacks import ExpertStack
from moec.ir.weights.stored import decoding_node, weight_runs
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.passes.weights.hidden_units import zero_rows

from . import before_after

E, D, F = 3, 5, 12
RANDOM = np.random.default_rng(0)
PLAIN = ExpertsSpec(activation="relu", gate_layout="none")
GATED = ExpertsSpec(gate_layout="separate")
DEAD = ([0, 3, 11], [], [5])
"""Units of the three experts that contribute nothing."""


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, dtype=np.float32)


def weights_of(spec: ExpertsSpec, *, biased: bool = True) -> dict[str, np.ndarray]:
    """Weights [E, out, in] without zeros, gate and up apart."""
    weights = {"up": normal(E, F, D), "down": normal(E, D, F)}
    if spec.gated:
        weights["gate"] = normal(E, F, D)
    if biased:
        weights |= {f"{name}_bias": normal(*weight.shape[:2]) for name, weight in weights.items()}
    return weights


def stored(spec: ExpertsSpec, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights in the layout of the spec."""
    weights = dict(weights)
    if spec.gated and spec.gate_layout != "separate":
        for up, gate in (("up", "gate"), ("up_bias", "gate_bias")):
            if up in weights:
                parts = [weights.pop(gate), weights[up]]
                if spec.gate_layout == "interleaved":
                    weights[up] = np.stack(parts, axis=2).reshape(E, 2 * F, *parts[0].shape[2:])
                else:
                    weights[up] = np.concatenate(parts if spec.gate_layout == "gate_up" else parts[::-1], axis=1)
    for name, transposed in (("up", spec.up_transposed), ("gate", spec.up_transposed), ("down", spec.down_transposed)):
        if transposed and name in weights:
            weights[name] = np.ascontiguousarray(weights[name].transpose(0, 2, 1))
    return weights


def constant(name: str, data: np.ndarray | ir.TensorProtocol) -> ir.Value:
    return ir.val(name, const_value=data if isinstance(data, ir.TensorProtocol) else ir.tensor(data, name=name))


def model_of(spec: ExpertsSpec, operands: dict[str, ir.Value], decoders: tuple[ir.Node, ...] = ()) -> ir.Model:
    """x [T,D], logits [T,E] through a MoE node with these weights."""
    x, logits = (ir.val(name, ir.DataType.FLOAT, ("T", size)) for name, size in (("x", D), ("logits", E)))
    node = make_node("MoE", {"x": x, "logits": logits, **operands}, RouteSpec(k=2), spec, name="layer")
    node.outputs[0].name = "y"
    stored_values = {value for one in (*decoders, node) for value in one.inputs if value is not None}
    initializers = [value for value in stored_values if value.const_value is not None]
    graph = ir.Graph(
        [x, logits], node.outputs, nodes=[*decoders, node], initializers=initializers,
        opset_imports={"": 24, "moec": 1}, name="g",
    )  # fmt: skip
    return ir.Model(graph, ir_version=11)


def plain_model(spec: ExpertsSpec, weights: dict[str, np.ndarray]) -> ir.Model:
    return model_of(spec, {name: constant(name, data) for name, data in stored(spec, weights).items()})


def drop(model: ir.Model, report: Report | None = None) -> ir.Node:
    """The node after the pass, which computes the same for no token, one and many, down to the last bits."""
    cases = [{"x": normal(T, D), "logits": 3 * normal(T, E)} for T in (0, 1, 20)]
    before = [interpreter.run(model, case, dtype=np.float64)["y"] for case in cases]
    pipeline.run(model, pipeline.parse("drop-zero-neurons"), report, verify_each=True)
    verify(model)
    for case, expected in zip(cases, before, strict=True):
        actual = interpreter.run(model, case, dtype=np.float64)["y"]
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)
    return next(node for node in model.graph if node.op_type == "MoE")


def sizes_of(node: ir.Node) -> tuple[tuple[int, ...], int]:
    """Hidden sizes, and the units of the stacks."""
    spec, down = spec_of(node, ExpertsSpec), inputs_of(node)["down"]
    return spec.hidden_sizes, down.shape.numpy()[1 if spec.down_transposed else 2]


def zero(weights: dict[str, np.ndarray], *names: str, dead=DEAD) -> dict[str, np.ndarray]:
    for expert, units in enumerate(dead):
        for name in names:
            if name == "down":
                weights[name][expert][:, units] = 0
            else:
                weights[name][expert][units] = 0
    return weights


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("layout", ["none", "separate", "gate_up", "up_gate", "interleaved"])
@pytest.mark.parametrize("biased", [False, True])
def test_units_that_reach_no_output_go_in_every_layout(layout, transposed, biased):
    spec = ExpertsSpec(gate_layout=layout, up_transposed=transposed, down_transposed=transposed)
    report = Report()
    weights = zero(weights_of(spec, biased=biased), "down")
    node = drop(plain_model(spec, weights), report)
    assert sizes_of(node) == ((9, 12, 11), 12)
    assert (
        "4 of 36 hidden units contribute nothing and are gone; of 12, experts keep 9 to 12" in report.remarks[0].message
    )
    units = np.setdiff1d(np.arange(F), DEAD[0])
    down = inputs_of(node)["down"].const_value
    assert isinstance(down, ExpertStack)
    kept = down.expert(0) if transposed else down.expert(0).T
    np.testing.assert_array_equal(kept[:9], weights["down"][0].T[units])


SMALL = """(float[T,2] x, float[T,2] logits) => (float[T,2] y) <float[2,3,2] up, float[2,2,3] {down}> {{
    y = moec.MoE <k = 1, activation = "relu", gate_layout = "none"{sizes}> (x, logits, , {operands}) }}"""


def test_the_first_unit_of_one_expert_and_two_of_the_other_go():
    before_after.check(
        "drop-zero-neurons",
        SMALL.format(down="down = {0, 1, 2, 0, 3, 4, 0, 0, 5, 0, 0, 6}", sizes="", operands="up, down"),
        SMALL.replace("[2,3,2] up", "[2,2,2] up_used")
        .replace("[2,2,3]", "[2,2,2]")
        .format(down="down_used", sizes=", hidden_sizes = [2, 1]", operands="up_used, down_used"),
    )


def test_a_unit_that_reaches_one_output_stays():
    text = SMALL.format(down="down = {1, 0, 2, 0, 3, 4, 5, 0, 5, 0, 6, 0}", sizes="", operands="up, down")
    before_after.check("drop-zero-neurons", text)


def test_stacks_shrink_to_the_largest_expert():
    node = drop(plain_model(PLAIN, zero(weights_of(PLAIN), "down", dead=([0], [1, 2], [3, 4, 5]))))
    assert sizes_of(node) == ((11, 10, 9), 11)
    assert inputs_of(node)["up_bias"].shape == (E, 11)


def test_equal_sizes_need_no_table():
    node = drop(plain_model(GATED, zero(weights_of(GATED), "down", dead=([0, 1], [2, 3], [10, 11]))))
    assert sizes_of(node) == ((), 10)


def test_experts_may_lose_every_unit():
    everything = list(range(F))
    assert sizes_of(drop(plain_model(PLAIN, zero(weights_of(PLAIN), "down", dead=(everything, [], [1]))))) == (
        (0, 12, 11),
        12,
    )
    assert sizes_of(drop(plain_model(PLAIN, zero(weights_of(PLAIN), "down", dead=(everything,) * 3)))) == ((0, 0, 0), 1)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu", "relu2", "tanh", "identity"])
def test_units_whose_activation_is_zero_go(activation):
    spec = ExpertsSpec(activation=activation, gate_layout="none")
    node = drop(plain_model(spec, zero(weights_of(spec), "up", "up_bias")))
    assert sizes_of(node)[0] == (9, 12, 11)


def test_a_negative_bias_silences_relu_alone():
    for activation, expected in (("relu", (9, 12, 11)), ("relu2", (9, 12, 11)), ("silu", ())):
        spec = ExpertsSpec(activation=activation, gate_layout="none")
        weights = zero(weights_of(spec), "up")
        weights["up_bias"][:] = -1
        assert sizes_of(drop(plain_model(spec, weights)))[0] == expected


@pytest.mark.parametrize("layout", ["separate", "gate_up", "up_gate", "interleaved"])
def test_a_zero_factor_of_a_gated_unit_is_enough(layout):
    spec = ExpertsSpec(gate_layout=layout)
    assert sizes_of(drop(plain_model(spec, zero(weights_of(spec), "gate", "gate_bias"))))[0] == (9, 12, 11)
    assert sizes_of(drop(plain_model(spec, zero(weights_of(spec), "up", "up_bias"))))[0] == (9, 12, 11)


def test_the_offset_of_up_is_met_by_its_bias():
    spec = dataclasses.replace(GATED, up_offset=1.0, limit=7.0)
    weights = zero(weights_of(spec), "up")
    weights["up_bias"][:] = -1
    assert sizes_of(drop(plain_model(spec, weights)))[0] == (9, 12, 11)


@pytest.mark.parametrize("names", [("gate",), ("up",)])
def test_without_a_limit_nothing_is_clamped(names):
    """A bias above 0 opens the gate, and is a factor of its own."""
    weights = zero(weights_of(GATED), *names)
    weights["gate_bias"], weights["up_bias"] = abs(weights["gate_bias"]), abs(weights["up_bias"])
    assert sizes_of(drop(plain_model(GATED, weights))) == ((), F)


FAILURES = {
    "the sigmoid of zero is not zero": (ExpertsSpec(activation="sigmoid", gate_layout="none"), ("up", "up_bias")),
    "a bias keeps the unit alive": (ExpertsSpec(gate_layout="none"), ("up",)),
    "an offset keeps the unit alive": (dataclasses.replace(GATED, up_offset=1.0), ("up", "up_bias")),
    "the gate is open": (dataclasses.replace(GATED, activation="sigmoid"), ("gate", "gate_bias")),
    "only biases are zero": (GATED, ("gate_bias", "up_bias")),
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_contributes_stays(case):
    spec, names = FAILURES[case]
    report = Report()
    assert sizes_of(drop(plain_model(spec, zero(weights_of(spec), *names)), report)) == ((), F)
    assert not report.remarks


def test_one_weight_that_is_not_zero_keeps_a_unit():
    weights = zero(weights_of(PLAIN), "down")
    weights["down"][:, -1] = 1e-40
    assert sizes_of(drop(plain_model(PLAIN, weights))) == ((), F)


@pytest.mark.parametrize("number", [np.inf, np.nan])
@pytest.mark.parametrize("name", ["up", "up_bias"])
def test_units_with_weights_that_are_no_numbers_stay(name, number):
    weights = zero(weights_of(PLAIN), "down")
    weights[name][0, 3] = number
    model = plain_model(PLAIN, weights)
    pipeline.run(model, pipeline.parse("drop-zero-neurons"))
    assert sizes_of(model.graph.node(0))[0] == (10, 12, 11)


def test_a_nan_in_the_input_still_shows():
    model = plain_model(PLAIN, zero(weights_of(PLAIN), "down"))
    drop(model)
    x = np.zeros((2, D), np.float32)
    x[1, 2] = np.nan
    y = interpreter.run(model, {"x": x, "logits": normal(2, E)})["y"]
    assert np.isfinite(y[0]).all() and np.isnan(y[1]).all()


def test_units_behind_the_hidden_sizes_go():
    spec = dataclasses.replace(PLAIN, hidden_sizes=(4, 6, 5))
    report = Report()
    node = drop(plain_model(spec, zero(weights_of(spec), "down")), report)
    assert sizes_of(node) == ((2, 6, 5), 6)
    assert "2 of 15" in report.remarks[0].message


def test_a_second_run_finds_nothing():
    model = plain_model(GATED, zero(weights_of(GATED), "down"))
    drop(model)
    report = Report()
    assert not pipeline.run(model, pipeline.parse("drop-zero-neurons"), report)
    assert not report.remarks


FORMATS = [
    WeightFormat("float16"),
    WeightFormat("bfloat16"),
    WeightFormat("int8"),
    WeightFormat("int8", zero_points=True),
    WeightFormat("int4"),
    WeightFormat("int4", zero_points=True),
]


def encoded_operand(name: str, weight: np.ndarray, form: WeightFormat, transposed: bool) -> tuple[ir.Value, ir.Node]:
    axis = 1 if transposed else 2
    parts = encode(weight, form, axis)[:3]
    values = [None if part is None else constant(f"{name}_{i}", part) for i, part in enumerate(parts)]
    node = decoding_node(form, *values, axis, ir.DataType.FLOAT)
    node.outputs[0].name = name
    return node.outputs[0], node


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_stored_weights_keep_their_format(form, transposed):
    spec = dataclasses.replace(PLAIN, up_transposed=transposed, down_transposed=transposed)
    weights = stored(spec, zero(weights_of(spec, biased=False), "down"))
    operands, decoders = zip(*(encoded_operand(name, weights[name], form, transposed) for name in weights), strict=True)
    model = model_of(spec, dict(zip(weights, operands, strict=True)), decoders)
    nodes, constants = len(model.graph), len(model.graph.initializers)
    node = drop(model)
    assert sizes_of(node)[0] == (9, 12, 11)
    assert (len(model.graph), len(model.graph.initializers)) == (nodes, constants)
    assert [run.format for name in weights for run in weight_runs(inputs_of(node)[name])] == [form, form]


def test_groups_of_inputs_of_up_stay_whole():
    form = WeightFormat("int4", 2)
    weights = zero(weights_of(PLAIN, biased=False), "down")
    up, decoder = encoded_operand("up", weights["up"], form, transposed=False)
    node = drop(model_of(PLAIN, {"up": up, "down": constant("down", weights["down"])}, (decoder,)))
    assert sizes_of(node)[0] == (9, 12, 11)
    assert weight_runs(inputs_of(node)["up"])[0].format == form


def test_every_expert_keeps_its_format():
    weights = zero(weights_of(PLAIN, biased=False), "down")
    first, decoder = encoded_operand("down_first", weights["down"][:2], WeightFormat("int8"), transposed=False)
    rest = constant("down_rest", weights["down"][2:])
    joined = ir.node("Concat", [first, rest], {"axis": 0})
    joined.outputs[0].name, joined.outputs[0].dtype = "down", ir.DataType.FLOAT
    joined.outputs[0].shape = ir.Shape((E, D, F))
    node = drop(model_of(PLAIN, {"up": constant("up", weights["up"]), "down": joined.outputs[0]}, (decoder, joined)))
    assert sizes_of(node)[0] == (9, 12, 11)
    assert [run.format.name for run in weight_runs(inputs_of(node)["down"])] == ["int8", "float32"]


def refused(model: ir.Model) -> str:
    report = Report()
    assert sizes_of(drop(model, report)) == ((), F)
    return report.remarks[0].message


def test_groups_of_units_are_left_alone():
    weights = zero(weights_of(PLAIN, biased=False), "down")
    down, decoder = encoded_operand("down", weights["down"], WeightFormat("int4", 4), transposed=False)
    model = model_of(PLAIN, {"up": constant("up", weights["up"]), "down": down}, (decoder,))
    assert "down is int4/4, in groups of units; run this pass before quantize-experts" in refused(model)


def test_quantised_activations_are_left_alone():
    spec = dataclasses.replace(PLAIN, arithmetic="int8")
    assert "quantised together" in refused(plain_model(spec, zero(weights_of(spec), "down")))


def test_weights_that_are_computed_are_left_alone():
    weights = zero(weights_of(PLAIN), "down")
    negative = ir.node("Neg", [constant("negative", -weights["down"])])
    negative.outputs[0].name, negative.outputs[0].dtype = "down", ir.DataType.FLOAT
    negative.outputs[0].shape = ir.Shape((E, D, F))
    operands = {name: constant(name, data) for name, data in weights.items()} | {"down": negative.outputs[0]}
    assert "computed by Neg" in refused(model_of(PLAIN, operands, (negative,)))


def test_weights_without_zeros_are_hardly_read():
    read = []

    class Recorded(np.ndarray):
        def __getitem__(self, key):
            read.append(np.ndarray.__getitem__(self, key).size)
            return np.ndarray.__getitem__(self, key)

    matrix = normal(100, 300).view(Recorded)
    assert not zero_rows(matrix, np.zeros(1)).any()
    assert sum(read) <= 300


def test_narrow_floats_are_compared_as_they_are():
    weights = {name: data.astype(ml_dtypes.bfloat16) for name, data in weights_of(PLAIN).items()}
    model = plain_model(PLAIN, zero(weights, "down"))
    for value in model.graph.inputs:
        value.dtype = ir.DataType.BFLOAT16
    pipeline.run(model, pipeline.parse("drop-zero-neurons"), verify_each=True)
    assert sizes_of(model.graph.node(0))[0] == (9, 12, 11)


def test_nodes_that_are_left_alone_for_one_reason_share_a_note():
    spec = dataclasses.replace(PLAIN, arithmetic="int8")
    model = plain_model(spec, weights_of(spec))
    node = model.graph.node(0)
    second = make_node("MoE", inputs_of(node), RouteSpec(k=2), spec, name="other")
    second.outputs[0].name = "z"
    model.graph.append(second)
    report = Report()
    pipeline.run(model, pipeline.parse("drop-zero-neurons"), report)
    assert [remark.subject for remark in report.remarks] == ["layer and 1 more"]

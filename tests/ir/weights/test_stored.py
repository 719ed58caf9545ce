"""Nodes that decode stored weights, in passes and in the interpreter."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import UnsupportedError
from moec.ir import shapes
from moec.ir.dialect import LinearSpec, make_node
from moec.ir.interpreter import run
from moec.ir.text import parse_model, print_model
from moec.ir.weight_operands import decoding_nodes
from moec.ir.weights.encode import decode, encode
from moec.ir.weights.format import WeightFormat
from moec.ir.weights.levels import levels_node
from moec.ir.weights.stacks import ExpertStack
from moec.ir.weights.stored import WeightRun, decoding_node, weight_runs
from moec.passes.framework.base import Report
from moec.passes.pipeline import CLEAN_UP, parse
from moec.passes.pipeline import run as run_passes

FORMATS = [
    WeightFormat("bfloat16"),
    WeightFormat("float16"),
    WeightFormat("int8"),
    WeightFormat("int8", 32),
    WeightFormat("int8", 32, zero_points=True),
    WeightFormat("int4"),
    WeightFormat("int4", 32),
    WeightFormat("int4", 32, zero_points=True),
    WeightFormat("int3", 32, zero_points=True),
    WeightFormat("int2", 64),
    WeightFormat("mxfp4", 32),
    WeightFormat("nvfp4", 16),
    WeightFormat("fp4", 16),
    WeightFormat("fp8"),
]
RANDOM = np.random.default_rng(0)


def constant(name: str, array: np.ndarray) -> ir.Value:
    return ir.val(name, const_value=ir.tensor(array, name=name))


def stored(weight: np.ndarray, form: WeightFormat, axis: int, prefix: str = "w") -> tuple[list[ir.Value], ir.Node]:
    """Initializers and the last node that decodes them."""
    parts = encode(weight, form, axis)
    names = ["data", "scale_code", "scale_factor"] if form.two_levels else ["data", "scale", "zero_point"]
    values = {name: constant(f"{prefix}_{name}", part) for name in names if (part := getattr(parts, name)) is not None}
    scale = values.get("scale")
    if form.two_levels:
        span = form.span(weight.shape[axis])
        scale = levels_node(values["scale_code"], values["scale_factor"], axis, span).outputs[0]
    node = decoding_node(form, values["data"], scale, values.get("zero_point"), axis, ir.DataType.FLOAT)
    node.outputs[0].name = prefix
    return list(values.values()), node


def linear_model(weight: np.ndarray, form: WeightFormat, transposed: bool = False) -> ir.Model:
    """x [T,K] times a stored weight."""
    values, node = stored(weight.T if transposed else weight, form, 0 if transposed else 1)
    x = ir.val("x", ir.DataType.FLOAT, ("T", weight.shape[1]))
    linear = make_node("Linear", {"x": x, "weight": node.outputs[0]}, LinearSpec(transposed=transposed))
    linear.outputs[0].name = "y"
    imports = {"": 24, "moec": 1}
    levels = node.inputs[1].producer() if len(node.inputs) > 1 else None
    nodes = [node, linear] if levels is None else [levels, node, linear]
    graph = ir.Graph([x], linear.outputs, nodes=nodes, initializers=values, opset_imports=imports, name="g")
    return ir.Model(graph, ir_version=11)


@pytest.mark.parametrize("K", [64, 80])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_the_interpreter_multiplies_by_the_decoded_weight(form: WeightFormat, transposed: bool, K: int) -> None:
    weight, x = RANDOM.normal(size=(6, K)).astype(np.float32), RANDOM.normal(size=(3, K)).astype(np.float32)
    model = linear_model(weight, form, transposed)
    shapes.infer(model)
    (weight_run,) = weight_runs(model.graph.node(-1).inputs[1])
    assert (weight_run.format, weight_run.first, weight_run.count) == (form, 0, 1)
    expected = decode(encode(weight, form), form)
    decoded = weight_run.decoded(0)
    np.testing.assert_array_equal(decoded.T if transposed else decoded, expected)
    np.testing.assert_allclose(run(model, {"x": x})["y"], x @ expected.T, rtol=1e-4, atol=1e-5)
    judged = run(model, {"x": x}, dtype=np.float64)["y"]
    np.testing.assert_allclose(judged, x.astype(float) @ expected.T.astype(float), rtol=1e-6, atol=1e-6)
    assert model.graph.outputs[0].shape == ir.Shape(("T", 6))


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_stored_weights_survive_clean_up_and_text(form: WeightFormat) -> None:
    model = linear_model(RANDOM.normal(size=(6, 64)).astype(np.float32), form)
    before = print_model(model)
    assert print_model(parse_model(before)) == before
    run_passes(model, parse(CLEAN_UP), Report(), verify_each=True)
    assert [node.op_type for node in model.graph] == [node.op_type for node in parse_model(before).graph]
    assert weight_runs(model.graph.node(-1).inputs[1])[0].format == form


def test_other_small_casts_are_still_folded() -> None:
    text = """<ir_version: 11, opset_import: ["" : 24]>
        g (float[T,4] x) => (float[T,4] y) <float16[4] b = {1,2,3,4}> { c = Cast <to = 1> (b) y = Add (x, c) }"""
    model = parse_model(text)
    run_passes(model, parse("fold-constants"), Report())
    assert [node.op_type for node in model.graph] == ["Add"]


def test_runs_of_experts_in_several_formats() -> None:
    """[8, 4, 64]: three experts in int4, one in float32, two in bfloat16 and two in int8."""
    weight = RANDOM.normal(size=(8, 4, 64)).astype(np.float32)
    forms = [WeightFormat("int4", 32), WeightFormat("float32"), WeightFormat("bfloat16"), WeightFormat("int8")]
    bounds = [0, 3, 4, 6, 8]
    parts: list[ir.Value] = []
    for index, form in enumerate(forms):
        piece = weight[bounds[index] : bounds[index + 1]]
        plain = form.name == "float32"
        parts.append(constant("plain", piece) if plain else stored(piece, form, 2, f"w{index}")[1].outputs[0])
    joined = ir.node("Concat", parts, {"axis": 0}).outputs[0]
    runs = weight_runs(joined)
    assert [(weight_run.first, weight_run.count, weight_run.format) for weight_run in runs] == [
        (start, stop - start, form) for start, stop, form in zip(bounds, bounds[1:], forms, strict=False)
    ]
    for weight_run in runs:
        for expert in range(weight_run.first, weight_run.first + weight_run.count):
            np.testing.assert_array_equal(
                weight_run.decoded(expert), decode(encode(weight[expert], weight_run.format), weight_run.format)
            )


def test_reading_one_expert_loads_no_other() -> None:
    weight, loaded = RANDOM.normal(size=(4, 6, 64)).astype(np.float32), []
    form = WeightFormat("int4", 32)

    def part(index: int, expert: int) -> np.ndarray:
        loaded.append(expert)
        actual = encode(weight[expert], form)[index]
        assert actual is not None
        return actual

    stacks = [
        ExpertStack(name, dtype, shape, lambda expert, index=index: part(index, expert))
        for index, (name, dtype, shape) in enumerate(
            [("d", ir.DataType.INT4, (4, 6, 64)), ("s", ir.DataType.FLOAT16, (4, 6, 2))]
        )
    ]
    data, scale = (ir.val(stack.name, const_value=stack) for stack in stacks)
    (weight_run,) = weight_runs(decoding_node(form, data, scale, None, 2, ir.DataType.FLOAT).outputs[0])
    assert not loaded
    np.testing.assert_array_equal(weight_run.decoded(2), decode(encode(weight[2], form), form))
    assert set(loaded) == {2}


def dequantize(
    data: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None, axis: int = 1, block: int = 32
) -> ir.Value:
    values = [constant("d", data), constant("s", scale)] + ([] if zero is None else [constant("z", zero)])
    return ir.node("DequantizeLinear", values, {"axis": axis, "block_size": block}, name="decode").outputs[0]


def nvfp4(factors: np.ndarray, span: int = 4, elements: Any = ml_dtypes.float4_e2m1fn) -> ir.Value:
    codes = constant("codes", np.ones((4, 4), ml_dtypes.float8_e4m3fn))
    scale = levels_node(codes, constant("factors", factors), 1, span).outputs[0]
    values = [constant("d", INT8.astype(elements)), scale]
    return ir.node("DequantizeLinear", values, {"axis": 1, "block_size": 16}).outputs[0]


INT8, SCALE = np.zeros((4, 64), np.int8), np.ones((4, 2), np.float32)
REFUSED = {
    "computed by Relu": lambda: ir.node("Relu", [constant("a", SCALE)]).outputs[0],
    "an input of the model": lambda: ir.val("x", ir.DataType.FLOAT, (4, 64)),
    "is INT8; expected a float": lambda: constant("d", INT8),
    "joins axis 1": lambda: ir.node("Concat", [constant("a", SCALE), constant("b", SCALE)], {"axis": 1}).outputs[0],
    "operand that is not constant": lambda: ir.node(
        "DequantizeLinear", [constant("d", INT8), ir.val("s")], {"axis": 1, "block_size": 32}
    ).outputs[0],
    "INT16 elements": lambda: dequantize(INT8.astype(np.int16), SCALE),
    "expected blocks along": lambda: dequantize(INT8, np.ones(4, np.float32), axis=0, block=0),
    "axis 0": lambda: dequantize(np.zeros((3, 4, 64), np.int8), np.ones((1, 4, 64), np.float32), axis=0),
    "UINT8 without zero points": lambda: dequantize(INT8.astype(np.uint8), SCALE),
    "INT8 with zero points": lambda: dequantize(INT8, SCALE, np.zeros((4, 2), np.int8)),
    "mxfp4 in groups of 16": lambda: dequantize(
        INT8.astype(ml_dtypes.float4_e2m1fn), np.ones((4, 4), ml_dtypes.float8_e8m0fnu), block=16
    ),
    "FLOAT8E4M3FN elements with FLOAT8E8M0 scales": lambda: dequantize(
        INT8.astype(ml_dtypes.float8_e4m3fn), np.ones((4, 1), ml_dtypes.float8_e8m0fnu)
    ),
    "scales of float8e4m3fn that are not multiplied": lambda: dequantize(
        INT8.astype(ml_dtypes.float4_e2m1fn), np.ones((4, 4), ml_dtypes.float8_e4m3fn), block=16
    ),
    "or by several factors": lambda: nvfp4(np.ones((4, 2), np.float32), span=2),
    "FLOAT8E4M3FN elements with FLOAT8E4M3FN scales": lambda: nvfp4(
        np.ones((4, 1), np.float32), elements=ml_dtypes.float8_e4m3fn
    ),
    "fp4 in groups of 64": lambda: dequantize(
        np.zeros((4, 128), ml_dtypes.float4_e2m1fn), np.ones((4, 2), np.float32), block=64
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_every_other_way_is_refused(message: str) -> None:
    value = REFUSED[message]()
    value.name = "the_weight"
    with pytest.raises(UnsupportedError, match=message) as caught:
        weight_runs(value)
    assert str(caught.value).startswith("weight the_weight: ")


def test_nodes_between_a_weight_and_its_product_decode_it_and_no_others() -> None:
    text = """<ir_version: 10, opset_import: ["" : 24, "moec" : 1]>
    g (float[n, 4] x) => (float[n, 3] y, float[4, 3] z) <float16[4, 3] w = {0,0,0,0,0,0,0,0,0,0,0,0}> {
        a = Cast <to = 1> (w)
        b = Cast <to = 1> (w)
        z = Relu (b)
        y = moec.Linear (x, a)
    }"""
    graph = parse_model(text).graph
    assert {node.outputs[0].name for node in decoding_nodes(graph)} == {"a"}


def test_a_chain_that_joins_itself_is_walked_once() -> None:
    """The chain has 2^60 paths from its first node to its last."""
    nodes = " ".join(f"v{n + 1} = Concat <axis = 0> (v{n}, v{n})" for n in range(60))
    text = f"""<ir_version: 10, opset_import: ["" : 24, "moec" : 1]>
    g (float[n, 4] x, float[k, 3] w) => (float[n, 3] y) {{ v0 = Relu (w) {nodes} y = moec.Linear (x, v60) }}"""
    assert len(decoding_nodes(parse_model(text).graph)) == 60


def test_a_block_of_all_inputs_is_per_channel() -> None:
    (weight_run,) = weight_runs(dequantize(INT8, np.ones((4, 1), np.float32), axis=-1, block=64))
    assert weight_run.format == WeightFormat("int8") and isinstance(weight_run, WeightRun)

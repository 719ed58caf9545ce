"""The operators com.microsoft.MoE and QMoE against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from moec.frontend.onnx.importer import import_model
from moec.ir import interpreter
from moec.ir.dialect import FORMULATION_KEY, ExpertsSpec, RouteSpec, spec_of
from moec.ir.weights.stacks import ExpertStack
from moec.passes import pipeline

from .conftest import HEADER

E, D, F, K = 4, 64, 32, 2


def specs(model: ir.Model) -> tuple[RouteSpec, ExpertsSpec]:
    route, experts = (node for node in model.graph if node.domain == "moec")
    return spec_of(route, RouteSpec), spec_of(experts, ExpertsSpec)


def moe(attributes: str, arguments: str, shape: str = "T,64") -> str:
    node = f"y = com.microsoft.MoE <k = {K}, {attributes}> (x, logits, {arguments})"
    return f"(float[{shape}] x, float[N,{E}] logits) => (float[{shape}] y) {{ {node} }}"


def weights(normal, width: int) -> dict[str, np.ndarray]:
    shapes = {"fc1": (E, width, D), "b1": (E, width), "fc2": (E, D, F), "b2": (E, D), "fc3": (E, F, D)}
    return {name: normal(*shape) / 8 for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("attributes", "width", "spec"),
    [
        ('activation_type = "relu"', F, ExpertsSpec("relu", "none")),
        ('activation_type = "gelu"', F, ExpertsSpec("gelu_tanh", "none")),
        ('activation_type = "silu"', F, ExpertsSpec("silu", "none")),
        ('activation_type = "swiglu", swiglu_fusion = 1', 2 * F, ExpertsSpec("silu", "interleaved")),
        ('activation_type = "swiglu", swiglu_fusion = 1, swiglu_limit = 0.5', 2 * F,
         ExpertsSpec("silu", "interleaved", limit=0.5)),
    ],
)  # fmt: skip
def test_activations(decompose, normal, attributes, width, spec):
    constants = weights(normal, width)
    inputs = {"x": normal(5, D), "logits": normal(5, E)}
    model = decompose(moe(attributes, "fc1, b1, fc2, b2"), inputs, constants)
    assert specs(model) == (RouteSpec(k=K), spec)
    experts = next(node for node in model.graph if node.op_type == "Experts")
    assert experts.metadata_props[FORMULATION_KEY] == "com.microsoft.MoE"


def test_renormalised_weights_and_three_axes(decompose, normal):
    text = moe('activation_type = "relu", normalize_routing_weights = 1', 'fc1, "", fc2', "B,S,64")
    model = decompose(text, {"x": normal(2, 3, D), "logits": normal(6, E)}, weights(normal, F))
    assert specs(model)[0] == RouteSpec(k=K, normalize=True)


def quantized(bits: int, width: int, blocks: int, zero_points: bool, biases: bool) -> dict[str, np.ndarray]:
    """Packed weights, with scales per row (no blocks) or per block, and any further requested tensors."""
    generator = np.random.default_rng(bits + width)
    constants = {}
    for name, out, length in (("1", width, D), ("2", D, F)):
        count = length // blocks if blocks else 1
        scales = (E, out, count) if blocks else (E, out)
        zeros = (E, out, -(-count * bits // 8)) if blocks else (E, -(-out * bits // 8))
        constants[f"w{name}"] = generator.integers(0, 256, (E, out, length * bits // 8), dtype=np.uint8)
        constants[f"s{name}"] = (generator.uniform(0.5, 1, scales) / 2 ** (bits + 2)).astype(np.float32)
        if zero_points:
            constants[f"z{name}"] = generator.integers(0, 256, zeros, dtype=np.uint8)
        if biases:
            constants[f"b{name}"] = generator.normal(size=(E, out)).astype(np.float32) / 4
    return constants


def qmoe(attributes: str, constants: dict[str, np.ndarray]) -> str:
    slots = ["w1", "s1", "b1", "w2", "s2", "b2", "", "", "", "z1", "z2"]
    arguments = ", ".join(slot if slot in constants else '""' for slot in slots)
    node = f"y = com.microsoft.QMoE <k = {K}, normalize_routing_weights = 1, {attributes}> (x, logits, {arguments})"
    return f"(float[T,{D}] x, float[T,{E}] logits) => (float[T,{D}] y) {{ {node} }}"


GATED = 'activation_type = "swiglu", swiglu_fusion = 1, activation_alpha = 1.702, activation_beta = 1.0'


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("block_size", [0, 16, 32])
@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize(("activation", "width"), [('activation_type = "silu"', F), (GATED, 2 * F)])
def test_quantized(decompose, normal, bits, block_size, zero_points, activation, width):
    constants = quantized(bits, width, block_size, zero_points, biases=activation == GATED)
    attributes = f"{activation}, expert_weight_bits = {bits}, block_size = {block_size}"
    if not block_size:
        attributes = attributes.rpartition(", ")[0]
    inputs = {"x": normal(9, D), "logits": normal(9, E)}
    model = decompose(qmoe(attributes, constants), inputs, constants, tolerance=1e-5)
    stored = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    expected = ir.DataType[f"{'U' if zero_points else ''}INT{max(bits, 4)}"]
    assert [node.inputs[0].dtype for node in stored] == [expected, expected]
    assert [node.attributes.get_int("axis") for node in stored] == [2, 2]
    assert [node.attributes.get_int("block_size") for node in stored] == [block_size or D, block_size or F]
    assert all(isinstance(value.const_value, ExpertStack) for node in stored for value in node.inputs)
    spec = specs(model)[1]
    is_integer = bits == 8 and block_size > 0
    assert (spec.arithmetic, spec.activation_group) == (("int8", block_size) if is_integer else ("float32", 0))


def test_accuracy_level_of_int4_in_blocks(decompose, normal):
    constants = quantized(4, 2 * F, 32, False, True)
    inputs = {"x": normal(9, D), "logits": normal(9, E)}
    text = qmoe(f"{GATED}, expert_weight_bits = 4, block_size = 32, accuracy_level = 4", constants)
    model = decompose(text, inputs, constants, tolerance=1e-5)
    assert specs(model)[1].arithmetic == "int8"


@pytest.mark.parametrize("normalize", [0, 1])
def test_weights_of_a_router_of_their_own(decompose, normal, normalize):
    """The logits choose, whatever they are worth; weights that are not positive, of one token all of them, count as
    nothing."""
    constants = quantized(4, 2 * F, 32, False, True)
    text = qmoe(f"{GATED}, expert_weight_bits = 4, block_size = 32", constants)
    text = text.replace("normalize_routing_weights = 1", f"normalize_routing_weights = {normalize}")
    text = text.replace(f"float[T,{E}] logits)", f"float[T,{E}] logits, float[T,{E}] shares)")
    text = text.replace(") }", ', "", shares) }')
    shares = np.abs(normal(9, E))
    shares[3], shares[4] = 0, -1
    decompose(text, {"x": normal(9, D), "logits": normal(9, E), "shares": shares}, constants, tolerance=1e-5)


def in_turns(rows: np.ndarray) -> np.ndarray:
    """Rows of gates and then of up projections, as gates and up projections in turns."""
    return np.stack(np.split(rows, 2, axis=1), axis=2).reshape(rows.shape)


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("has_shares", [False, True])
def test_gates_before_up_projections_and_logits_of_three_axes(run_onnxruntime, normal, zero_points, has_shares):
    """onnxruntime's CPU kernel refuses both, whose meaning its schema gives: it gets the same weights in turns, and
    logits with a row for each token."""
    constants = quantized(4, 2 * F, 16, zero_points, biases=True)
    given = {"x": normal(2, 3, D), "logits": normal(2, 3, E)} | (
        {"shares": np.abs(normal(2, 3, E))} if has_shares else {}
    )
    attributes = f"{GATED}, expert_weight_bits = 4, block_size = 16"
    text = qmoe(attributes, constants).replace("[T,", "[B,T,")
    if has_shares:
        text = text.replace(") => (", f", float[B,T,{E}] shares) => (").replace(") }", ', "", shares) }')
    flat = {name: value.reshape(6, -1) for name, value in given.items()}
    turned = {name: in_turns(value) if name.endswith("1") else value for name, value in constants.items()}
    (expected,) = run_onnxruntime(with_constants(text.replace("[B,T,", "[T,"), turned), flat).values()
    model = import_model(with_constants(text.replace("swiglu_fusion = 1", "swiglu_fusion = 2"), constants))
    pipeline.run(model, pipeline.parse("infer-shapes,decompose-contrib,infer-shapes"), verify_each=True)
    experts = next(node for node in model.graph if node.op_type == "Experts")
    assert spec_of(experts, ExpertsSpec).gate_layout == "gate_up"
    np.testing.assert_allclose(interpreter.run(model, given)["y"].reshape(6, -1), expected, rtol=0, atol=1e-5)


def with_constants(text: str, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(HEADER + text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    return proto

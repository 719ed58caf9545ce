"""Layers with random weights for the tests of passes that store weights in other formats."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moec.ir import interpreter
from moec.ir.dialect import EXPERT_WEIGHTS, ExpertsSpec, RouteSpec, attributes_of, make_node
from moec.ir.text import parse_model
from moec.ir.weight_operands import weight_inputs
from moec.ir.weights.stored import weight_runs
from moec.passes import pipeline
from moec.passes.framework.base import Report

E, D, F = 6, 128, 64


def expert_arrays(spec: ExpertsSpec, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights [E, out, in], or transposed, and biases."""
    random = np.random.default_rng(seed)
    rows = 2 * F if spec.gated and spec.gate_layout != "separate" else F
    shapes = {"up": (E, rows, D), "down": (E, D, F), "gate": (E, F, D)}
    arrays = {name: random.normal(size=shape) / np.sqrt(shape[2]) for name, shape in shapes.items()}
    arrays |= {"up_bias": random.normal(size=(E, rows)), "down_bias": random.normal(size=(E, D))}
    if spec.gate_layout != "separate":
        del arrays["gate"]
    for name in arrays:
        if spec.down_transposed if name == "down" else spec.up_transposed and not name.endswith("bias"):
            arrays[name] = np.swapaxes(arrays[name], 1, 2).copy()
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def experts_model(spec: ExpertsSpec, arrays: dict[str, np.ndarray] | None = None) -> ir.Model:
    """x [T,D], logits [T,E] → y [T,D]: one moec.MoE with k = 2, named ``layer``."""
    arrays = arrays or expert_arrays(spec)
    constants = {name: ir.val(name, const_value=ir.tensor(array, name=name)) for name, array in arrays.items()}
    x, logits = ir.val("x", ir.DataType.FLOAT, ("T", D)), ir.val("logits", ir.DataType.FLOAT, ("T", E))
    weights = {name: constants.get(name) for name in EXPERT_WEIGHTS}
    node = make_node("MoE", {"x": x, "logits": logits, **weights}, RouteSpec(k=2), spec, name="layer")
    node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = "y", ir.DataType.FLOAT, ir.Shape(("T", D))
    imports = {"": 24, "moec": 1}
    constants_used = list(constants.values())
    graph = ir.Graph([x, logits], node.outputs, nodes=[node], initializers=constants_used, opset_imports=imports)
    graph.name = "layer"
    return ir.Model(graph, ir_version=11)


def routed_model(
    spec: ExpertsSpec, routing: RouteSpec | None = None, arrays: dict[str, np.ndarray] | None = None, gap: int = -1
) -> ir.Model:
    """x [T,D] → y [T,D]: the layer of :func:`experts_model` with other ``routing``, whose logits are a product of x.
    Expert ``gap`` is never chosen."""
    model, random = experts_model(spec, arrays), np.random.default_rng(4)
    (node,), count = model.graph, E + spec.identity_experts
    matrix, bias = random.normal(size=(D, count)) / np.sqrt(D), random.normal(size=count) / 4
    if gap >= 0:
        bias[gap] = -20
    constants = {"matrix": matrix, "bias": bias}
    for name, array in constants.items():
        model.graph.register_initializer(ir.val(name, const_value=ir.tensor(array.astype(np.float32), name=name)))
    x, old = model.graph.inputs
    product = ir.node("Gemm", [x, *(model.graph.initializers[name] for name in constants)])
    product.outputs[0].name, product.outputs[0].type = "logits", old.type
    product.outputs[0].shape = ir.Shape(("T", count))
    model.graph.insert_before(node, product)
    node.replace_input_with(1, product.outputs[0])
    del model.graph.inputs[1]
    old.name = "unused"
    if routing is not None:
        node.attributes.clear()
        for name, value in attributes_of(routing, spec).items():
            node.attributes[name] = ir.convenience.convert_attribute(name, value)
    return model


def linear_model(body: str, constants: dict[str, np.ndarray], outputs: str = "float[T,64] y") -> ir.Model:
    """A graph over x [T,128] from text; ``constants`` are its initializers."""
    declared = ", ".join(
        f"{'float' if array.dtype == np.float32 else 'float16'}{list(array.shape)} {name} = "
        f'["location": "sha256:0000000000000000"]'
        for name, array in constants.items()
    ).replace("[ ", "[")
    header = '<ir_version: 11, opset_import: ["" : 24, "moec" : 1]>'
    model = parse_model(f"{header}\ng (float[T,{D}] x) => ({outputs})\n<{declared}>\n{{ {body} }}")
    for name, array in constants.items():
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return model


def apply(model: ir.Model, passes: str) -> Report:
    report = Report()
    pipeline.run(model, pipeline.parse(passes), report, verify_each=True)
    return report


def last_moec_node(model: ir.Model) -> ir.Node:
    return [node for node in model.graph if node.domain == "moec"][-1]


def formats_of(model: ir.Model) -> dict[str, list[str]]:
    """The formats of the runs of every weight of the last moec node."""
    weights = weight_inputs(last_moec_node(model))
    return {name: [str(run.format) for run in weight_runs(value)] for name, value in weights.items()}


def relative_error(model: ir.Model, before: ir.Model, T: int = 16) -> float:
    """The Frobenius norm of the change by the passes on random inputs, relative to the output."""
    random = np.random.default_rng(1)
    inputs = {
        value.name: random.normal(size=(T, value.shape[1])).astype(np.float32)
        for value in model.graph.inputs
        if value.shape is not None and value.name is not None
    }
    actual, expected = (interpreter.run(one, inputs)["y"] for one in (model, before))
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected)) if T else 0.0

"""Weights in few bits and in float8 that a model file brings along, with scales as quantisers write them: imported,
compiled and compared with the interpreter of the file. Float8 has NaN codes, which stay NaN."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import moec
from moec.ir import interpreter
from moec.ir.dialect import ExpertsSpec
from moec.ir.weight_operands import stored_weights
from moec.ir.weights.stored import constant
from moec.passes import pipeline
from moec.targets.cuda import nvcc

from ..passes.raising.conftest import BATCHED, INTEGERS, ROUTER
from ..products import thinned
from .node_models import node_model

D, F, E, K = 64, 96, 4, 2
TYPES = {
    "int2": (onnx.TensorProto.INT2, -2, 1),
    "int3": (onnx.TensorProto.INT4, -4, 3),
    "uint4": (onnx.TensorProto.UINT4, 0, 15),
    "fp8": (onnx.TensorProto.FLOAT8E4M3FN, None, None),
}
NAN_CODES = (0x7F, 0xFF)
LINEARS = {"y = MatMul (x, w)": (D, F), "y = Gemm <transB = 1> (x, w)": (F, D)}
SCALES = ("per tensor", "per output", "in groups")


def numbers(kind: str, shape: tuple[int, ...], nan: bool = False) -> ir.Tensor:
    dtype, low, high = TYPES[kind]
    random = np.random.default_rng(len(shape))
    wide = random.standard_normal(shape) if low is None else random.integers(low, high + 1, shape)
    data = wide.astype(ir.DataType(dtype).numpy())
    if nan:
        data.view(np.uint8).reshape(-1, *shape[-2:])[-1, (3, 7), (5, 2)] = NAN_CODES
    return ir.tensor(data)


def decoding(name: str, kind: str, shape: tuple[int, ...], axis: int, scales: str, nan: bool = False):
    """The node that makes ``name`` of constants, and these. ``axis`` is that of the inputs."""
    sizes, attributes = list(shape), {}
    if scales == "in groups":
        sizes[axis], attributes = shape[axis] // 32, {"axis": axis, "block_size": 32}
    elif scales == "per tensor":
        sizes = []
    else:
        along = axis if scales == "per input" else len(shape) * 2 - 3 - axis
        sizes, attributes = [shape[along]], {"axis": along}
    constants = {f"{name}_data": numbers(kind, shape, nan)}
    constants[f"{name}_scale"] = ir.tensor(np.random.default_rng(1).uniform(0.01, 0.1, sizes).astype(np.float32))
    if kind.startswith("u"):
        constants[f"{name}_zero"] = ir.tensor(np.full(sizes, 7).astype(ir.DataType(TYPES[kind][0]).numpy()))
    return onnx.helper.make_node("DequantizeLinear", list(constants), [name], **attributes), constants


def model_of(text: str, *decoded, **constants: np.ndarray) -> onnx.ModelProto:
    """x [T,D] to y by ``text``, with weights that the nodes ``decoded`` make."""
    model = onnx.parser.parse_model(f'<ir_version: 13, opset_import: ["" : 25]> g (float[T,{D}] x) => (y) {{ {text} }}')
    tensors = {name: ir.tensor(array) for name, array in constants.items()}
    for node, stored in reversed(decoded):
        model.graph.node.insert(0, node)
        tensors |= stored
    for name, tensor in tensors.items():
        tensor.name = name
        model.graph.initializer.append(ir.serde.serialize_tensor(tensor))
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["T", None]))
    onnx.checker.check_model(model)
    return model


def experts_model(kind: str, scales: str, nan: bool = False) -> onnx.ModelProto:
    """A layer whose matrices are [E,out,in], gathered per token."""
    sizes = {"k": [K], "rows": [-1, D], "per_token": [-1, K, D], "repeat": [1, K, 1]}
    integers = {name: np.array(sizes.get(name, value)) for name, value in INTEGERS.items() if name in BATCHED + ROUTER}
    router = np.random.default_rng(2).standard_normal((D, E)).astype(np.float32)
    up = decoding("up", kind, (E, 2 * F, D), 2, scales, nan)
    return model_of(ROUTER + BATCHED, up, decoding("down", kind, (E, D, F), 2, scales), router=router, **integers)


def compare(model: onnx.ModelProto, nan: bool = False, target: str = "cpu") -> moec.CompiledModel:
    """The compiled model, whose results are those of the interpreter; ``nan``: whether some are NaN."""
    compiled = moec.compile(model, target=target, emulate=target == "cuda")
    missing = 0
    for tokens in (0, 1, 9):
        feeds = {"x": np.random.default_rng(tokens).standard_normal((tokens, D)).astype(np.float32)}
        expected = interpreter.run(ir.from_proto(model), feeds, dtype=np.float64)["y"]
        missing += np.isnan(expected).sum()
        np.testing.assert_allclose(compiled.run(feeds)["y"], expected, rtol=0, atol=2e-5, equal_nan=True)
    assert (missing > 0) == nan
    return compiled


def types_of(compiled: moec.CompiledModel, weight: str) -> set[str]:
    """In which types the program keeps what was the weight."""
    return {one["dtype"] for one in compiled.describe()["weights"] if one["name"].startswith(weight)}


@pytest.mark.parametrize("product", LINEARS)
@pytest.mark.parametrize("scales", SCALES)
@thinned("kind", TYPES, 2)
def test_linears_stay_as_they_are_stored(kind, scales, product):
    shape = LINEARS[product]
    compiled = compare(model_of(product, decoding("w", kind, shape, shape.index(D), scales)))
    assert "uint8" in types_of(compiled, "w") and not compiled.describe()["remarks"]


@pytest.mark.parametrize("product", LINEARS)
@thinned("kind", TYPES, 2)
def test_sibling_with_a_scale_per_input_becomes_floats(kind, product):
    shape = LINEARS[product]
    compiled = compare(model_of(product, decoding("w", kind, shape, shape.index(D), "per input")))
    assert types_of(compiled, "w") == {"float32"}
    (remark,) = compiled.describe()["remarks"]
    assert "takes its weight as floats" in remark["message"]


@thinned("kind", TYPES, 4)
def test_experts_stay_as_they_are_stored(kind):
    compiled = compare(experts_model(kind, "in groups"))
    assert all("uint8" in types_of(compiled, name) for name in ("up", "down"))


@thinned("kind", TYPES, 2)
def test_experts_with_one_scale_for_all_become_floats(kind):
    compiled = compare(experts_model(kind, "per tensor"))
    assert compiled.describe()["moe_blocks"] and "uint8" not in {
        weight["dtype"] for weight in compiled.describe()["weights"]
    }


def test_nothing_else_takes_them():
    """A matrix that no product multiplies by."""
    node = decoding("w", "int2", (1, D), 1, "per tensor")
    assert types_of(compare(model_of("y = Add (x, w)", node)), "w") == {"float32"}


MODELS = {
    "linear": lambda: model_of("y = MatMul (x, w)", decoding("w", "fp8", (D, F), 0, "per output", nan=True)),
    "floats": lambda: model_of("y = MatMul (x, w)", decoding("w", "fp8", (D, F), 0, "per input", nan=True)),
    "experts that are not recognised": lambda: experts_model("fp8", "in groups", nan=True),
}


@pytest.mark.parametrize("name", MODELS)
def test_nan_codes_stay_nan(name):
    compare(MODELS[name](), nan=True)


@thinned("name", MODELS, 3)
def test_nan_codes_stay_nan_on_a_gpu(name, monkeypatch):
    monkeypatch.setattr(nvcc, "find_tool", lambda _name: None)
    compare(MODELS[name](), nan=True, target="cuda")


def layer_with_nan_codes(group: int) -> ir.Model:
    """An experts layer of relu units, the second matrix of whose first expert has NaN codes."""
    random, x = np.random.default_rng(3), np.zeros((1, D), np.float32)
    weights = {"up": random.standard_normal((E, F, D)), "down": random.standard_normal((E, D, F))}
    weights = {name: array.astype(np.float32) / 8 for name, array in weights.items()}
    feeds = {"x": x, "weights": np.ones((1, K), np.float32), "experts": np.zeros((1, K), np.int32)}
    model = node_model("Experts", feeds, weights, ExpertsSpec("relu", "none"))
    pipeline.run(model, pipeline.parse(f"quantize-experts{{format=fp8,group={group}}}"))
    data = stored_weights(model.graph.node(-1))["down"].runs[0].data
    codes = constant(data).numpy().copy()
    codes.view(np.uint8)[0, (3, 9), (5, 7)] = NAN_CODES
    data.const_value = ir.tensor(codes)
    return model


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@thinned("group", [0, 32], 2)
def test_nan_codes_of_experts_reach_those_who_choose_them(target, group, monkeypatch):
    """Also where relu makes zeros of all tokens: zero times NaN is NaN."""
    monkeypatch.setattr(nvcc, "find_tool", lambda _name: None)
    model = layer_with_nan_codes(group)
    compiled = moec.compile(model, target=target, passes="", emulate=target == "cuda")
    for tokens, factor in ((1, 0), (2, 1), (40, 1)):
        x = factor * np.random.default_rng(4).standard_normal((tokens, D)).astype(np.float32)
        experts = np.arange(tokens * K, dtype=np.int32).reshape(tokens, K) % E
        y = compiled.run({"x": x, "weights": np.ones((tokens, K), np.float32), "experts": experts})["y"]
        expected = np.zeros(y.shape, bool)
        expected[np.ix_((experts == 0).any(axis=1), (3, 9))] = True
        np.testing.assert_array_equal(np.isnan(y), expected)


def test_other_types_on_a_gpu(monkeypatch):
    monkeypatch.setattr(nvcc, "find_tool", lambda _name: None)
    compare(model_of("y = MatMul (x, w)", decoding("w", "int3", (D, F), 0, "per output")), target="cuda")

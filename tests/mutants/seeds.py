"""The well-formed models that mutants are made of: small ones of this file, and those of ONNX's own node tests."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import numpy as np
import onnx
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Files = dict[str, bytes]
"""A model as files of one folder; the model itself is ``MODEL``."""
MODEL = "model.onnx"

Make = Callable[[], "ModelProto | Files"]
_SEEDS: list[Make] = []
_FLOAT, _INT64, _BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
_node = helper.make_node


def _seed(make: Make) -> Make:
    _SEEDS.append(make)
    return make


@functools.cache
def own_seeds() -> dict[str, Files]:
    """The models of this file by name."""
    return {make.__name__: _files(make()) for make in _SEEDS}


@functools.cache
def node_tests() -> dict[str, Files]:
    """ONNX's node tests, small ones, which the onnx package makes in some seconds."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = {case.name: case.model for case in collect_testcases(None) if case.model is not None}
    for model in models.values():
        for opset in model.opset_import:
            opset.version = min(opset.version, 24) if opset.domain == "" else opset.version
    return {name: _files(model) for name, model in sorted(models.items()) if model.ByteSize() < 1 << 14}


def _files(seed: ModelProto | Files) -> Files:
    return seed if isinstance(seed, dict) else {MODEL: seed.SerializeToString()}


def _numbers(name: str, *shape: int) -> TensorProto:
    values = np.random.default_rng(len(name) + sum(shape)).standard_normal(shape)
    return numpy_helper.from_array(values.astype(np.float32), name)


def _integers(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def _scalar(name: str, value: int) -> TensorProto:
    return numpy_helper.from_array(np.array(value, np.int64), name)


def _input(name: str, *shape: int | str, kind: int = _FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _model(
    nodes: list[NodeProto],
    inputs: list[ValueInfoProto],
    outputs: list[str],
    constants: list[TensorProto] | None = None,
    opset: int = 18,
    functions: list[FunctionProto] | None = None,
    domains: tuple[str, ...] = (),
    kinds: dict[str, int] | None = None,
) -> ModelProto:
    results = [helper.make_tensor_value_info(name, (kinds or {}).get(name, _FLOAT), None) for name in outputs]
    graph = helper.make_graph(nodes, "seed", inputs, results, constants or [])
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9, functions=functions or [])


@_seed
def elementwise() -> ModelProto:
    nodes = [
        _node("Mul", ["x", "scale"], ["a"]),
        _node("Add", ["a", "bias"], ["b"]),
        _node("Clip", ["b", "low", "high"], ["c"]),
        _node("Sigmoid", ["c"], ["d"]),
        _node("Where", ["mask", "c", "d"], ["e"]),
        _node("Pow", ["e", "two"], ["y"]),
    ]
    constants = [_numbers("scale", 4), _numbers("bias", 3, 1)]
    constants += [
        numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("low", -1), ("high", 2), ("two", 2))
    ]
    return _model(nodes, [_input("x", "T", 3, 4), _input("mask", "T", 3, 4, kind=_BOOL)], ["y"], constants)


@_seed
def dense_layers() -> ModelProto:
    nodes = [
        _node("Gemm", ["x", "up", "bias"], ["a"], transB=1, alpha=0.5),
        _node("Erf", ["a"], ["b"]),
        _node("MatMul", ["b", "down"], ["c"]),
        _node("LayerNormalization", ["c", "gain", "shift"], ["d"], axis=-1, epsilon=1e-5),
        _node("Softmax", ["d"], ["y"], axis=-1),
    ]
    constants = [_numbers("up", 8, 4), _numbers("bias", 8), _numbers("down", 8, 4), _numbers("gain", 4)]
    return _model(nodes, [_input("x", "T", 4)], ["y"], [*constants, _numbers("shift", 4)], opset=17)


@_seed
def shape_arithmetic() -> ModelProto:
    nodes = [
        _node("Shape", ["x"], ["s"]),
        _node("Gather", ["s", "zero"], ["t"], axis=0),
        _node("Unsqueeze", ["t", "axes"], ["u"]),
        _node("Concat", ["u", "minus"], ["target"], axis=0),
        _node("Reshape", ["x", "target"], ["r"]),
        _node("Concat", ["u", "twelve"], ["wide"], axis=0),
        _node("Expand", ["bias", "wide"], ["e"]),
        _node("Add", ["r", "e"], ["a"]),
        _node("Slice", ["a", "starts", "ends", "one", "steps"], ["b"]),
        _node("Transpose", ["b"], ["y"], perm=[1, 0]),
    ]
    constants = [_scalar("zero", 0), _integers("axes", 0), _integers("minus", -1), _integers("twelve", 12)]
    constants += [_numbers("bias", 12), _integers("starts", 1), _integers("ends", 9), _integers("one", 1)]
    return _model(nodes, [_input("x", "T", 3, 4)], ["y"], [*constants, _integers("steps", 2)])


@_seed
def indexing() -> ModelProto:
    nodes = [
        _node("Gather", ["table", "ids"], ["a"], axis=0),
        _node("GatherND", ["a", "pairs"], ["b"], batch_dims=0),
        _node("TopK", ["a", "k"], ["values", "where"], axis=-1, largest=1, sorted=1),
        _node("GatherElements", ["a", "where"], ["c"], axis=1),
        _node("ScatterElements", ["a", "where", "values"], ["d"], axis=1),
        _node("ScatterND", ["d", "pairs", "b"], ["y"]),
        _node("Add", ["c", "values"], ["z"]),
    ]
    constants = [_numbers("table", 7, 5), numpy_helper.from_array(np.array([[0], [1]], np.int64), "pairs")]
    return _model(nodes, [_input("ids", 3, kind=_INT64)], ["y", "z"], [*constants, _integers("k", 2)])


@_seed
def reductions() -> ModelProto:
    nodes = [
        _node("ReduceMax", ["x", "last"], ["a"], keepdims=1),
        _node("Sub", ["x", "a"], ["b"]),
        _node("Exp", ["b"], ["c"]),
        _node("ReduceSum", ["c", "last"], ["d"], keepdims=1),
        _node("Div", ["c", "d"], ["e"]),
        _node("ReduceMean", ["e", "first"], ["f"], keepdims=0),
        _node("CumSum", ["f", "axis"], ["g"], exclusive=1, reverse=1),
        _node("ArgMax", ["g"], ["h"], axis=-1, keepdims=0),
        _node("Cast", ["h"], ["y"], to=_FLOAT),
    ]
    constants = [_integers("last", -1), _integers("first", 0), _scalar("axis", 1)]
    return _model(nodes, [_input("x", "T", 3, 4)], ["y", "g"], constants)


@_seed
def old_opset() -> ModelProto:
    nodes = [
        _node("Squeeze", ["x"], ["a"], axes=[1]),
        _node("Pad", ["a", "pads"], ["b"], mode="constant"),
        _node("Split", ["b"], ["c", "d"], axis=1, split=[2, 4]),
        _node("ReduceSum", ["d"], ["e"], axes=[1], keepdims=1),
        _node("Mul", ["c", "e"], ["f"]),
        _node("Softmax", ["f"], ["g"], axis=1),
        _node("Dropout", ["g"], ["y"], ratio=0.5),
    ]
    return _model(nodes, [_input("x", "T", 1, 4)], ["y"], [_integers("pads", 0, 1, 0, 1)], opset=11)


@_seed
def tiling() -> ModelProto:
    nodes = [
        _node("Tile", ["x", "repeats"], ["a"]),
        _node("Range", ["zero", "limit", "step"], ["b"]),
        _node("OneHot", ["b", "depth", "pair"], ["c"], axis=-1),
        _node("ConstantOfShape", ["size"], ["d"], value=helper.make_tensor("v", _FLOAT, [1], [0.5])),
        _node("Trilu", ["d"], ["e"], upper=0),
        _node("MatMul", ["c", "e"], ["f"]),
        _node("Add", ["a", "f"], ["y"]),
    ]
    constants = [_integers("repeats", 2, 2), _scalar("zero", 0), _scalar("limit", 6), _scalar("step", 1)]
    constants += [_scalar("depth", 6), numpy_helper.from_array(np.array([0, 1], np.float32), "pair")]
    return _model(nodes, [_input("x", 3, 3)], ["y"], [*constants, _integers("size", 6, 6)])


@_seed
def convolution() -> ModelProto:
    nodes = [
        _node("Conv", ["x", "kernel", "bias"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2], group=1),
        _node("BatchNormalization", ["a", "gain", "shift", "mean", "variance"], ["b"], epsilon=1e-5),
        _node("Relu", ["b"], ["c"]),
        _node("MaxPool", ["c"], ["d"], kernel_shape=[2, 2], strides=[1, 1]),
        _node("GlobalAveragePool", ["d"], ["e"]),
        _node("Flatten", ["e"], ["y"], axis=1),
    ]
    constants = [_numbers("kernel", 4, 2, 3, 3), *(_numbers(name, 4) for name in ("bias", "gain", "shift", "mean"))]
    variance = numpy_helper.from_array(np.ones(4, np.float32), "variance")
    return _model(nodes, [_input("x", "N", 2, 8, 8)], ["y"], [*constants, variance])


@_seed
def local_functions() -> ModelProto:
    inner = helper.make_function(
        "own", "Half", ["a"], ["b"],
        [_node("Constant", [], ["c"], value_float=0.5), _node("Mul", ["a", "c"], ["b"])],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    outer = helper.make_function(
        "own", "Quarter", ["a"], ["c"],
        [_node("Half", ["a"], ["b"], domain="own"), _node("Half", ["b"], ["c"], domain="own")],
        [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)],
    )  # fmt: skip
    nodes = [_node("Quarter", ["x"], ["a"], domain="own"), _node("Neg", ["a"], ["y"])]
    return _model(nodes, [_input("x", "T", 3)], ["y"], functions=[outer, inner], domains=("own",))


@_seed
def attribute_functions() -> ModelProto:
    body = _node("LeakyRelu", ["a"], ["b"])
    body.attribute.append(AttributeProto(name="alpha", ref_attr_name="slope", type=AttributeProto.FLOAT))
    function = helper.make_function("own", "Leak", ["a"], ["b"], [body], [helper.make_opsetid("", 18)], ["slope"])
    nodes = [_node("Leak", ["x"], ["y"], domain="own", slope=0.25)]
    return _model(nodes, [_input("x", "T", 3)], ["y"], functions=[function], domains=("own",))


@_seed
def branches() -> ModelProto:
    def branch(op_type: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(f"{op_type}_y", _FLOAT, None)
        return helper.make_graph([_node(op_type, ["x"], [f"{op_type}_y"])], op_type, [], [output])

    nodes = [
        _node("If", ["yes"], ["a"], then_branch=branch("Relu"), else_branch=branch("Neg")),
        _node("Add", ["a", "x"], ["y"]),
    ]
    return _model(nodes, [_input("x", "T", 3)], ["y"], [numpy_helper.from_array(np.array(True), "yes")])


@_seed
def loop() -> ModelProto:
    body = helper.make_graph(
        [_node("Identity", ["go"], ["go_on"]), _node("Add", ["state", "x"], ["next"])],
        "body",
        [_input("i", kind=_INT64), _input("go", kind=_BOOL), _input("state", 2, 3)],
        [_input("go_on", kind=_BOOL), _input("next", 2, 3)],
    )
    nodes = [_node("Loop", ["trips", "yes", "x"], ["y"], body=body)]
    return _model(
        nodes, [_input("x", 2, 3)], ["y"], [_scalar("trips", 3), numpy_helper.from_array(np.array(True), "yes")]
    )


@_seed
def external_weights() -> Files:
    weights = {"w": np.eye(4, dtype=np.float32), "b": np.arange(4, dtype=np.float32)}
    tensors, data = [], b""
    for name, array in weights.items():
        tensor = TensorProto(name=name, data_type=_FLOAT, dims=array.shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "data.bin"), ("offset", str(len(data))), ("length", str(array.nbytes))):
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
        data += array.tobytes()
    nodes = [_node("MatMul", ["x", "w"], ["a"]), _node("Add", ["a", "b"], ["y"])]
    return {MODEL: _model(nodes, [_input("x", "T", 4)], ["y"], tensors).SerializeToString(), "data.bin": data}


@_seed
def experts() -> ModelProto:
    """Three experts in one batched product, weighted by a router."""
    nodes = [
        _node("MatMul", ["x", "router"], ["logits"]),
        _node("Softmax", ["logits"], ["scores"], axis=-1),
        _node("TopK", ["scores", "k"], ["best", "chosen"], axis=-1),
        _node("Gather", ["up", "chosen"], ["w"], axis=0),
        _node("Unsqueeze", ["x", "axes"], ["rows"]),
        _node("MatMul", ["rows", "w"], ["h"]),
        _node("Relu", ["h"], ["r"]),
        _node("Gather", ["down", "chosen"], ["v"], axis=0),
        _node("MatMul", ["r", "v"], ["o"]),
        _node("Squeeze", ["o", "two"], ["p"]),
        _node("Unsqueeze", ["best", "last"], ["weights"]),
        _node("Mul", ["p", "weights"], ["q"]),
        _node("ReduceSum", ["q", "one"], ["y"], keepdims=0),
    ]
    constants = [_numbers("router", 4, 3), _numbers("up", 3, 4, 6), _numbers("down", 3, 6, 4), _integers("k", 2)]
    constants += [_integers("axes", 1, 2), _integers("two", 2), _integers("last", -1), _integers("one", 1)]
    return _model(nodes, [_input("x", "T", 4)], ["y"], constants, opset=24)


@_seed
def attention() -> ModelProto:
    nodes = [
        _node("RMSNormalization", ["x", "gain"], ["n"], axis=-1),
        _node("MatMul", ["n", "wq"], ["q"]),
        _node("MatMul", ["n", "wk"], ["k"]),
        _node("Attention", ["q", "k", "n"], ["y"], q_num_heads=2, kv_num_heads=2, is_causal=1),
    ]
    return _model(
        nodes,
        [_input("x", "B", "S", 8)],
        ["y"],
        [_numbers(n, 8, 8) for n in ("wq", "wk")] + [_numbers("gain", 8)],
        opset=24,
    )


@_seed
def contrib() -> ModelProto:
    own = "com.microsoft"
    nodes = [
        _node("SkipLayerNormalization", ["x", "skip", "gain", "shift"], ["a"], domain=own, epsilon=1e-5),
        _node("BiasGelu", ["a", "shift"], ["b"], domain=own),
        _node("FusedMatMul", ["b", "w"], ["y"], domain=own, transB=1, alpha=0.5),
    ]
    inputs = [_input("x", "B", "S", 4), _input("skip", "B", "S", 4)]
    return _model(
        nodes, inputs, ["y"], [_numbers("gain", 4), _numbers("shift", 4), _numbers("w", 6, 4)], domains=(own,)
    )


@_seed
def quantized() -> ModelProto:
    stored = numpy_helper.from_array(np.arange(-12, 12, dtype=np.int8).reshape(4, 6), "stored")
    scale = numpy_helper.from_array(np.full(6, 0.1, np.float32), "scale")
    zero = numpy_helper.from_array(np.zeros(6, np.int8), "zero")
    nodes = [
        _node("DequantizeLinear", ["stored", "scale", "zero"], ["w"], axis=1),
        _node("MatMul", ["x", "w"], ["a"]),
        _node("Einsum", ["a", "a"], ["y"], equation="ti,tj->tij"),
    ]
    return _model(nodes, [_input("x", "T", 4)], ["y"], [stored, scale, zero], opset=21)


@_seed
def folded_constants() -> ModelProto:
    nodes = [
        _node("Constant", [], ["a"], value_ints=[2, 3]),
        _node("ConstantOfShape", ["a"], ["b"]),
        _node("Shape", ["b"], ["s"], start=0, end=1),
        _node("Add", ["s", "one"], ["t"]),
        _node("Concat", ["t", "t"], ["u"], axis=0),
        _node("Expand", ["w", "u"], ["v"]),
        _node("NonZero", ["v"], ["n"]),
        _node("Cast", ["n"], ["f"], to=_FLOAT),
        _node("Mul", ["x", "v"], ["y"]),
    ]
    return _model(nodes, [_input("x", "T", 3, 3)], ["y", "f"], [_integers("one", 1), _numbers("w", 3)])

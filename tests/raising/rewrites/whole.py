"""Changes of a whole model by tools: other opsets, other types, optimisers."""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np
import onnx
import onnx_ir as ir
from onnx import version_converter

from ..edit import Writer, array_of, is_float, nodes, some, substitute
from ..registry import ROUNDS, register, rewrite

LAST = "all in float16"
"""The last rewrite of a chain: others write constants in float32."""
OTHER_TYPES = "products in float16"
"""The rewrite that changes the function, by rounding numbers differently. A block in which it is done is not raised."""


@rewrite
def other_opset(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    own = model.opset_imports[""]
    versions = [version for version in (18, 19, 20, 21, 22, 23) if version != own]
    if any(node.domain for node in model.graph) or model.functions:
        return None
    try:
        proto = version_converter.convert_version(ir.to_proto(model), versions[random.integers(len(versions))])
        onnx.checker.check_model(proto)  # the converter keeps attributes that older versions do not have
        return ir.from_proto(proto)
    except (RuntimeError, onnx.checker.ValidationError, version_converter.ConvertError):
        return None


def _through_onnxruntime(level: str) -> None:
    def apply(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "optimised.onnx")
            options.optimized_model_filepath = str(path)
            try:
                onnxruntime.InferenceSession(
                    ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
            except Exception:  # it has no common base; who cannot load the model cannot optimise it
                return None
            return ir.from_proto(onnx.load(path))

    register(f"onnxruntime optimiser: {level.lower()}", apply)


for _level in ("BASIC", "EXTENDED", "ALL"):
    _through_onnxruntime(_level)


@rewrite
def onnxscript_optimiser(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    from onnxscript import optimizer

    proto = ir.to_proto(model)
    return ir.from_proto(optimizer.optimize(proto))


@rewrite
def weights_stored_in_float16(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """A Cast makes them float32 when they are used. A weight that is stored several times is rounded in all of these
    places; otherwise one expert would differ from place to place."""
    built = [*model.graph.initializers.values(), *(node.outputs[0] for node in nodes(model, "Constant"))]
    weights = [value for value in built if is_float(value) and value.uses() and value.shape and value.shape.numpy()]
    chosen = some(random, [value for value in weights if len(value.shape or ()) >= 2])
    for number in chosen:  # and for those that join
        chosen += [value for value in weights if value not in chosen and _share_numbers(number, value)]
    for value in chosen:
        array = array_of(value)
        assert array is not None
        write = Writer(model, next(iter(model.graph)))
        new = write.op("Cast", array.astype(np.float16), to=ir.DataType.FLOAT)
        for user, place in list(value.uses()):
            user.replace_input_with(place, new)
    return model if chosen else None


def _share_numbers(first: ir.Value, other: ir.Value) -> bool:
    """Whether two weights share numbers, up to powers of two."""
    results = [np.frexp(np.abs(array))[0] for value in (first, other) if (array := array_of(value)) is not None]
    return bool(np.setdiff1d(np.intersect1d(*results), [0, 0.5]).size)


@rewrite
def products_in_float16(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """Some products are computed in float16, between Casts."""
    chosen = some(random, [node for node in nodes(model, "MatMul", "Gemm") if is_float(node.outputs[0])])
    for node in chosen:
        write = Writer(model, node)
        narrow = [write.op("Cast", value, to=ir.DataType.FLOAT16) for value in node.inputs]
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        product = write.op(node.op_type, *narrow, **attributes)
        substitute(node, write.op("Cast", product, to=ir.DataType.FLOAT))
    return model if chosen else None


@rewrite
def all_in_float16(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """Everything but inputs and outputs, as converters leave a model."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    if any(node.domain for node in model.graph) or model.functions or model.graph.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    if any(value.dtype == ir.DataType.FLOAT16 for node in model.graph for value in node.outputs):
        return None
    proto = convert_float_to_float16(ir.to_proto(model), keep_io_types=True, disable_shape_infer=False)
    narrow = ir.from_proto(proto)
    narrow.graph.sort()  # casts of inputs come last
    return narrow


ROUNDS.update(("weights stored in float16", "products in float16", LAST))

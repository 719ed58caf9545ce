"""Brings a model to the one opset that the rest of moec works with.

Where every operator is the same in both opsets, or the model's is the newer one (:mod:`moec.ir.opsets`), the model only
changes its number. Everything else is rewritten by ONNX's own converter, which wants the whole model as one protobuf
message, so all but small tensors are taken out first and put back afterwards: no weight is read or copied.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx import version_converter

from moec.errors import UnsupportedError
from moec.ir.opsets import NEWEST, OPSET, since

OLDEST = 11
"""The oldest opset from which operators are converted."""
_KEPT_BYTES = 1024
"""Small tensors stay in the message: adapters read axes, splits and the like."""

_RENAMED = {"SimplifiedLayerNormalization": "RMSNormalization"}
"""onnxruntime's own operators in ONNX's domain, and the operator that the working opset has for the same thing."""
_EARLY = {"LayerNormalization": 17}
"""onnxruntime had these in ONNX's domain, with the same meaning, before the opset that has them."""
_PRIVATE_DOMAIN = "moec.conversion"


def check_version(model: ir.Model, where: str) -> None:
    """Raises UnsupportedError for an opset outside ``OLDEST``..``NEWEST``, unless no operator has changed since an
    older one. The ONNX domain is called "" from here on."""
    imports = model.graph.opset_imports
    if "ai.onnx" in imports:
        imports[""] = imports.pop("ai.onnx")
    version = imports.setdefault("", OPSET)
    if version < OLDEST and not _is_unchanged(model, version):
        raise UnsupportedError(
            f"{where}: opset {version} is too old, expected {OLDEST} to {NEWEST}; convert the model with "
            "onnx.version_converter or export it with a newer opset"
        )
    if version > NEWEST:
        raise UnsupportedError(
            f"{where}: opset {version} is newer than moec knows, expected {OLDEST} to {NEWEST}; export the model with "
            f"opset_version={OPSET}"
        )


def is_known_early(node: ir.Node, version: int) -> bool:
    """Whether this node of the ONNX domain is onnxruntime's own, with an equal operator in the working opset."""
    if node.op_type in _RENAMED:
        return not any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
    return version < _EARLY.get(node.op_type, 0)


def convert(model: ir.Model, where: str) -> ir.Model:
    """The model at opset ``OPSET``; the very same object when it is there already.

    Raises UnsupportedError when an operator has no conversion.
    """
    version = model.graph.opset_imports[""]
    early = [node for node in model.graph if node.domain == "" and is_known_early(node, version)]
    for node in early:
        node.domain = _PRIVATE_DOMAIN
    model.graph.opset_imports[_PRIVATE_DOMAIN] = 1
    if version > OPSET or _is_unchanged(model, version):
        model.graph.opset_imports[""] = OPSET
    else:
        model = _convert(model, version, where)
    for node in model.graph:
        if node.domain == _PRIVATE_DOMAIN:
            _use_standard_operator(node)
    model.graph.opset_imports.pop(_PRIVATE_DOMAIN, None)
    return model


def _is_unchanged(model: ir.Model, version: int) -> bool:
    """Whether every operator of the ONNX domain means in ``OPSET`` what it means in ``version``."""
    return all(since(node.op_type, version) == since(node.op_type) for node in _standard_nodes(model))


def _standard_nodes(model: ir.Model) -> list[ir.Node]:
    return [node for node in ir.traversal.RecursiveGraphIterator(model.graph) if node.domain == ""]


def _use_standard_operator(node: ir.Node) -> None:
    node.domain = ""
    node.op_type = _RENAMED.get(node.op_type, node.op_type)
    if node.op_type == "RMSNormalization":
        node.resize_outputs(1)


def _convert(model: ir.Model, version: int, where: str) -> ir.Model:
    detached = _detach_tensors(model)
    inputs = len(model.graph.inputs) - len(detached)
    try:
        converted = version_converter.convert_version(ir.to_proto(model), OPSET)
    except Exception as error:  # the converter is C++ and raises RuntimeError, onnx's ConvertError and others
        raise UnsupportedError(
            f"{where}: ONNX cannot convert it from opset {version} to {OPSET} ({_first_line(error)}); export it with "
            f"opset_version={OPSET}"
        ) from error
    result = ir.from_proto(converted)
    _attach_tensors(result, detached, inputs)
    _restore_annotations(model, result)
    return result


def _detach_tensors(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Replace every initializer that is not small by a graph input of the same name."""
    detached: dict[str, ir.TensorProtocol] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            continue
        value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
        if tensor.nbytes <= _KEPT_BYTES:
            if isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
            continue
        detached[name] = tensor
        del model.graph.initializers[name]
        value.const_value = None
        model.graph.inputs.append(value)
    return detached


def _attach_tensors(model: ir.Model, detached: dict[str, ir.TensorProtocol], inputs: int) -> None:
    graph = model.graph
    kept, added = list(graph.inputs[:inputs]), list(graph.inputs[inputs:])
    graph.inputs.clear()
    graph.inputs.extend(kept)
    for value in added:
        if value.name in detached:
            value.const_value = detached[value.name]
            graph.register_initializer(value)


def _restore_annotations(model: ir.Model, converted: ir.Model) -> None:
    """Undo what the converter does besides converting: it drops metadata, and replaces shapes by its own inference's,
    whose made-up names for sizes hide that two sizes are the same."""
    converted.metadata_props.update(model.metadata_props)
    converted.producer_name, converted.producer_version = model.producer_name, model.producer_version
    shapes = {value.name: value.shape for node in model.graph for value in node.outputs}
    for node in converted.graph:
        for value in node.outputs:
            value.shape = shapes.get(value.name)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]

"""Conversion of a model to the one opset that the rest of moec works with.

Where every operator is the same in both opsets, or the model's is the newer one (:mod:`moec.ir.opsets`), only the
number changes. Otherwise ONNX's own converter rewrites the model. In both cases ONNX's shape inference checks that the
model is consistent. Both need the whole model as one protobuf message, so all except small tensors are taken out first
and put back afterwards: no weight is read or copied.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from moec.common.errors import MoecError, UnsupportedError, one_line
from moec.frontend.onnx import onnx_process
from moec.ir.opsets import NEWEST, OPSET, since
from moec.ir.shapes import shape_for_inference

OLDEST = 11
"""The oldest opset from which operators are converted."""
_KEPT_BYTES = 1024
"""Size of tensors that stay in the message, because adapters read axes, splits and the like."""

_RENAMED = {"SimplifiedLayerNormalization": "RMSNormalization"}
"""onnxruntime's operators in ONNX's domain, by the equal operator of the working opset."""
_EARLY = {"LayerNormalization": 17}
"""Operators that onnxruntime had in ONNX's domain, with the same meaning, before the given opset introduced them."""
_PRIVATE_DOMAIN = "moec.conversion"


def check_version(model: ir.Model, where: str) -> None:
    """Raise UnsupportedError for an opset outside ``OLDEST``..``NEWEST``, unless it is older and no operator has
    changed since. Afterwards the ONNX domain is called ""."""
    imports = model.graph.opset_imports
    if "ai.onnx" in imports:
        imports[""] = imports.pop("ai.onnx")
    version = imports.setdefault("", OPSET)
    if version > NEWEST:
        raise UnsupportedError(
            f"{where}: opset {version} is newer than moec knows; expected {OLDEST} to {NEWEST}; export the model with "
            f"opset_version={OPSET}"
        )
    changed = _changed(model, version)
    if version < OLDEST and changed:
        raise UnsupportedError(
            f"{where}: opset {version} is too old, and {changed[0].op_type} has changed since; expected {OLDEST} to "
            f"{NEWEST}; convert the model with onnx.version_converter or export it with a newer opset"
        )


def is_known_early(node: ir.Node, version: int) -> bool:
    """Whether this node of the ONNX domain is onnxruntime's own, with an equal operator in the working opset."""
    if node.op_type in _RENAMED:
        return not any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
    return version < _EARLY.get(node.op_type, 0)


def convert(model: ir.Model, where: str) -> ir.Model:
    """Convert the model to opset ``OPSET``. Returns the same object where nothing has to be converted.

    Raises UnsupportedError for an operator without a conversion, and MoecError where types, shapes or attributes do not
    fit the operators.
    """
    version = model.graph.opset_imports[""]
    early = [node for node in model.graph.all_nodes() if node.domain == "" and is_known_early(node, version)]
    for node in early:
        node.domain = _PRIVATE_DOMAIN
    model.graph.opset_imports[_PRIVATE_DOMAIN] = 1
    is_only_renumbered = version > OPSET or not _changed(model, version)
    model = _convert(model, version, version if is_only_renumbered else OPSET, where)
    model.graph.opset_imports[""] = OPSET
    for node in model.graph.all_nodes():
        if node.domain == _PRIVATE_DOMAIN:
            _use_standard_operator(node)
    model.graph.opset_imports.pop(_PRIVATE_DOMAIN, None)
    return model


def _changed(model: ir.Model, version: int) -> list[ir.Node]:
    """List the nodes of the ONNX domain whose operator differs between opset ``version`` and ``OPSET``."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return [node for node in nodes if node.domain == "" and since(node.op_type, version) != since(node.op_type)]


def _use_standard_operator(node: ir.Node) -> None:
    node.domain = ""
    node.op_type = _RENAMED.get(node.op_type, node.op_type)
    if node.op_type == "RMSNormalization":
        node.resize_outputs(1)


def _convert(model: ir.Model, version: int, target: int, where: str) -> ir.Model:
    detached = _detach_tensors(model)
    inputs = len(model.graph.inputs) - len(detached)
    try:
        converted = _convert_message(model, version, target)
    except onnx_process.ConversionError as error:
        raise UnsupportedError(
            f"{where}: ONNX cannot convert it from opset {version} to {OPSET} ({error}); export it with "
            f"opset_version={OPSET}"
        ) from error
    except onnx_process.InconsistentError as error:
        raise MoecError(f"{where}: the model is inconsistent: {error}; export the model again") from error
    result = model if version == target else ir.from_proto(onnx.load_model_from_string(converted))
    _attach_tensors(result, detached, inputs)
    if result is not model:
        _restore_annotations(model, result)
    return result


def _convert_message(model: ir.Model, version: int, target: int) -> bytes:
    """Convert the message. Where only the declared types of inner values make the model inconsistent, drop them: some
    exporters write wrong shapes there, and nothing depends on them."""
    try:
        return onnx_process.convert(_serialized(model), version, target)
    except onnx_process.InconsistentError:
        inside = [value for node in model.graph for value in node.outputs if not value.is_graph_output()]
        if not any(value.type or value.shape for value in inside):
            raise
        for value in inside:
            value.type = value.shape = None
        return onnx_process.convert(_serialized(model), version, target)


def _serialized(model: ir.Model) -> bytes:
    """Serialize the model. Raises InconsistentError for names that are not UTF-8, which can be read but not written."""
    try:
        return ir.to_proto(model).SerializeToString()
    except ir.serde.SerdeError as error:
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        raise onnx_process.InconsistentError(one_line(reason)) from error


def _detach_tensors(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Replace every initializer that is not small by a graph input of the same name."""
    detached: dict[str, ir.TensorProtocol] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            continue
        value.shape, value.dtype = shape_for_inference(tensor), tensor.dtype
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
            value.shape = ir.Shape(detached[value.name].shape.numpy())
            graph.register_initializer(value)


def _restore_annotations(model: ir.Model, converted: ir.Model) -> None:
    """Undo two side effects of the converter: it drops metadata, and it replaces shapes by those of its own inference,
    whose invented names hide that two sizes are the same."""
    converted.metadata_props.update(model.metadata_props)
    converted.producer_name, converted.producer_version = model.producer_name, model.producer_version
    shapes = {value.name: value.shape for node in model.graph for value in node.outputs}
    for node in converted.graph:
        for value in node.outputs:
            value.shape = shapes.get(value.name)

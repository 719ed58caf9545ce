"""Import of ONNX files and in-memory ONNX models: checks, inlining of functions, conversion to the working opset.
Weights are not loaded."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from moec.common.errors import MoecError, UnsupportedError
from moec.common.plain_files import size_of
from moec.frontend.onnx import (
    conditions,
    exported_ranges,
    external_data,
    local_functions,
    operators,
    opset,
    structure,
)
from moec.frontend.onnx.encoding import check_texts
from moec.frontend.onnx.size_names import name_sizes
from moec.ir import local_bodies
from moec.ir.graphs import lift_constants


def import_model(source: str | os.PathLike[str] | onnx.ModelProto | ir.Model) -> ir.Model:
    """Import the model as ONNX IR at opset 24.

    Local functions are inlined (:mod:`moec.frontend.onnx.local_functions`), every constant becomes an initializer, and
    weights stay where they are: memory-mapped when they are external data. ``source`` itself is not changed.

    Raises MoecError for a file that cannot be read as ONNX, for tensors whose data is missing, of the wrong size or
    outside the model's folder; UnsupportedError, naming node, operator and opset, for parts that moec does not support.
    """
    model, where = _read(source)
    structure.sort_nodes(model, where)
    structure.check_functions(model, where)
    bodies = local_functions.resolve(model, where)
    name_sizes(model, conditions.read(model, where).names)
    exported_ranges.attach(model)
    operators.check_types(model, where)
    _drop_initializers_from_inputs(model)
    operators.check_constants(model, where)
    lift_constants(model)
    external_data.map_weights(model)
    _resolve_constant_branches(model, where)
    opset.check_version(model, where)
    operators.check_operators(model, where)
    operators.check_bodies(bodies, where)
    model = opset.convert(model, where)
    lift_constants(model)
    operators.check_dialect(model, where)
    local_bodies.attach(model, bodies)
    _drop_unused_imports(model)
    return model


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """List the file of a model and those of its external data. Raises MoecError for a file that cannot be read as ONNX,
    and for data that is missing or outside the model's folder."""
    path = Path(path)
    proto, folder = _parse(path), path.absolute().parent
    _check_message(proto, str(path))
    external_data.check_tensors(proto, folder, str(path))
    return [path, *external_data.external_files(proto, folder)]


def _read(source: str | os.PathLike[str] | onnx.ModelProto | ir.Model) -> tuple[ir.Model, str]:
    if isinstance(source, ir.Model):
        return source.clone(), "model"
    if isinstance(source, onnx.ModelProto):
        _check_message(source, "model")
        external_data.check_tensors(source, None, "model")
        model = _deserialize(source, "model")
        structure.check_bodies(model, "model")
        return model, "model"
    if not isinstance(source, (str, os.PathLike)):
        raise MoecError(
            f"cannot import a {type(source).__name__}; expected a path, an onnx.ModelProto or an onnx_ir.Model"
        )
    path = Path(source)
    where = str(path)
    proto = _parse(path)
    _check_message(proto, where)
    folder = path.absolute().parent
    external_data.check_tensors(proto, folder, where)
    model = _deserialize(proto, where)
    structure.check_bodies(model, where)
    for graph in model.graphs():
        ir.external_data.set_base_dir(graph, folder)
    return model, where


def _parse(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise MoecError(f"{path}: no such file; expected an ONNX model")
    if path.is_dir():
        raise MoecError(f"{path}: is a directory; expected an ONNX file; name the model file inside it")
    if size_of(path) == 0:
        raise MoecError(f"{path}: the file is empty; expected an ONNX model; export or download it again")
    try:
        return onnx.load_model(path, format="protobuf", load_external_data=False)
    except (DecodeError, RuntimeError, UnicodeDecodeError) as error:
        raise MoecError(
            f"{path}: cannot be read as ONNX; it is truncated or another kind of file, export or download it again"
        ) from error
    except OSError as error:
        raise MoecError(f"{path}: cannot be read: {error.strerror or error}") from error


def _check_message(proto: onnx.ModelProto, where: str) -> None:
    """Check that the message is a model, because almost any bytes parse as some protobuf message: a model has an IR
    version, opsets and a graph with outputs."""
    if not proto.ir_version or not proto.HasField("graph") or not proto.opset_import:
        raise MoecError(
            f"{where}: holds no ONNX model (no IR version, graph or opset); it is truncated or another kind of file"
        )
    if not proto.graph.output:
        raise MoecError(f"{where}: its graph has no outputs; it is truncated or was exported wrongly")
    if proto.graph.sparse_initializer:
        name = proto.graph.sparse_initializer[0].values.name
        raise UnsupportedError(f"{where}: tensor {name!r} is sparse, which is not supported; export it dense")
    if proto.training_info:
        raise UnsupportedError(f"{where}: holds a training graph, which is not supported; export it for inference")
    check_texts(proto, where)


def _deserialize(proto: onnx.ModelProto, where: str) -> ir.Model:
    logger = logging.getLogger("onnx_ir")  # silence warnings of problems that are refused below in one line
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return ir.from_proto(proto)
    except Exception as error:  # onnx_ir may raise anything for an inconsistency
        reason = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
        raise MoecError(f"{where}: the graph is inconsistent ({reason[:300]}); export the model again") from error
    finally:
        logger.setLevel(level)


def _drop_initializers_from_inputs(model: ir.Model) -> None:
    """Make constants of inputs that are initializers: before IR version 4 every initializer had to be an input."""
    from onnx_ir.passes.common import RemoveInitializersFromInputsPass

    RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version or 0, 10)


def _resolve_constant_branches(model: ir.Model, where: str) -> None:
    """Replace each If whose condition is known by the branch it takes.

    Raises MoecError where constants before an If cannot be computed.
    """
    # The pass inline-control-flow would be too late: it works at the working opset, and the conversion to that refuses
    # unknown operators and shapes that do not fit. These may stand in a branch that is never taken. The pass handles
    # conditions that become known later, such as those in the steps of loops.
    if not any(node.op_type == "If" and node.domain == "" for node in model.graph):
        return
    from onnxscript.optimizer import fold_constants_ir

    try:
        fold_constants_ir(model)
    except Exception as error:  # ONNX's reference raises anything, wrapped in errors of onnxscript
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise MoecError(f"{where}: the condition of an If cannot be computed ({reason}); export it again") from error
    lift_constants(model)


def _drop_unused_imports(model: ir.Model) -> None:
    used = {node.domain for node in model.graph.all_nodes()} | {""}
    for domain in set(model.graph.opset_imports) - used:
        del model.graph.opset_imports[domain]

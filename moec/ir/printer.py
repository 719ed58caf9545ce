"""Models as text, in the syntax of ONNX's own text format, so that ``onnx.parser`` and people who know it can read it.

Differences to ``onnx.printer`` are in what is shown and how it is laid out: weights appear as type, shape and hash,
attributes are sorted and bare (``k = 2``), value types are listed compactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name, operator_name
from moec.ir.dialect import DOMAIN
from moec.ir.weight_hashes import PREFIX, HashedTensor, content_hash

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TYPE_NAMES = {kind.name.lower() for kind in ir.DataType} | {"seq", "map", "optional", "sparse_tensor"}
_INLINE_ELEMENTS = 8
_WIDTH = 120
_INTEGERS = {
    *(ir.DataType.BOOL, ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
    *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
}
_NARROW_FLOATS = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
_FLOATS = {ir.DataType.FLOAT, ir.DataType.DOUBLE}


def print_model(model: ir.Model, *, types: bool = True, node_names: bool = True) -> str:
    """The model as text; :func:`moec.ir.text.parse_model` reads it back.

    ``types=False`` leaves out the types of inner values, ``node_names=False`` the names of nodes. Documentation strings
    and metadata are not shown, nor are functions for operators of the moec dialect, whose nodes say what they compute.
    Raises UnsupportedError for a model with other functions: they are inlined on import.
    """
    others = [(domain, name) for domain, name, _ in model.functions if domain != DOMAIN]
    if others:
        names = ", ".join(f"{domain}.{name}" for domain, name in others)
        raise UnsupportedError(f"cannot print a model that still has functions ({names}): inline them first")
    imports = ", ".join(f"{_string(domain)} : {version}" for domain, version in sorted(model.opset_imports.items()))
    header = f"<\n   ir_version: {model.ir_version},\n   opset_import: [{imports}]\n>\n"
    return header + _Printer(types, node_names).graph(model.graph) + "\n"


def print_parts(graph: ir.Graph) -> tuple[list[str], list[str]]:
    """The lines of a graph's text one by one: those of its constants, and a text for each of its nodes."""
    printer = _Printer(types=False, node_names=True)
    return list(printer.declarations(graph)), [printer.node(node, "") for node in graph]


def print_type(value: ir.Value) -> str:
    """The type of a value, as a graph declares it; empty where it is not known."""
    return "" if value.type is None else _typed_name(value).removesuffix(f" {_value_name(value)}")


def _string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _identifier(text: str) -> str:
    return text if _IDENTIFIER.fullmatch(text) else _string(text)


def _value_name(value: ir.Value | None) -> str:
    """An absent input, or an output nobody wants, has no name."""
    if value is None:
        return '""'
    if not value.name and value.uses():
        raise ValueError(f"a value that is used has no name: {value}")
    name = value.name or ""
    return _string(name) if name in _TYPE_NAMES else _identifier(name)


def _name_list(values: Iterable[ir.Value | None]) -> str:
    return ", ".join(_value_name(value) for value in values)


def _type(kind: onnx.TypeProto) -> str:
    case = kind.WhichOneof("value")
    if case == "sequence_type":
        return f"seq({_type(kind.sequence_type.elem_type)})"
    if case == "optional_type":
        return f"optional({_type(kind.optional_type.elem_type)})"
    if case != "tensor_type":
        raise UnsupportedError(f"cannot print a value of type {case}; tensors, sequences and optionals are supported")
    sizes = [size.dim_value if size.HasField("dim_value") else size.dim_param for size in kind.tensor_type.shape.dim]
    return _tensor(ir.DataType(kind.tensor_type.elem_type), sizes if kind.tensor_type.HasField("shape") else None)


def _tensor(dtype: ir.DataType, sizes: Sequence[int | str | None] | None) -> str:
    """The type of a tensor. ``sizes``: None where nothing is known, not even how many; a size is None or empty where it
    has neither number nor name."""
    name = dtype.name.lower()
    if sizes is None:
        return f"{name}[]"
    shown = ",".join(_dimension(size) for size in sizes)
    return f"{name}[{shown}]" if shown else name


def _dimension(size: int | str | None) -> str:
    if isinstance(size, int):
        return str(size)
    return _identifier(size) if size else "?"


def _typed_name(value: ir.Value) -> str:
    if value.type is None:
        return _value_name(value)
    if not isinstance(value.type, ir.TensorType):
        return f"{_type(ir.serde.serialize_value(value).type)} {_value_name(value)}"
    sizes = None if value.shape is None else [size if isinstance(size, int) else size.value for size in value.shape]
    return f"{_tensor(value.type.dtype, sizes)} {_value_name(value)}"


def _float(value: float) -> str:
    """The shortest decimal that is this float32."""
    return str(np.float32(value))


def _tensor_type(tensor: ir.TensorProtocol) -> str:
    sizes = ",".join(str(size) for size in tensor.shape)
    return tensor.dtype.name.lower() + (f"[{sizes}]" if len(tensor.shape) else "")


def _is_inline(tensor: ir.TensorProtocol) -> bool:
    """Small constants carry meaning (shapes, axes, epsilons) and are shown; everything else is a weight."""
    if isinstance(tensor, HashedTensor):
        return False
    if tensor.dtype == ir.DataType.STRING:
        return True
    if tensor.dtype in _INTEGERS:
        return len(tensor.shape) <= 1 and tensor.size <= _INLINE_ELEMENTS
    return tensor.dtype in (_FLOATS | _NARROW_FLOATS) and tensor.size == 1


def _tensor_value(tensor: ir.TensorProtocol) -> str:
    if not _is_inline(tensor):
        return f'["location": "{PREFIX}{content_hash(tensor)}"]'
    if tensor.dtype == ir.DataType.STRING:
        return "{" + ", ".join(_string(item.decode()) for item in tensor.numpy().ravel()) + "}"
    array = tensor.numpy().ravel()
    if tensor.dtype in _NARROW_FLOATS:  # the syntax knows these as bits only
        array = array.view(np.uint16)
    elif tensor.dtype == ir.DataType.BOOL:
        array = array.astype(np.int32)
    return "{" + ", ".join(str(item) for item in array) + "}"


def _wrapped(items: Iterable[str]) -> Iterator[str]:
    """The items separated by commas, as many on a line as fit."""
    line = ""
    for item in items:
        if line and len(line) + len(item) > _WIDTH - 5:
            yield f"{line},"
            line = item
        else:
            line = f"{line}, {item}" if line else item
    yield line


class _Printer:
    def __init__(self, types: bool, node_names: bool) -> None:
        self._types = types
        self._node_names = node_names

    def graph(self, graph: ir.Graph, indent: str = "") -> str:
        inputs = ", ".join(_typed_name(value) for value in graph.inputs)
        outputs = ", ".join(_typed_name(value) for value in graph.outputs)
        lines = [f"{_identifier(graph.name or 'graph')} ({inputs}) => ({outputs})"]
        declarations = list(self.declarations(graph))
        if declarations:
            lines += [f"{indent}<", *(f"{indent}   {line}" for line in declarations), f"{indent}>"]
        lines += [f"{indent}{{", *(f"{indent}   {self.node(node, indent + '   ')}" for node in graph), f"{indent}}}"]
        return "\n".join(lines)

    def declarations(self, graph: ir.Graph) -> Iterator[str]:
        """One line per constant, then the types of inner values, as many on a line as fit."""
        constants = [
            f"{_tensor_type(value.const_value)} {_value_name(value)} = {_tensor_value(value.const_value)}"
            for value in graph.initializers.values()
            if value.const_value is not None
        ]
        typed = [
            _typed_name(value)
            for node in graph
            for value in node.outputs
            if self._types and value.type is not None and value.name and not value.is_graph_output()
        ]
        yield from (f"{line}," for line in constants[: None if typed else -1])
        if not typed:
            yield from constants[-1:]
            return
        yield from _wrapped(typed)

    def node(self, node: ir.Node, indent: str) -> str:
        name = f"[{_identifier(node.name)}] " if node.name and self._node_names else ""
        outputs = f"{_name_list(node.outputs)} = " if node.outputs else ""
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        if node.overload:
            operator += f":{node.overload}"
        check_attributes(node, f"node {node_name(node)!r}")
        attributes = [self._attribute(node.attributes[key], indent) for key in sorted(node.attributes)]
        written = f" <{', '.join(attributes)}>" if attributes else ""
        return f"{name}{outputs}{operator}{written} ({_name_list(node.inputs)})"

    def _attribute(self, attribute: ir.Attr, indent: str) -> str:
        """``name = value``; the type is said where the value does not say it."""
        kind = attribute.type.name.lower()
        if attribute.is_ref():
            return f"{attribute.name}: {kind} = @{attribute.ref_attr_name}"
        if attribute.type == ir.AttributeType.GRAPH:
            return f"{attribute.name}: graph = {self.graph(attribute.as_graph(), indent)}"
        if attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            name = "" if _is_inline(tensor) else " _"  # the parser wants a name before a reference to data
            return f"{attribute.name}: tensor = {_tensor_type(tensor)}{name} {_tensor_value(tensor)}"
        write = _WRITERS[attribute.type]
        if not isinstance(attribute.value, Sequence) or attribute.type == ir.AttributeType.STRING:
            text = write(attribute.value)
        else:
            text = f"[{', '.join(write(item) for item in attribute.value)}]"
        is_clear = text != "[]" and (write is not _float or bool(np.isfinite(attribute.value).all()))
        return f"{attribute.name} = {text}" if is_clear else f"{attribute.name}: {kind} = {text}"


def check_attributes(node: ir.Node, place: str) -> None:
    """Raise UnsupportedError for an attribute of a type that no operator takes which moec knows, and no text has."""
    for attribute in node.attributes.values():
        if not attribute.is_ref() and attribute.type not in _PRINTABLE:
            kind = attribute.type.name.lower()
            raise UnsupportedError(
                f"{place} ({operator_name(node)}): attribute {attribute.name} is of type {kind}; expected a number, a "
                "text, a tensor, a graph, or a list of numbers or texts"
            )


_WRITERS: dict[ir.AttributeType, Callable[[Any], str]] = {
    ir.AttributeType.INT: str,
    ir.AttributeType.FLOAT: _float,
    ir.AttributeType.STRING: _string,
    ir.AttributeType.INTS: str,
    ir.AttributeType.FLOATS: _float,
    ir.AttributeType.STRINGS: _string,
}
"""Writers of an attribute of each type, or of one element of it."""
_PRINTABLE = {*_WRITERS, ir.AttributeType.TENSOR, ir.AttributeType.GRAPH}

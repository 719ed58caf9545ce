"""ONNX's C++ code (version converter and shape inference), run in a separate process.

Both may crash, hang or fill the memory on malformed models; in another process each of these is one error. The process
loads only ONNX's extension module, in 0.04 s; ``import onnx`` takes 0.2 s.
"""

from __future__ import annotations

import pathlib
import re

from moec.common.child import Limits, LostError, RefusedError, run_child

LIMITS = Limits(seconds=30, memory=1 << 30)
"""Far more time and memory than the largest graph needs without its weights."""

_PROGRAM = pathlib.Path(__file__).with_name("onnx_program.py")
_NOISE = re.compile(r"\[\w+Error\] |Inference error\(s\): ")
_NODE = re.compile(r"^\(op_type:(?P<operator>[\w.]+)(?:, node name: (?P<name>[^)]*))?\): ")


class ConversionError(Exception):
    """An operator has no conversion; the text names it."""


class InconsistentError(Exception):
    """Types, shapes or attributes contradict the operators' definitions, or ONNX died of them; the text names the
    place."""


def convert(message: bytes, version: int, target: int) -> bytes:
    """Convert a serialized model to opset ``target`` and check that it is consistent.

    Raises ConversionError and InconsistentError.
    """
    from onnx import onnx_cpp2py_export

    arguments = (onnx_cpp2py_export.__file__, str(version), str(target))
    try:
        return run_child(_PROGRAM, message, LIMITS, *arguments)
    except RefusedError as error:
        kind = ConversionError if error.kind == "CannotConvertError" else InconsistentError
        raise kind(_readable(str(error))) from None
    except LostError as error:
        raise InconsistentError(f"ONNX's shape inference {error}") from None


def _readable(text: str) -> str:
    """Extract the first error and name its node in moec's terms."""
    line = next((said for said in _NOISE.sub("", text).splitlines() if said.strip()), "no reason given")
    node = _NODE.match(line)
    if node is None:
        return line[:300]
    name = f"node {node['name']!r} ({node['operator']})" if node["name"] else f"a node {node['operator']}"
    return f"{name}: {line[node.end() :]}"[:300]

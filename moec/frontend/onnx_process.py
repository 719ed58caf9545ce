"""ONNX's C++ (version converter and shape inference), run in a process of its own.

Both were seen to crash, to hang and to fill the memory on malformed models; there, that is one error. The process loads
nothing but ONNX's extension module, past Python's site packages: 0.04 s, where ``import onnx`` alone takes 0.2.
"""

from __future__ import annotations

import pathlib
import re
import signal
import subprocess
import sys

from moec.frontend.onnx_program import CANNOT_CONVERT, INCONSISTENT, NO_MEMORY

SECONDS = 60
MEMORY_BYTES = 1 << 30
"""Far more than the largest graph takes without its weights."""

_PROGRAM = pathlib.Path(__file__).with_name("onnx_program.py")
_NOISE = re.compile(r"\[\w+Error\] |Inference error\(s\): ")
_NODE = re.compile(r"^\(op_type:(?P<operator>[\w.]+)(?:, node name: (?P<name>[^)]*))?\): ")


class ConversionError(Exception):
    """An operator has no conversion; says which."""


class InconsistentError(Exception):
    """Types, shapes or attributes contradict the operators' definitions, or ONNX died of them; says where."""


def convert(message: bytes, version: int, target: int) -> bytes:
    """A serialized model at opset ``target``, checked to be consistent.

    Raises ConversionError and InconsistentError.
    """
    from onnx import onnx_cpp2py_export

    arguments = map(str, (_PROGRAM, onnx_cpp2py_export.__file__, version, target, MEMORY_BYTES))
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", *arguments], input=message, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise InconsistentError(f"ONNX's shape inference does not end within {SECONDS} s") from None
    reason = _readable(done.stderr.decode(errors="replace"))
    if done.returncode == CANNOT_CONVERT:
        raise ConversionError(reason)
    if done.returncode == INCONSISTENT:
        raise InconsistentError(reason)
    if done.returncode == NO_MEMORY:
        raise InconsistentError(f"ONNX's shape inference needs more than {MEMORY_BYTES >> 20} MB of memory for it")
    if done.returncode < 0:
        raise InconsistentError(f"ONNX's shape inference dies of it ({signal.Signals(-done.returncode).name})")
    if done.returncode:
        raise RuntimeError(f"the process for ONNX's shape inference ended with {done.returncode}: {reason}")
    return done.stdout


def _readable(text: str) -> str:
    """The first of the errors, in moec's words for a node."""
    line = next((said for said in _NOISE.sub("", text).splitlines() if said.strip()), "no reason given")
    node = _NODE.match(line)
    if node is None:
        return line[:300]
    name = f"node {node['name']!r} ({node['operator']})" if node["name"] else f"a node {node['operator']}"
    return f"{name}: {line[node.end() :]}"[:300]

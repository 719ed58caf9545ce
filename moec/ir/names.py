"""How messages, records and generated code call nodes and operators."""

from __future__ import annotations

import re

import onnx_ir as ir

_UNSAFE = re.compile(r'[\\"]|\*/')
"""What ends a comment or a string of generated code before its time, or continues it."""


def node_name(node: ir.Node) -> str:
    """The node's name; where it has none that of its first output, or else its operator's type.

    A model file may hold any text as a name: what would not stay inside a comment of one line becomes ``_``.
    """
    name = node.name or next((output.name for output in node.outputs if output.name), None) or node.op_type
    return in_comment(name)


def in_comment(name: str) -> str:
    """Text of a model file as one line of a comment or string of generated code."""
    return "".join(character if character.isprintable() else "_" for character in _UNSAFE.sub("_", name))


def operator_name(node: ir.Node) -> str:
    """``MatMul`` in the default domain, ``moec.Route`` in another."""
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type

"""Names of nodes and operators for messages, records and generated code."""

from __future__ import annotations

import re

import onnx_ir as ir

_UNSAFE = re.compile(r'[\\"]|\*/')
"""Characters that would end or continue a comment or a string of generated code."""


def node_name(node: ir.Node) -> str:
    """The node's name; for a node without one the name of its first named output, or else its operator's type.

    A model file may hold any text as a name. Characters that could leave a comment of one line become ``_``.
    """
    name = node.name or next((output.name for output in node.outputs if output.name), None) or node.op_type
    return in_comment(name)


def in_comment(name: str) -> str:
    """Text of a model file as one line of a comment or string of generated code."""
    return "".join(character if character.isprintable() else "_" for character in _UNSAFE.sub("_", name))


def operator_name(node: ir.Node) -> str:
    """``MatMul`` in the default domain, ``moec.Route`` in another."""
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type

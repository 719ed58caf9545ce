"""A parser of PTX: a text is a sequence of declarations of registers, labels and instructions."""

from __future__ import annotations

import dataclasses
import re
from typing import TypeAlias

from moec.common.errors import UnsupportedError

Operand: TypeAlias = "str | list[Operand]"
"""An operand of an instruction: the number of an ``asm`` operand (``%3``), a register or a constant; a list for
``{...}`` and for an address of several parts."""

_LABEL = re.compile(r"([A-Za-z_$][\w$]*)\s*:(?!:)")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.+)", re.DOTALL)
_INSTRUCTION = re.compile(r"(?:@(!?)%?(\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class RegisterDeclaration:
    """A declaration of registers, ``.reg .pred p, q``."""

    type: str
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Label:
    """A label, ``AGAIN:``."""

    name: str


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction, ``@!p opcode operands``."""

    opcode: str
    operands: tuple[Operand, ...]
    predicate: str | None = None
    negated: bool = False


Statement: TypeAlias = RegisterDeclaration | Label | Instruction


def parse(text: str) -> list[Statement]:
    """The statements of a PTX text, without the braces of scopes. Raises UnsupportedError for a statement that cannot
    be parsed."""
    text = _COMMENT.sub(" ", text)
    statements: list[Statement] = []
    position = 0
    while position < len(text):
        if text[position] in "{} \n\t;":
            position += 1
        elif label := _LABEL.match(text, position):
            statements.append(Label(label[1]))
            position = label.end()
        else:
            end = text.find(";", position)
            end = len(text) if end < 0 else end
            statements.append(_statement(text[position:end].strip()))
            position = end + 1
    return statements


def _statement(text: str) -> Statement:
    if registers := _REGISTERS.fullmatch(text):
        return RegisterDeclaration(registers[1], tuple(name.strip().lstrip("%") for name in registers[2].split(",")))
    match = _INSTRUCTION.fullmatch(text)
    if match is None:
        raise UnsupportedError(f"PTX statement {text!r}: not understood; expected an instruction and its operands")
    operands = tuple(_operand(part) for part in _split(match[4]))
    return Instruction(match[3], operands, match[2], bool(match[1]))


def _split(text: str) -> list[str]:
    """The parts of a list, separated by the commas outside of all brackets."""
    parts, depth, begin = [], 0, 0
    for position, character in enumerate(text):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append(text[begin:position])
            begin = position + 1
    return [part.strip() for part in [*parts, text[begin:]] if part.strip()]


def _operand(text: str) -> Operand:
    if text.startswith("{"):
        return [_operand(part) for part in _split(text[1:-1])]
    if text.startswith("["):
        parts = [_operand(part) for part in _split(text[1:-1])]
        return parts[0] if len(parts) == 1 else parts
    return text

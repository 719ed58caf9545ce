"""The PTX instructions that have a model: how each is written as a call of the emulator's C++.

An instruction without a model cannot be emulated, and is refused when a library is built.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from moec.errors import UnsupportedError
from moec.targets.cuda.emulator.ptx import Instruction, Label, Operand, Registers, Statement, parse

Model = Callable[..., str]
"""From the match of the opcode and the operands, in C++, to a C++ statement without its semicolon."""

_MODELS: list[tuple[re.Pattern[str], Model]] = []
_TYPES = {"pred": "bool", "f32": "float", "f64": "double", "b64": "uint64_t", "u64": "uint64_t", "s64": "int64_t"}
_NUMBERED = re.compile(r"%(\d+)")


def model(opcode: str) -> Callable[[Model], Model]:
    """Says that a function models the instructions whose whole opcode matches the pattern."""

    def register(function: Model) -> Model:
        _MODELS.append((re.compile(opcode), function))
        return function

    return register


def braced(values: Operand) -> str:
    """Operands as a C++ list of their values."""
    return "{" + ", ".join(map(str, values)) + "}"


def addresses(values: Operand) -> str:
    """Operands as a C++ list of pointers to them."""
    return "{" + ", ".join(f"&{value}" for value in values) + "}"


def to_cpp(text: str, operands: tuple[str, ...]) -> str:
    """C++ statements that do what a PTX text does. Raises UnsupportedError for an instruction without a model."""
    statements = parse(text)
    registers = {name for statement in statements if isinstance(statement, Registers) for name in statement.names}
    translated = [_statement(statement, operands, registers) for statement in statements]
    return "{ " + " ".join(translated) + " }" if translated else ";"


def _statement(statement: Statement, operands: tuple[str, ...], registers: set[str]) -> str:
    if isinstance(statement, Registers):
        names = ", ".join(map(_register, statement.names))
        return f"{_TYPES.get(statement.type, 'uint32_t')} {names};"
    if isinstance(statement, Label):
        return f"{_register(statement.name)}: ;"
    call = _instruction(statement, operands, registers)
    if statement.predicate is None:
        return f"{call};"
    return f"if ({'!' if statement.negated else ''}{_register(statement.predicate)}) {{ {call}; }}"


def _instruction(instruction: Instruction, operands: tuple[str, ...], registers: set[str]) -> str:
    values = [_value(operand, operands, registers) for operand in instruction.operands]
    for pattern, function in _MODELS:
        if match := pattern.fullmatch(instruction.opcode):
            return function(match, *values)
    raise UnsupportedError(
        f"PTX instruction {instruction.opcode}: the CUDA emulator has no model of it; "
        "expected an instruction of moec.targets.cuda.emulator.models; write a model, or run this kernel on a GPU"
    )


def _register(name: str) -> str:
    """The C++ variable of a PTX register or label; a prefix keeps it apart from the variables around it."""
    return "ptx_" + name.lstrip("%").replace("$", "_")


def _value(operand: Operand, operands: tuple[str, ...], registers: set[str]) -> Any:
    if isinstance(operand, list):
        return [_value(part, operands, registers) for part in operand]
    if "|" in operand:
        return [_value(part, operands, registers) for part in operand.split("|")]
    if numbered := _NUMBERED.fullmatch(operand):
        number = int(numbered[1])
        if number >= len(operands):
            raise UnsupportedError(
                f"inline assembly names operand %{number} and has {len(operands)}; expected operands written as "
                "constraint and expression, without macros"
            )
        return f"({operands[number]})"
    return _register(operand) if operand.lstrip("%") in registers else operand

"""The registry of models of PTX instructions, each of which writes an instruction as a call of the emulator's C++.

An instruction without a model cannot be emulated, and is refused when a library is built.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from typing import Any

from moec.common.errors import MoecError, UnsupportedError
from moec.simulators.cuda.assembly.inline_assembly import InlineAssembly
from moec.simulators.cuda.assembly.ptx import Instruction, Label, Operand, RegisterDeclaration, Statement, parse

Model = Callable[..., str]
"""A function from the match of the opcode, and the operands in C++, to a C++ statement without its semicolon."""


class Effect(enum.IntEnum):
    """The side effects of an instruction. A compiler learns of them only through qualifiers and clobbers of its
    ``asm``."""

    NONE = 0
    ORDER = 1
    """Must run exactly once, in order with others: ``asm volatile``."""
    MEMORY = 2
    """Also reads or writes memory, or orders accesses to it: needs ``"memory"`` among the clobbers."""


_MODELS: list[tuple[re.Pattern[str], Model, Effect]] = []
_TYPES = {"pred": "bool", "f32": "float", "f64": "double", "b64": "uint64_t", "u64": "uint64_t", "s64": "int64_t"}
_SPECIAL = {
    "%cluster_ctarank": "uint32_t(emulator::thread->home->rank)",
    "%cluster_nctarank": "uint32_t(emulator::thread->home->cluster->blocks.size())",
}
"""Special registers, which the hardware sets."""
_NUMBERED = re.compile(r"%(\d+)")


def model(opcode: str, effect: Effect = Effect.NONE) -> Callable[[Model], Model]:
    """Register a function as the model of instructions whose whole opcode matches the pattern, with their side
    effect."""

    def register(function: Model) -> Model:
        _MODELS.append((re.compile(opcode), function, effect))
        return function

    return register


def braced(values: Operand) -> str:
    """Operands as a C++ list of their values."""
    return "{" + ", ".join(map(str, values)) + "}"


def addresses(values: Operand) -> str:
    """Operands as a C++ list of pointers to them."""
    return "{" + ", ".join(f"&{value}" for value in values) + "}"


def to_cpp(assembly: InlineAssembly) -> str:
    """C++ statements equivalent to the PTX of an ``asm`` statement. Raises UnsupportedError for an instruction without
    a model, MoecError for one whose effects the statement does not declare."""
    statements = parse(assembly.text)
    if assembly.operands and not assembly.text and not assembly.volatile:
        raise MoecError(
            "inline assembly that holds its operands: is not volatile; nvcc may move it; write asm volatile"
        )
    for statement in statements:
        if isinstance(statement, Instruction):
            _expect_effect_told(statement.opcode, assembly)
    registers = {
        name for statement in statements if isinstance(statement, RegisterDeclaration) for name in statement.names
    }
    translated = [_statement(statement, assembly.operands, registers) for statement in statements]
    return "{ " + " ".join(translated) + " }" if translated else ";"


def _statement(statement: Statement, operands: tuple[str, ...], registers: set[str]) -> str:
    if isinstance(statement, RegisterDeclaration):
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
    match, function, _ = _model_of(instruction.opcode)
    return function(match, *values)


def _model_of(opcode: str) -> tuple[re.Match[str], Model, Effect]:
    for pattern, function, effect in _MODELS:
        if match := pattern.fullmatch(opcode):
            return match, function, effect
    raise UnsupportedError(
        f"PTX instruction {opcode}: the CUDA emulator has no model of it; "
        "expected an instruction of moec.simulators.cuda.models; write a model, or run this kernel on a GPU"
    )


def _expect_effect_told(opcode: str, assembly: InlineAssembly) -> None:
    """Check that the statement declares the instruction's effects. g++ compiles models, whose effects it sees; nvcc
    knows only what the statement declares. Raises MoecError if not."""
    _, _, effect = _model_of(opcode)
    if effect >= Effect.ORDER and not assembly.volatile:
        raise MoecError(f"inline assembly {opcode}: is not volatile; nvcc may drop or move it; write asm volatile")
    if effect >= Effect.MEMORY and not assembly.orders_memory:
        raise MoecError(
            f'inline assembly {opcode}: does not clobber "memory"; nvcc may move accesses past it; add the clobber'
        )


def _register(name: str) -> str:
    """The C++ name of a PTX register or label, with a prefix so that it differs from variables around it."""
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
    return _register(operand) if operand.lstrip("%") in registers else _SPECIAL.get(operand, operand)

"""Instructions of one thread on its registers, and its control flow."""

from __future__ import annotations

from re import Match

from moec.simulators.cuda.assembly.instructions import Effect, Operand, model

_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


@model(r"setp\.(eq|ne|lt|le|gt|ge)\.[a-z]\d+")
def _compare(match: Match[str], result: str, first: str, second: str) -> str:
    return f"{result} = {first} {_COMPARISONS[match[1]]} {second}"


@model(r"mov\.[a-z]\d+")
def _move(match: Match[str], result: str, value: str) -> str:
    return f"{result} = {value}"


@model(r"selp\.[a-z]\d+")
def _select(match: Match[str], result: str, first: str, second: str, predicate: str) -> str:
    return f"{result} = {predicate} ? {first} : {second}"


@model(r"cvt\.rn\.(f16|bf16)x2\.f32")
def _pack_halves(match: Match[str], result: str, upper: str, lower: str) -> str:
    narrow = {"f16": "float_to_half", "bf16": "float_to_bfloat16"}[match[1]]
    return f"{result} = uint32_t(emulator::{narrow}({upper})) << 16 | emulator::{narrow}({lower})"


@model(r"bra(?:\.uni)?")
def _branch(match: Match[str], label: str) -> str:
    return f"goto ptx_{label}"


@model(r"prmt\.b32")
def _permute_bytes(match: Match[str], result: str, low: str, high: str, selector: str) -> str:
    return f"{result} = __byte_perm({low}, {high}, {selector})"


@model(r"lop3\.b32")
def _any_logic(match: Match[str], result: str, a: str, b: str, c: str, table: str) -> str:
    return f"{result} = emulator::logic_of_three({a}, {b}, {c}, {table})"


@model(r"dp4a\.[us]32\.[us]32")
def _dot_bytes(match: Match[str], result: str, a: str, b: str, total: str) -> str:
    return f"{result} = __dp4a({a}, {b}, {total})"


@model(r"(ex2|lg2|rcp|rsqrt|tanh|sqrt)\.approx(?:\.ftz)?\.f32")
def _approximate(match: Match[str], result: str, value: str) -> str:
    function = {"ex2": "exp2f", "lg2": "log2f", "rcp": "__frcp_rn", "rsqrt": "rsqrtf", "tanh": "tanhf", "sqrt": "sqrtf"}
    return f"{result} = {function[match[1]]}({value})"


@model(r"bar\.sync|barrier\.sync(?:\.aligned)?|barrier\.cta\.sync(?:\.aligned)?", Effect.MEMORY)
def _synchronize(match: Match[str], number: str, count: Operand = "0") -> str:
    return f"emulator::synchronize({number}, {count})"


@model(r"bar\.arrive|barrier\.arrive(?:\.aligned)?|barrier\.cta\.arrive(?:\.aligned)?", Effect.MEMORY)
def _arrive(match: Match[str], number: str, count: str) -> str:
    return f"emulator::arrive_only({number}, {count})"


@model(r"elect\.sync", Effect.ORDER)
def _elect(match: Match[str], chosen: Operand, mask: str) -> str:
    lane, predicate = chosen
    leader = "" if lane == "_" else f"{lane} = __builtin_ctz({mask}), "
    return f"{leader}{predicate} = emulator::elect({mask})"


@model(r"griddepcontrol\.wait", Effect.MEMORY)
def _wait_for_kernels_before(match: Match[str]) -> str:
    return "emulator::wait_for_kernels_before()"


@model(r"fence\.(?:acq_rel|sc)\.\w+|membar\.\w+|griddepcontrol\.launch_dependents", Effect.MEMORY)
@model(r"prefetch\.\S+", Effect.ORDER)
def _nothing_to_compute(match: Match[str], *operands: Operand) -> str:
    """Model fences and prefetches as nothing, since the emulator has neither caches nor reordered accesses."""
    return ""


@model(r"ld\.relaxed\.gpu\.global\.s32", Effect.MEMORY)
def _load_any_time(match: Match[str], result: str, address: str) -> str:
    return f"{result} = emulator::load_any_time<int32_t>({address})"

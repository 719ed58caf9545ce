"""Instructions of PTX on registers: a table of functions from the parts of the opcode to a function of arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from .values import DTYPES, Act, Array, PtxError

Parts = Sequence[str]
Function = Callable[..., Any]

_COMPARE: dict[str, Function] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "hi": np.greater,
    "neu": lambda a, b: ~(a == b) | _any_nan(a, b),
    "ltu": lambda a, b: (a < b) | _any_nan(a, b),
    "leu": lambda a, b: (a <= b) | _any_nan(a, b),
    "gtu": lambda a, b: (a > b) | _any_nan(a, b),
    "geu": lambda a, b: (a >= b) | _any_nan(a, b),
    "equ": lambda a, b: (a == b) | _any_nan(a, b),
    "nan": lambda a, b: _any_nan(a, b),
    "num": lambda a, b: ~_any_nan(a, b),
}
_JOIN: dict[str, Function] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _any_nan(a: Array, b: Array) -> Array:
    return np.isnan(a) | np.isnan(b)


def _compare(parts: Parts) -> Function:
    relation = _COMPARE[parts[1]]
    if parts[2] in _JOIN:
        return lambda a, b, c: _JOIN[parts[2]](relation(a, b), c)
    if parts[1] in ("ne",) and parts[-1][0] == "f":
        return lambda a, b: (a != b) & ~_any_nan(a, b)
    return relation


def _shift(parts: Parts) -> Function:
    def shift(a: Array, by: Array) -> Array:
        width = a.dtype.itemsize * 8
        amount = np.minimum(by, width - 1).astype(a.dtype)
        if parts[0] == "shl":
            return np.where(by < width, a << amount, 0).astype(a.dtype)
        return (a >> amount) if a.dtype.kind == "i" else np.where(by < width, a >> amount, 0).astype(a.dtype)

    return shift


def _wide(a: Array) -> Array:
    return a.astype(f"{a.dtype.kind}{a.dtype.itemsize * 2}")


def _multiply(parts: Parts) -> Function:
    if "wide" in parts:
        return lambda a, b: _wide(a) * _wide(b)
    if "hi" in parts:
        return lambda a, b: (_wide(a) * _wide(b) >> (a.dtype.itemsize * 8)).astype(a.dtype)
    return lambda a, b: a * b


def _multiply_add(parts: Parts) -> Function:
    if parts[-1] in ("f32", "f64"):
        return _fused
    multiply = _multiply(parts)
    return lambda a, b, c: multiply(a, b) + c


def _fused(a: Array, b: Array, c: Array) -> Array:
    return (a.astype(np.float64) * b + c).astype(a.dtype)


def _fused_down(a: Array, b: Array, c: Array) -> Array:
    exact = a.astype(np.float64) * b + c
    nearest = exact.astype(np.float32)
    return np.where(nearest > exact, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return a / b
    if (b == 0).any():
        raise PtxError("division by zero")
    quotient = np.abs(a.astype(np.int64)) // np.abs(b.astype(np.int64))
    return np.where((a < 0) != (b < 0), -quotient, quotient).astype(a.dtype)


def _bit_insert(a: Array, b: Array, position: Array, length: Array) -> Array:
    mask = (((np.uint64(1) << length.astype(np.uint64)) - np.uint64(1)) << position.astype(np.uint64)).astype(b.dtype)
    return (b & ~mask) | ((a.astype(np.uint64) << position.astype(np.uint64)).astype(b.dtype) & mask)


def _bit_extract(a: Array, position: Array, length: Array) -> Array:
    width = a.dtype.itemsize * 8
    if (position + length > width).any() or (length == 0).any():
        raise PtxError("bfe beyond the register")
    return (a << (width - position - length).astype(a.dtype)) >> (width - length).astype(a.dtype)


def _any_logic(a: Array, b: Array, c: Array, table: Array) -> Array:
    result = np.zeros_like(a)
    for n in range(8):
        wanted = (table.astype(np.int64) >> n) & 1
        term = (a if n & 4 else ~a) & (b if n & 2 else ~b) & (c if n & 1 else ~c)
        result |= np.where(wanted, term, 0).astype(a.dtype)
    return result


def _permute(a: Array, b: Array, selector: Array) -> Array:
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.zeros_like(a)
    for i in range(4):
        choice = selector.astype(np.uint64) >> np.uint64(4 * i) & np.uint64(15)
        byte = both >> ((choice & np.uint64(7)) * np.uint64(8)) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        result |= (np.where(choice & np.uint64(8), sign, byte) << np.uint64(8 * i)).astype(a.dtype)
    return result


def _funnel(parts: Parts) -> Function:
    def shift(low: Array, high: Array, by: Array) -> Array:
        amount = (by & 31 if parts[2] == "wrap" else np.minimum(by, 32)).astype(np.uint64)
        both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
        moved = both << amount >> np.uint64(32) if parts[1] == "l" else both >> amount
        return moved.astype(low.dtype)

    return shift


def _bits_of(a: Array) -> Array:
    return np.unpackbits(np.ascontiguousarray(a).view(np.uint8).reshape(len(a), -1), axis=1)


def _leading_zeros(a: Array) -> Array:
    values = a.astype(np.uint64)
    return (a.dtype.itemsize * 8 - np.ceil(np.log2(values.astype(np.float64) + 1))).astype(np.uint32)


def _convert(parts: Parts) -> Function:
    target = DTYPES[parts[-2]]

    def convert(a: Array) -> Array:
        if "sat" in parts and target.kind == "f":
            return np.where(np.isnan(a), 0, np.clip(a, 0, 1)).astype(target)
        if a.dtype.kind in "f" and target.kind in "iu":
            whole = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[parts[1]](a)
            limits = np.iinfo(target)
            return np.where(np.isnan(a), 0, np.clip(whole.astype(np.float64), limits.min, limits.max)).astype(target)
        if len(parts) > 3 and parts[1] in ("rmi", "rpi", "rni", "rzi"):
            return {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[parts[1]](a).astype(target)
        return a.astype(target)

    return convert


def _pack(parts: Parts) -> Function:
    half = ml_dtypes.bfloat16 if parts[-2] == "bf16x2" else np.float16

    def pack(upper: Array, lower: Array) -> Array:
        high, low = (one.astype(half).view(np.uint16).astype(np.uint32) for one in (upper, lower))
        return high << 16 | low

    return pack


def _to_tf32(a: Array) -> Array:
    """Round to nearest, ties away from zero."""
    return (a.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)


def _same(function: Function) -> Callable[[Parts], Function]:
    return lambda _parts: function


_WINDOW = np.uint64(1 << 40)
"""The generic address at which shared memory begins."""


def _address(parts: Parts) -> Function:
    if "shared" not in parts:
        return lambda a: a
    return (lambda a: a - _WINDOW) if "to" in parts else (lambda a: a + _WINDOW)


_TABLE: dict[str, Callable[[Parts], Function]] = {
    "add": _same(np.add),
    "sub": _same(np.subtract),
    "mul": _multiply,
    "mad": _multiply_add,
    "fma": lambda parts: {"rn": _fused, "rm": _fused_down}[parts[1]],
    "div": _same(_divide),
    "rem": _same(lambda a, b: a - _divide(a, b) * b),
    "min": lambda parts: np.fmin if parts[-1][0] == "f" else np.minimum,
    "max": lambda parts: np.fmax if parts[-1][0] == "f" else np.maximum,
    "neg": _same(np.negative),
    "abs": _same(np.abs),
    "copysign": _same(lambda sign, a: np.copysign(a, sign)),
    "not": _same(np.invert),
    "and": _same(np.bitwise_and),
    "or": _same(np.bitwise_or),
    "xor": _same(np.bitwise_xor),
    "shl": _shift,
    "shr": _shift,
    "setp": _compare,
    "selp": _same(lambda a, b, chosen: np.where(chosen, a, b)),
    "popc": _same(lambda a: _bits_of(a).sum(axis=1).astype(np.uint32)),
    "clz": _same(_leading_zeros),
    "bfi": _same(_bit_insert),
    "bfe": _same(_bit_extract),
    "lop3": _same(_any_logic),
    "prmt": _same(_permute),
    "shf": _funnel,
    "ex2": _same(np.exp2),
    "lg2": _same(np.log2),
    "rcp": _same(np.reciprocal),
    "sqrt": _same(np.sqrt),
    "rsqrt": _same(lambda a: 1 / np.sqrt(a)),
    "tanh": _same(np.tanh),
    "cvta": _address,
}


def _types(parts: Parts, count: int) -> list[str]:
    """The types of the operands that an instruction reads."""
    last = parts[-1]
    if parts[0] == "cvt":
        return [last] * count
    if parts[0] in ("shl", "shr"):
        return [last, "u32"]
    if parts[0] == "mad" and "wide" in parts:
        return [last, last, f"{last[0]}{int(last[1:]) * 2}"]
    if parts[0] in ("bfi", "bfe"):
        return [last] * (count - 2) + ["u32", "u32"]
    if parts[0] == "selp" or (parts[0] == "setp" and count == 3):
        return [last, last, "pred"]
    return [last] * count


def _function_of(parts: Parts) -> Function | None:
    if parts[0] == "cvt":
        if "tf32" in parts:
            return _to_tf32
        return _pack(parts) if parts[-2] in ("bf16x2", "f16x2") else _convert(parts)
    return _TABLE[parts[0]](parts) if parts[0] in _TABLE else None


def arithmetic(opcode: str, operands: Sequence[Any]) -> Act | None:
    """The function that executes an instruction on registers; None for an instruction of another kind. Multiply-adds
    are rounded twice, where the hardware rounds once, so results may differ in the last bit."""
    parts = opcode.split(".")
    if parts[0] == "mov":
        return _move(parts[-1], *operands)
    function = _function_of(parts)
    if function is None:
        return None
    target, *sources = operands
    types = _types(parts, len(sources))

    def act(machine: Any, lanes: Array) -> None:
        threads = machine.threads
        values = [threads.read(source, type_, lanes) for source, type_ in zip(sources, types, strict=True)]
        threads.write(target, lanes, np.asarray(function(*values)))

    return act


def _move(type_: str, target: Any, source: Any) -> Act:
    """The function that executes a move. Several registers can be joined to one, lowest bits first, or one split."""

    def act(machine: Any, lanes: Array) -> None:
        threads, wide = machine.threads, DTYPES[type_]
        if isinstance(source, list):
            part = f"b{wide.itemsize * 8 // len(source)}"
            joined = np.stack([threads.read(one, part, lanes) for one in source], axis=1)
            threads.write(target, lanes, np.ascontiguousarray(joined).view(f"u{wide.itemsize}")[:, 0])
        elif isinstance(target, list):
            bits = np.ascontiguousarray(threads.read(source, type_, lanes)).view(f"u{wide.itemsize // len(target)}")
            for one, values in zip(target, bits.reshape(len(lanes), -1).T, strict=True):
                threads.write(one, lanes, values)
        else:
            threads.write(target, lanes, threads.read(source, type_, lanes))

    return act

"""Operands of PTX as numpy arrays, with one element for each thread that executes an instruction."""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

DTYPES: dict[str, Any] = {
    **{f"u{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"b{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"f{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "bf16x2": np.dtype("uint32"),
    "f16x2": np.dtype("uint32"),
    "pred": np.dtype(bool),
}
_FLOAT = re.compile(r"0([fd])([0-9A-Fa-f]+)")
_INTEGER = re.compile(r"-?(?:0x[0-9A-Fa-f]+|\d+)U?")
_SUM = re.compile(r"([%$\w.]+?)\s*\+\s*(-?\w+)")

Array = np.ndarray[Any, Any]


class PtxError(Exception):
    """An error of the program, or an instruction that the interpreter does not know. The message names the
    instruction."""


@dataclasses.dataclass
class Threads:
    """The registers of a block's threads. ``symbols``: addresses of shared arrays by name; ``special``: special
    registers by name."""

    count: int
    types: dict[str, str]
    """Declared types by the name of a register, or by the prefix of numbered ones."""
    symbols: dict[str, int]
    special: dict[str, Array]
    registers: dict[str, Array] = dataclasses.field(default_factory=dict)

    def register(self, name: str) -> Array:
        """The bits of a register in all threads; all ones before it is written."""
        if name not in self.registers:
            declared = self.types.get(name) or self.types.get(name.rstrip("0123456789"))
            if declared is None:
                raise PtxError(f"register {name} is not declared")
            dtype = DTYPES["pred"] if declared == "pred" else DTYPES[f"u{_bits(declared)}"]
            nonsense = True if declared == "pred" else np.iinfo(dtype).max
            self.registers[name] = np.full(self.count, nonsense, dtype)
        return self.registers[name]

    def read(self, operand: str, type_: str, lanes: Array) -> Array:
        dtype = DTYPES[type_]
        if found := _SUM.fullmatch(operand):
            return self.read(found[1], type_, lanes) + np.array(int(found[2], 0)).astype(dtype)
        if operand in self.special:
            return self.special[operand][lanes].astype(dtype)
        if operand.startswith("%") or operand in self.types:
            bits = self.register(operand.lstrip("%"))[lanes]
            return bits if dtype == bits.dtype else bits.astype(f"u{dtype.itemsize}").view(dtype)
        return np.full(len(lanes), self._constant(operand, dtype))

    def _constant(self, operand: str, dtype: Any) -> Any:
        if operand in self.symbols:
            return np.array(self.symbols[operand]).astype(dtype)
        if found := _FLOAT.fullmatch(operand):
            kind = "f" if found[1] == "f" else "d"
            return np.array(struct.unpack(f">{kind}", bytes.fromhex(found[2]))[0]).astype(dtype)
        if _INTEGER.fullmatch(operand):
            return (
                np.array(int(operand.rstrip("U"), 0)).astype(np.int64 if operand[0] == "-" else np.uint64).astype(dtype)
            )
        raise PtxError(f"operand {operand} is not known")

    def write(self, operand: str, lanes: Array, values: Array) -> None:
        """Write values to a register in some threads. Signed values are sign-extended if the register is wider."""
        if operand == "_":
            return
        register = self.register(operand.lstrip("%"))
        if values.dtype != register.dtype and values.dtype.kind not in "iub":
            values = values.view(f"u{values.dtype.itemsize}")
        register[lanes] = values.astype(register.dtype)


def _bits(type_: str) -> int:
    return int(re.sub(r"\D", "", type_.partition("x")[0]))


Act = Callable[[Any, Array], None]
"""A function that executes an instruction, given the machine and the threads."""

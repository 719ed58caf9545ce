"""Guards from the ranges of sizes that PyTorch writes into the ONNX files it exports.

Tracing follows one path through a module. The conditions of that path (:mod:`moec.frontend.pytorch.guards`) are not in
the file, except the ranges of symbols, which ``torch.onnx.export(dynamo=True)`` keeps in the metadata of the graph:
``{s10: VR[0, int_oo], s21: VR[2, 16]}`` (``torch/onnx/_internal/exporter/_core.py``).

1. ``s21: VR[2, 16]`` becomes the guard ``s21 <= 16``, and ``VR[8, 8]`` becomes ``s21 == 8``. A lower bound of 1 or 2 is
   no guard: PyTorch assumes it by itself, and modules that test for it (``is_causal = length > 1``) seldom depend on
   it.
2. Where sizes were renamed (``dynamic_shapes=({1: "seq"},)``), symbols match the names of the inputs' sizes in order,
   because torch.export lists them in that order. Symbols of values (``u0``) are not counted.
3. A range whose size cannot be identified is reported as unchecked.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from moec.common.guards import bound_names, parse_guard, size_names
from moec.common.specs import tensor_specs
from moec.frontend.onnx.conditions import KEY, Conditions

if TYPE_CHECKING:
    import onnx_ir as ir

RANGES = "pkg.torch.export.ExportedProgram.range_constraints"
_RANGE = re.compile(r"\b(s\d+): VR\[(\d{1,19}), (\d{1,19}|int_oo|oo)\]")
_TAKEN_FOR_GRANTED = 2
_UNBOUNDED = 1 << 62
"""Bound from which a size counts as unbounded: older versions of PyTorch write 2^63 - 2 for infinity."""


def attach(model: ir.Model) -> None:
    """Attach the guards to the model's metadata, unless it already has conditions, which say more."""
    ranges = _RANGE.findall(model.graph.metadata_props.get(RANGES, ""))
    if KEY in model.metadata_props or not ranges:
        return
    names = _names_of_sizes(model)
    placed = {symbol: symbol for symbol, *_ in ranges if symbol in names}
    renamed = [symbol for symbol, *_ in ranges if symbol not in placed]
    free = [name for name in names if name not in placed]
    if len(renamed) == len(free):
        placed |= dict(zip(renamed, free, strict=True))
    guards, unchecked = [], []
    for symbol, least, most in ranges:
        text = _condition(placed.get(symbol, symbol), int(least), int(most) if most.isdigit() else _UNBOUNDED)
        if text is not None:
            (guards if symbol in placed and _is_guard(text) else unchecked).append(text)
    Conditions(tuple(guards), unchecked=tuple(unchecked)).attach(model)


def _names_of_sizes(model: ir.Model) -> list[str]:
    shapes = [spec.shape for spec in tensor_specs(model.graph.inputs)]
    bound = bound_names(shapes)
    return list(dict.fromkeys(name for shape in shapes for size in shape for name in size_names(size) if name in bound))


def _condition(name: str, least: int, most: int) -> str | None:
    """Write a range as a guard. Returns None for a range that excludes no size."""
    if least == most:
        return f"{name} == {least}"
    lower = f"{least} <= " if least > _TAKEN_FOR_GRANTED else ""
    upper = f" <= {most}" if most < _UNBOUNDED else ""
    return f"{lower}{name}{upper}" if lower or upper else None


def _is_guard(text: str) -> bool:
    try:
        parse_guard(text)
    except ValueError:  # a name that is a keyword of the language
        return False
    return True

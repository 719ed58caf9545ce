"""The ranges of sizes that PyTorch writes into the ONNX files it exports, as guards.

Tracing takes one way through a module, and what that way rests on (:mod:`moec.frontend.torch_guards`) is lost in a
file, but for the ranges of symbols, which ``torch.onnx.export(dynamo=True)`` keeps in the metadata of the graph:
``{s10: VR[0, int_oo], s21: VR[2, 16]}`` (``torch/onnx/_internal/exporter/_core.py``).

1. ``s21: VR[2, 16]`` becomes the guard ``s21 <= 16``, and ``VR[8, 8]`` becomes ``s21 == 8``. That a size is at least 1
   or 2 is no guard: PyTorch takes it for granted, and who asks for it (``is_causal = length > 1``) seldom means it.
2. Where sizes were renamed (``dynamic_shapes=({1: "seq"},)``), symbols stand for the names of the inputs' sizes in
   their order, in which torch.export lists them. Symbols of values (``u0``) have no place among them.
3. A range whose place is not known is said, for nobody checks it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from moec.common.guards import bound_names, parse_guard, size_names
from moec.common.specs import tensor_specs
from moec.frontend.conditions import KEY, Conditions

if TYPE_CHECKING:
    import onnx_ir as ir

RANGES = "pkg.torch.export.ExportedProgram.range_constraints"
_RANGE = re.compile(r"\b(s\d+): VR\[(\d{1,19}), (\d{1,19}|int_oo|oo)\]")
_TAKEN_FOR_GRANTED = 2
_UNBOUNDED = 1 << 62
"""Older versions of PyTorch write 2^63 - 2 for infinity."""


def attach(model: ir.Model) -> None:
    """Put the guards into the model's metadata, where there are no conditions yet, which would say more."""
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
    """As guards are written; None where every size will do."""
    if least == most:
        return f"{name} == {least}"
    lower = f"{least} <= " if least > _TAKEN_FOR_GRANTED else ""
    upper = f" <= {most}" if most < _UNBOUNDED else ""
    return f"{lower}{name}{upper}" if lower or upper else None


def _is_guard(text: str) -> bool:
    try:
        parse_guard(text)
    except ValueError:  # a name that is a word of the language
        return False
    return True

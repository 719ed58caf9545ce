"""Names of dynamic sizes, changed where passes could not compute with them.

In ONNX the name of a size is any text. Passes read it as an expression, because exporters also write ``past + 1``. Thus
``batch-size`` would be a difference of two sizes that no input has, and ``batch size`` no expression at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set

import onnx_ir as ir

LONGEST = 100
"""Characters of a name: a message may have to hold several."""


def name_sizes(model: ir.Model, kept: Set[str] = frozenset()) -> None:
    """Rename sizes that are neither a name nor an expression of such names: ``batch-size`` becomes ``batch_size``.
    Names that are too long for a message change, too. ``kept`` are names whatever they look like."""
    values = [value for value in _values(model) if value.shape is not None]
    dims = (dim for value in values for dim in value.shape or () if isinstance(dim, ir.SymbolicDim))
    texts = {dim.value for dim in dims if dim.value is not None}
    names_in = {text: _names_in(text) for text in sorted(texts)}
    names = {text for text, inside in names_in.items() if inside == {text} and len(text) <= LONGEST} | kept
    renamed: dict[str, str] = {}
    for text, inside in names_in.items():
        if inside is None or not inside <= names:
            renamed[text] = _unused(
                re.sub(r"\W+", "_", text if text[:1] and not text[:1].isdigit() else f"size_{text}")[:LONGEST], names
            )
            names.add(renamed[text])
    for value in values if renamed else ():
        value.shape = ir.Shape([_renamed(dim, renamed) for dim in value.shape or ()])


def rename_sizes(model: ir.Model, names: Mapping[str, str]) -> None:
    """Rename sizes of a model, inside expressions, too. No size may have one of the new names yet."""
    for value in _values(model):
        if value.shape is not None:
            dims = (dim if isinstance(dim, int) else dim.value for dim in value.shape)
            value.shape = ir.Shape([renamed(dim, names) if isinstance(dim, str) else dim for dim in dims])


def renamed(text: str, names: Mapping[str, str]) -> str:
    """Rename the sizes in an expression or condition."""
    return re.sub(r"[^\W\d]\w*", lambda name: names.get(name[0], name[0]), text)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        for node in graph:
            yield from node.outputs


def _names_in(text: str) -> set[str] | None:
    """Collect the names in an expression. Returns None where the text is not an expression."""
    try:
        parsed = ir.SymbolicDim(text)._expr
    except (ValueError, ZeroDivisionError):
        return None
    return None if parsed is None else {symbol.name for symbol in parsed.free_symbols}


def _unused(name: str, names: set[str]) -> str:
    while name in names:
        name += "_"
    return name


def _renamed(dim: int | ir.SymbolicDim, renamed: dict[str, str]) -> int | str | None:
    return dim if isinstance(dim, int) else renamed.get(dim.value or "", dim.value)

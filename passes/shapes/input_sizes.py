"""Sizes of a model's inputs that follow from others: the length of an attention mask, say, is past plus new tokens.

Exporters name every dynamic size and leave their relations open. The operators of the model imply them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moec.ir.movement import moving

if TYPE_CHECKING:
    import onnx_ir as ir
    import sympy

    from moec.passes.shapes.symbolic import SymbolicValues

_COMPLETE = moving(drops=False)


def input_sizes(model: ir.Model) -> dict[str, str]:
    """Names of sizes, each with the name or sum of names that it is for sensible inputs (``past + new``). A sum begins
    with the length of what came before, a cache.

    1. An axis that Gather or GatherND reads at every position from 0 to n - 1 has size n.
    2. The total length that GroupQueryAttention is told is that of its cache and its query. (It may be less for a cache
       with room: then the cache need not grow.)
    """
    from moec.ir import shapes
    from moec.passes.shapes.symbolic import SymbolicValues, shape_of

    declared = {str(dim) for value in model.graph.inputs for dim in shape_of(value) or [] if dim.is_Symbol}
    if len(declared) < 2:
        return {}
    model, values = model.clone(), SymbolicValues()
    shapes.infer(model)
    returned = {str(dim) for value in model.graph.outputs for dim in shape_of(value) or []}
    sums: dict[str, str] = {}
    for node in model.graph:
        for name, size in (*_read_axes(node, values), *_totals(node, values)):
            terms = _terms(size, returned)
            others = declared - {str(name)}
            if str(name) in declared and all(term in others or term.isdigit() for term in terms):
                sums.setdefault(str(name), " + ".join(terms))
    return {name: size for name, size in sums.items() if not sums.keys() & set(size.split(" + "))}


def _terms(size: sympy.Expr, returned: set[str]) -> list[str]:
    """The names that add up to a size; those that are the size of an output come last, for caches only grow."""
    terms = size.args if size.is_Add else (size,)
    return sorted(map(str, terms), key=lambda name: (name in returned, name))


def _read_axes(node: ir.Node, values: SymbolicValues) -> Iterator[tuple[sympy.Expr, sympy.Expr]]:
    """Sizes of the axes that a node reads at all positions below some number, each with that number."""
    from moec.passes.shapes.symbolic import shape_of

    if node.domain != "" or node.op_type not in ("Gather", "GatherND"):
        return
    data, indices = node.inputs
    dims = None if data is None else shape_of(data)
    if dims is None or indices is None:
        return
    if node.op_type == "Gather":
        first, counts = node.attributes.get_int("axis", 0), [_count(indices, values)]
    else:
        first, counts = node.attributes.get_int("batch_dims", 0), _counts_of_columns(indices, values)
    for axis, count in enumerate(counts, start=first):
        if count is not None and -len(dims) <= axis < len(dims):
            yield dims[axis], count


def _counts_of_columns(indices: ir.Value, values: SymbolicValues) -> list[sympy.Expr | None]:
    """:func:`_count` of each column of GatherND's indices; none where they are not columns side by side."""
    node = indices.producer()
    if node is None or node.op_type != "Concat" or indices.shape is None:
        return []
    is_last = node.attributes["axis"].as_int() in (-1, len(indices.shape) - 1)
    columns = node.inputs if is_last else ()
    if any(column is None or column.shape is None or column.shape[-1] != 1 for column in columns):
        return []
    return [_count(column, values) for column in columns if column is not None]


def _count(value: ir.Value, values: SymbolicValues) -> sympy.Expr | None:
    """n, for a tensor that holds the numbers from 0 to n - 1 in any arrangement."""
    node = value.producer()
    while node is not None and node.op_type in _COMPLETE and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "Range":
        return None
    start, limit, step = (_number(value, values) for value in node.inputs)
    return limit if start == 0 and step == 1 else None


def _number(value: ir.Value | None, values: SymbolicValues) -> sympy.Expr | None:
    """The one number of a tensor, where it is known."""
    import sympy

    array = values.of(value)
    return None if array is None or array.size != 1 else sympy.sympify(array.item())


def _totals(node: ir.Node, values: SymbolicValues) -> Iterator[tuple[sympy.Expr, sympy.Expr]]:
    """Total length in the input of GroupQueryAttention, with its value for a cache without room."""
    from moec.passes.shapes.symbolic import shape_of

    if (node.domain, node.op_type) != ("com.microsoft", "GroupQueryAttention") or len(node.inputs) <= 6:
        return
    query, cache = (None if value is None else shape_of(value) for value in (node.inputs[0], node.inputs[3]))
    total = _number(node.inputs[6], values)
    if query is not None and len(query) == 3 and cache is not None and len(cache) == 4 and total is not None:
        yield total, cache[2] + query[1]

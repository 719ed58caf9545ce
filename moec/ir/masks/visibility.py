"""The keys that an Attention's mask shows to each query: those up to its own, a window of these, or others."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import sympy

from moec.ir.masks.choices import hiding
from moec.ir.masks.conditions import IndexCondition, Origin
from moec.ir.masks.elements import EitherNumber, TensorElements, known_sizes

_MASK, _PAST, _LENGTHS = 3, 4, 6


@dataclasses.dataclass(frozen=True)
class Axes:
    """The indices of a score, of a batch entry, a head, a query and a key, and their sizes."""

    batch: sympy.Symbol
    head: sympy.Symbol
    query: sympy.Symbol
    key: sympy.Symbol
    sizes: tuple[sympy.Expr, ...]

    @property
    def all(self) -> tuple[sympy.Symbol, ...]:
        return self.batch, self.head, self.query, self.key

    @property
    def queries(self) -> sympy.Expr:
        return self.sizes[2]

    @property
    def keys(self) -> sympy.Expr:
        return self.sizes[3]

    def are_of(self, origin: Origin) -> bool:
        """Whether the tensor of an origin broadcasts to the scores, so that its element of each score is the one at
        the origin's place."""
        sizes = known_sizes(origin.value)
        if sizes is None or len(sizes) > len(self.all):
            return False
        behind = len(self.all) - len(sizes)
        return all(
            size == 1 or (index == own and sympy.expand(size - own_size) == 0)
            for size, index, own, own_size in zip(
                sizes, origin.place, self.all[behind:], self.sizes[behind:], strict=True
            )
        )


@dataclasses.dataclass(frozen=True)
class Mask:
    """A mask that shows a key to a query where all ``conditions`` hold, and else adds ``hidden`` to the score."""

    axes: Axes
    conditions: tuple[IndexCondition, ...]
    hidden: float


def axes_of(node: ir.Node, elements: TensorElements) -> Axes | None:
    """The axes of an Attention's scores; None where a size is not known."""
    sizes = [None if value is None else known_sizes(value) for value in node.inputs[:2]]
    query, key = (*sizes, None, None)[:2]
    if query is None or key is None or len(query) != len(key) or len(query) not in (3, 4):
        return None
    heads = query[1] if len(query) == 4 else sympy.Integer(node.attributes.get_int("q_num_heads", 0))
    past = _operand(node, _PAST)
    before = sympy.S.Zero if past is None else (known_sizes(past) or [None] * 4)[2]
    if before is None:
        return None
    counts = (query[0], heads, query[-2], sympy.expand(key[-2] + before))
    batch, head, row, column = (elements.score_axis(label, size) for label, size in zip("bhqk", counts, strict=True))
    return Axes(batch, head, row, column, counts)


def mask_of(node: ir.Node, elements: TensorElements) -> Mask | None:
    """The mask of an Attention that has one; None where it is not known to show or hide each key."""
    axes = axes_of(node, elements)
    if axes is None:
        return None
    element = elements.operand(_operand(node, _MASK), axes.all, list(axes.sizes))
    if isinstance(element, IndexCondition):
        return Mask(axes, element.conjuncts, float("-inf"))
    numbers = hiding(element) if isinstance(element, EitherNumber) else None
    return None if numbers is None else Mask(axes, numbers.condition.conjuncts, numbers.no)


def own_offset(node: ir.Node, elements: TensorElements, axes: Axes) -> sympy.Expr | None:
    """The difference between the place of the last key that a causal Attention shows to a query, and the query's; None
    where it is not known. The standard counts it from the first key, the past, or the keys in use."""
    lengths, past = _operand(node, _LENGTHS), _operand(node, _PAST)
    if lengths is not None:
        used = elements.number(lengths, (axes.batch,))
        return None if used is None else sympy.expand(used - axes.queries)
    sizes = None if past is None else known_sizes(past)
    if past is not None:
        return None if sizes is None else sizes[2]
    return sympy.S.Zero


def uses_all_keys(node: ir.Node, elements: TensorElements) -> bool:
    """Whether an Attention has no lengths, or its lengths are surely the number of its keys."""
    lengths, axes = _operand(node, _LENGTHS), axes_of(node, elements)
    if lengths is None:
        return True
    used = None if axes is None else elements.number(lengths, (axes.batch,))
    return axes is not None and used is not None and sympy.expand(used - axes.keys) == 0


def causal_offset(condition: IndexCondition, axes: Axes) -> sympy.Expr | None:
    """c of a condition ``key <= query + c``, which may differ between batch entries; None for any other condition."""
    if condition.kind != "reach":
        return None
    rest = sympy.expand(condition.number - axes.query + axes.key)
    return None if rest.has(axes.query, axes.key, axes.head) else rest


def window_of(condition: IndexCondition, axes: Axes, offset: sympy.Expr) -> int | None:
    """W of a condition ``key > query + offset - W``, the last W keys up to that of the query; None for any other."""
    if condition.kind != "reach":
        return None
    size = sympy.expand(condition.number + axes.query - axes.key + offset + 1)
    return int(size) if size.is_Integer and size >= 1 else None


@dataclasses.dataclass(frozen=True)
class Window:
    """The window of a causal Attention: each query sees the last ``size`` of the keys up to its own, all if 0.
    ``is_alone``: whether the mask says nothing else."""

    size: int = 0
    is_alone: bool = False


def read_window(node: ir.Node, elements: TensorElements) -> Window:
    """The window that an Attention's mask holds, if it hides keys by False or -inf: other numbers hide none where they
    hide all."""
    if not node.attributes.get_int("is_causal", 0) or _operand(node, _MASK) is None:
        return Window()
    mask = mask_of(node, elements)
    offset = None if mask is None else own_offset(node, elements, mask.axes)
    if mask is None or offset is None or mask.hidden > float("-inf"):
        return Window()
    sizes = [window_of(condition, mask.axes, offset) for condition in mask.conditions]
    windows = [size for size in sizes if size is not None]
    return Window(min(windows, default=0), bool(windows) and None not in sizes)


def read_order(node: ir.Node, elements: TensorElements) -> Window | None:
    """The window of an Attention with neither past nor lengths whose mask shows each query the keys up to its own,
    where the last query belongs to the last key; None for any other mask. Hidden keys may be hidden by any number."""
    mask = mask_of(node, elements)
    if mask is None:
        return None
    offset = sympy.expand(mask.axes.keys - mask.axes.queries)
    rest = [condition for condition in mask.conditions if causal_offset(condition, mask.axes) != offset]
    if len(rest) == len(mask.conditions):
        return None
    sizes = [window_of(condition, mask.axes, offset) for condition in rest]
    return Window(min((size for size in sizes if size is not None), default=0), None not in sizes)


def _operand(node: ir.Node, position: int) -> ir.Value | None:
    return node.inputs[position] if position < len(node.inputs) else None

"""Rules of operators for sequences (:mod:`moec.ir.sequence_cuts`): how results are cut, given the cuts of operands.

A node without a rule, or whose operands do not fit it, may combine sequences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx_ir as ir

from moec.ir import dialect
from moec.ir.dialect import RouteSpec
from moec.ir.graphs import is_op
from moec.ir.last_tokens import ELEMENTWISE
from moec.ir.sequence_cuts import SAME, SIZES, SequenceCut, Use, known_shape
from moec.ir.sequence_places import chosen_rows, first_rows, own_rows

Rule = Callable[[Use], SequenceCut | None]


def cut_of_results(use: Use) -> SequenceCut | None:
    """Find how all results of a node are cut; None where it may combine sequences, or their shapes are not known."""
    node = use.node
    rule = _RULES.get(node.domain, {}).get(node.op_type)
    has_graphs = any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values())
    shapes = [known_shape(value) for value in node.outputs]
    if rule is None or has_graphs or None in shapes:
        return None
    cut = rule(use)
    is_inside = cut is None or all(cut.axis < max(1, len(shape or ())) for shape in shapes)
    return cut if is_inside else None


def _aligned(use: Use) -> SequenceCut | None:
    """Functions of single elements, with broadcasting: operands are cut along one axis, counted from the last."""
    kinds = {cut.kind for cut in use.cuts}
    if kinds <= {"same", "sizes"}:
        return SIZES
    if use.node.op_type in ("Cast", "Identity"):
        is_exact = use.node.outputs[0].dtype in (ir.DataType.INT32, ir.DataType.INT64)
        return use.first if use.first.kind == "cut" or is_exact else None
    if "numbers" in kinds or "first rows" in kinds:
        return {"Mul": first_rows, "Add": own_rows}.get(use.node.op_type, lambda _: None)(use)
    cut = _from_the_last(use, len(use.output)) if kinds <= {"same", "cut"} else None
    if cut is not None:
        counted = [use.shape(place)[own.axis] for place, own in enumerate(use.cuts) if own.kind == "cut"]
        use.sizes.learn(use.output[cut.axis], counted)
    return cut


def _from_the_last(use: Use, rank: int) -> SequenceCut | None:
    """The common axis of operands that are cut, of which the others have one element."""
    pairs = [(cut, use.shape(place)) for place, cut in enumerate(use.cuts) if use.node.inputs[place] is not None]
    places = {cut.axis - len(shape) for cut, shape in pairs if cut.kind == "cut"}
    if len(places) != 1:
        return None
    (place,) = places
    is_alone = all(cut.kind == "cut" or len(shape) < -place or shape[place] == 1 for cut, shape in pairs)
    return SequenceCut("cut", rank + place) if is_alone else None


def _matmul(use: Use) -> SequenceCut | None:
    rank = len(use.output)
    (left, right), ranks = use.cuts, [len(use.shape(0)), len(use.shape(1))]
    if not {left.kind, right.kind} <= {"same", "cut"} or min(ranks) < 2:
        return None
    if right == SAME and left.axis == ranks[0] - 2:
        return SequenceCut("cut", rank - 2)
    if left == SAME and right.axis == ranks[1] - 1:
        return SequenceCut("cut", rank - 1)
    is_batch = all(cut == SAME or cut.axis < size - 2 for cut, size in zip(use.cuts, ranks, strict=True))
    return _from_the_last(use, rank) if is_batch else None


def _gemm(use: Use) -> SequenceCut | None:
    is_plain = not use.node.attributes.get_int("transA", 0) and use.first == SequenceCut("cut", 0)
    return use.first if is_plain and use.only_first() else None


def _einsum(use: Use) -> SequenceCut | None:
    text = use.node.attributes.get_string("equation", "").replace(" ", "")
    operands, _, result = text.partition("->")
    terms = operands.split(",")
    if "." in text or not result or len(terms) != len(use.cuts) or any(c.kind not in ("same", "cut") for c in use.cuts):
        return None
    letters = {term[cut.axis] for term, cut in zip(terms, use.cuts, strict=True) if cut.kind == "cut"}
    others = {letter for term, cut in zip(terms, use.cuts, strict=True) if cut == SAME for letter in term}
    if len(letters) != 1 or letters & others:
        return None
    place = result.find("".join(letters))
    return None if place < 0 else SequenceCut("cut", place)


def _along(default: int | None) -> Rule:
    """Operators that combine elements along one axis, ``default`` of the attribute or, for None, that of an operand."""

    def rule(use: Use) -> SequenceCut | None:
        rank = len(use.shape(0))
        axes = use.integers(1) if default is None else [use.axis(default, rank)]
        if use.first.kind != "cut" or not use.only_first() or axes is None:
            return None
        axis = axes[0] % max(1, rank)
        is_dropped = len(use.output) < rank
        return (
            None
            if axis == use.first.axis
            else SequenceCut("cut", use.first.axis - (is_dropped and axis < use.first.axis))
        )

    return rule


def _normalize(use: Use) -> SequenceCut | None:
    is_inside = use.axis(-1, len(use.shape(0))) > use.first.axis
    return use.first if use.first.kind == "cut" and is_inside and use.only_first() else None


def _reduce(use: Use) -> SequenceCut | None:
    rank, axes = len(use.shape(0)), use.integers(1, "axes")
    if use.first.kind != "cut" or not axes:
        return None
    reduced = {axis % rank for axis in axes}
    if use.first.axis in reduced:
        return None
    dropped = 0 if len(use.output) == rank else sum(axis < use.first.axis for axis in reduced)
    return SequenceCut("cut", use.first.axis - dropped)


def _attention(use: Use) -> SequenceCut | None:
    """Queries, keys, values and states are [sequences, ...]; a mask may be the same for all of them."""
    mask = use.cuts[3] if len(use.cuts) > 3 else SAME
    others = [cut for place, cut in enumerate(use.cuts) if place != 3 and use.node.inputs[place] is not None]
    fits = mask == SAME or (mask == SequenceCut("cut", 0) and len(use.shape(3)) == 4)
    return SequenceCut("cut", 0) if fits and all(cut == SequenceCut("cut", 0) for cut in others) else None


def _images(use: Use) -> SequenceCut | None:
    """Operators that treat each entry [n] of their first operand [n, channels, ...] alone."""
    is_trained = use.node.attributes.get_int("training_mode", 0)
    return use.first if use.first == SequenceCut("cut", 0) and use.only_first() and not is_trained else None


def _rows(use: Use) -> SequenceCut | None:
    """Operators of the dialect that treat each row alone. Experts that choose tokens, and a capacity, look at all."""
    if dialect.is_moec(use.node, "Route") or dialect.is_moec(use.node, "MoE"):
        spec = dialect.spec_of(use.node, RouteSpec)
        if spec.selection == "expert_choice" or spec.capacity:
            return None
    cuts = {cut for cut in use.cuts if cut != SAME}
    is_row = all(
        cut == SAME or cut.axis < len(use.shape(place)) - 1 or dialect.is_moec(use.node, "ReceiveRows")
        for place, cut in enumerate(use.cuts)
    )
    (cut,) = cuts if len(cuts) == 1 else (SIZES,)
    return cut if cut.kind == "cut" and is_row else None


def _transpose(use: Use) -> SequenceCut | None:
    rank = len(use.shape(0))
    order = list(use.node.attributes.get_ints("perm", range(rank - 1, -1, -1)))
    return SequenceCut(use.first.kind, order.index(use.first.axis)) if use.first.kind in ("cut", "numbers") else None


def _reshape(use: Use) -> SequenceCut | None:
    """Elements keep their order: as many are in front of the axis as before."""
    if use.first.kind in ("same", "sizes"):
        return SIZES if use.first == SIZES and use.only_shaped() else None
    if use.first.kind == "places" or not use.only_shaped():
        return None
    front = use.sizes.product(use.shape(0)[: use.first.axis])
    unknown = [axis for axis, size in enumerate(use.output) if use.sizes.is_unknown(size)]
    axes = [axis for axis, size in enumerate(use.output) if use.sizes.counts(size) and axis not in unknown]
    is_cut = len(axes) == 1 and use.sizes.is_cut(use.output[axes[0]])
    # One unknown size follows from the others, none of which depends on the number of sequences.
    if not is_cut or len(unknown) > 1 or use.sizes.product(use.output[: axes[0]]) != front:
        return None
    return dataclasses.replace(use.first, axis=axes[0])


def _repeated(use: Use) -> SequenceCut | None:
    """Results with equal elements for all sequences, one part for each along the axis whose size counts them."""
    axes = [axis for axis, size in enumerate(use.output) if use.sizes.counts(size)]
    if not axes:
        return SAME
    return SequenceCut("cut", axes[0]) if len(axes) == 1 and use.sizes.is_cut(use.output[axes[0]]) else None


def _expand(use: Use) -> SequenceCut | None:
    if not use.only_shaped():
        return None
    if use.first == SAME:
        return _repeated(use)
    axis = use.first.axis + len(use.output) - len(use.shape(0))
    if use.first.kind == "sizes":
        return SIZES if not any(map(use.sizes.counts, use.output)) else None
    others = [size for place, size in enumerate(use.output) if place != axis]
    is_kept = use.output[axis] == use.shape(0)[use.first.axis] and not any(map(use.sizes.counts, others))
    return dataclasses.replace(use.first, axis=axis) if is_kept else None


def _squeeze(use: Use) -> SequenceCut | None:
    if use.first.kind in ("same", "sizes"):
        return SIZES if use.first == SIZES else None
    if not use.only_first() or use.first.kind == "places":
        return None
    rank, axes = len(use.shape(0)), use.integers(1, "axes")
    if axes is None or use.first.axis in (dropped := {axis % rank for axis in axes}):
        return None
    return dataclasses.replace(use.first, axis=use.first.axis - sum(axis < use.first.axis for axis in dropped))


def _unsqueeze(use: Use) -> SequenceCut | None:
    if use.first.kind in ("same", "sizes"):
        return SIZES if use.first == SIZES else None
    axes = use.integers(1, "axes")
    if axes is None or use.first.kind == "places":
        return None
    added = {axis % len(use.output) for axis in axes}
    kept = [axis for axis in range(len(use.output)) if axis not in added]
    return dataclasses.replace(use.first, axis=kept[use.first.axis])


def _slice(use: Use) -> SequenceCut | None:
    if use.first.kind in ("same", "sizes"):
        return SIZES if use.only_shaped() else None
    rank, axes = len(use.shape(0)), use.integers(3)
    if use.first.kind != "cut" or not use.only_first() or axes is None:
        return None
    return None if use.first.axis in {axis % rank for axis in axes} else use.first


def _concat(use: Use) -> SequenceCut | None:
    if {cut.kind for cut in use.cuts} <= {"same", "sizes"}:
        return SIZES
    rank = len(use.output)
    axis, (cut, *others) = use.axis(0, rank), use.cuts
    if axis == cut.axis or any(other.kind not in ("cut", "numbers") or other.axis != cut.axis for other in use.cuts):
        return None
    if cut.kind == "numbers":
        return SequenceCut("places", cut.axis) if axis == rank - 1 and use.shape(0)[-1] == 1 and others else None
    return cut if all(other.kind == "cut" for other in others) else None


def _split(use: Use) -> SequenceCut | None:
    is_whole = use.axis(0, len(use.shape(0))) != use.first.axis
    return use.first if use.first.kind == "cut" and is_whole and use.only_first() else None


def _gather(use: Use) -> SequenceCut | None:
    data, places = use.cuts[:2]
    rank, axis = len(use.shape(0)), use.axis(0, len(use.shape(0)))
    if data.kind in ("same", "sizes") and places.kind in ("same", "sizes"):
        return _chosen_sizes(use)
    if data == SAME and places.kind == "cut":
        return SequenceCut("cut", axis + places.axis)
    if places.kind == "rows":
        return chosen_rows(use)
    if data.kind != "cut" or places != SAME or axis == data.axis:
        return None
    return SequenceCut("cut", data.axis if data.axis < axis else data.axis + len(use.output) - rank)


def _chosen_sizes(use: Use) -> SequenceCut:
    """Some sizes of a value."""
    whole, places = use.node.inputs[0], use.integers(1)
    shape = whole.producer() if whole is not None else None
    sizes = known_shape(shape.inputs[0]) if is_op(shape, "Shape") and not shape.attributes else None
    if sizes is None or places is None or not all(-len(sizes) <= place < len(sizes) for place in places):
        return SIZES
    return SIZES if any(use.sizes.counts(sizes[place]) for place in places) else SAME


def _gather_nd(use: Use) -> SequenceCut | None:
    data, places = use.cuts
    batch, rank = use.node.attributes.get_int("batch_dims", 0), len(use.shape(1))
    if places.axis >= rank - 1:
        return None
    if batch:
        is_batch = data == places and data.kind == "cut" and data.axis < batch
        return data if is_batch else None
    if data == SAME and places.kind == "cut":
        return places
    is_numbered = data == SequenceCut("cut", 0) and use.sizes.is_count(use.shape(0)[0]) and places.kind == "places"
    return SequenceCut("cut", places.axis) if is_numbered else None


def _elements_along(use: Use) -> SequenceCut | None:
    """GatherElements and ScatterElements: places are along one axis, and operands have each sequence at the same."""
    is_alike = len(set(use.cuts)) == 1 and use.first.kind == "cut"
    return use.first if is_alike and use.axis(0, len(use.shape(0))) != use.first.axis else None


def _scatter_nd(use: Use) -> SequenceCut | None:
    """Slices of data at the same places for all sequences, or at those of each."""
    data, places, updates = use.cuts
    before, depth = len(use.shape(1)) - 1, use.shape(1)[-1]
    if places.kind == "places" and updates == SequenceCut("cut", places.axis) and places.axis < before:
        return data if data == SequenceCut("cut", 0) and use.sizes.is_count(use.shape(0)[0]) else None
    if data.kind != "cut" or places != SAME or not isinstance(depth, int) or data.axis < depth:
        return None
    return data if updates == SequenceCut("cut", data.axis - depth + before) else None


def _one_hot(use: Use) -> SequenceCut | None:
    is_last = use.node.attributes.get_int("axis", -1) in (-1, len(use.shape(0)))
    return use.first if use.first.kind == "cut" and is_last and use.only_first() else None


def _beside(use: Use) -> SequenceCut | None:
    """Operators on [sequences, ...] whose other operands, such as tables of angles, are the same for all sequences or
    [sequences, ...], too."""
    others = [cut for value, cut in zip(use.node.inputs[1:], use.cuts[1:], strict=True) if value is not None]
    return use.first if use.first == SequenceCut("cut", 0) and all(cut in (SAME, use.first) for cut in others) else None


def _shape_of(use: Use) -> SequenceCut | None:
    attributes, rank = use.node.attributes, len(use.shape(0))
    chosen = use.shape(0)[attributes.get_int("start", 0) : attributes.get_int("end", rank)]
    return SIZES if known_shape(use.node.inputs[0]) is None or any(map(use.sizes.counts, chosen)) else SAME


def _range(use: Use) -> SequenceCut | None:
    if not all(cut.kind in ("same", "sizes") for cut in use.cuts):
        return None
    is_number = use.integers(0) == [0] and use.integers(2) == [1] and use.sizes.is_count(use.output[0])
    return SequenceCut("numbers", 0) if is_number else None


def _filled(use: Use) -> SequenceCut | None:
    return _repeated(use) if use.first == SIZES else None


def _pad(use: Use) -> SequenceCut | None:
    rank, axis = len(use.shape(0)), use.first.axis
    axes = use.integers(3) or list(range(rank))
    if use.first.kind != "cut" or not use.only_first():
        return None
    if axis not in (padded := [axis % rank for axis in axes]):
        return use.first
    widths = use.known_integers(1, "pads")
    place = padded.index(axis)
    return use.first if len(widths) == 2 * len(padded) and widths[place] == widths[place + len(padded)] == 0 else None


def _tile(use: Use) -> SequenceCut | None:
    repeats = use.integers(1)
    is_kept = use.first.kind == "cut" and repeats is not None and repeats[use.first.axis] == 1
    return use.first if is_kept else None


def _triangle(use: Use) -> SequenceCut | None:
    is_outside = use.first.kind == "cut" and use.first.axis < len(use.shape(0)) - 2
    return use.first if is_outside and use.only_first() else None


def _rules() -> dict[str, dict[str, Rule]]:
    """Rules by domain and operator."""
    elementwise = ELEMENTWISE | {
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "CastLike",
        "Identity",
        "IsInf",
        "IsNaN",
    }
    reductions = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    plain: dict[str, Rule] = dict.fromkeys(elementwise, _aligned)
    plain |= {f"Reduce{name}": _reduce for name in reductions}
    plain |= dict.fromkeys(("ArgMax", "ArgMin"), _along(0))
    plain |= dict.fromkeys(("Hardmax", "LogSoftmax", "LpNormalization", "Softmax", "TopK"), _along(-1))
    plain |= dict.fromkeys(("LayerNormalization", "RMSNormalization"), _normalize)
    images = ("AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "GlobalAveragePool", "GlobalMaxPool")
    plain |= dict.fromkeys((*images, "GroupNormalization", "InstanceNormalization"), _images)
    plain |= {"CumSum": _along(None), "MatMul": _matmul, "Gemm": _gemm, "Einsum": _einsum, "Attention": _attention}
    plain |= {"Transpose": _transpose, "Reshape": _reshape, "Flatten": _reshape, "Expand": _expand, "Squeeze": _squeeze}
    plain |= {"Unsqueeze": _unsqueeze, "Slice": _slice, "Concat": _concat, "Split": _split, "Gather": _gather}
    plain |= {"GatherND": _gather_nd, "GatherElements": _elements_along, "ScatterElements": _elements_along}
    plain |= {"ScatterND": _scatter_nd, "OneHot": _one_hot, "RotaryEmbedding": _beside, "TensorScatter": _beside}
    plain |= {"Shape": _shape_of, "Size": _shape_of, "Range": _range, "ConstantOfShape": _filled}
    plain |= {"Pad": _pad, "Tile": _tile, "Trilu": _triangle}
    rows = ("Combine", "Expect", "Experts", "Linear", "MoE", "ReceiveRows", "ReturnRows", "RoundRows", "Route")
    own: dict[str, Rule] = dict.fromkeys((*rows, "SendRows"), _rows)
    own["Absent"] = lambda _: SAME  # experts change places on request alone, which several ranks refuse
    return {"": plain, dialect.DOMAIN: own}


_RULES = _rules()

"""Opset 24 Attention before any kernel: split heads, append new keys to past ones, and describe the static part."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import onnx_ir as ir
import tvm_ffi
from tvm import relax

from moec.common.errors import UnsupportedError
from moec.common.names import operator_name
from moec.ir.batches import SINKS
from moec.targets.tvm.heavy.attention_sinks import logits_by_head
from moec.targets.tvm.heavy.attention_windows import reading_mask
from moec.targets.tvm.lowering.attributes import attribute, optional_input, required_input
from moec.targets.tvm.lowering.context import LoweringContext
from moec.targets.tvm.lowering.nodes import refuse_outputs, reshape, transpose
from moec.targets.tvm.lowering.paged_tensors import BatchTensors, PagedTensor
from moec.targets.tvm.sizes.shapes import static_size

Causal = Literal["", "first", "last", "lengths"]
_TURN = [0, 2, 1, 3]
"""The order of axes that turns heads of queries into queries of heads, and back."""
Keys = relax.Expr | PagedTensor
"""Keys or values, in ordinary memory or in pages."""


@dataclasses.dataclass(frozen=True)
class AttentionProblem:
    """Static properties of an attention.

    ``heads_per_group``: query heads per head of keys and values. ``mask``: the type of the mask, if there is one: a
    float type is added to the scores, bool says which keys a query sees. ``mask_broadcast`` says for [batch, head,
    query] whether the mask has size 1 there. ``has_lengths``: whether an input gives the number of keys in use per
    batch. ``causal``: query i sees keys 0 to i + offset. The offset is 0 where the queries belong to the ``first``
    keys, P - S where they belong to the ``last``, and ``lengths[b]`` - S where they belong to the last keys in use.
    ``window`` > 0 hides from a query of a causal attention all keys except the last ``window`` ones that it sees.
    ``paged``: element type of keys and values in pages [pages, B, G, page, D]; "" where they are not in pages.
    ``has_sinks``: each head has one more logit, whose weight goes to no value.
    ``values_in_keys``: a value is the first ``value_size`` numbers of its key, which are not stored again (latents).
    ``sequences``: the batch is one of several sequences one behind the other, each with its own queries, pages and
    keys in use.
    ``query_major``: whether the result's axes are [B, S, H, Dv], so that the heads of a query are next to each other,
    instead of [B, H, S, Dv].
    ``softcap`` > 0 bounds scores to ``softcap * tanh(score / softcap)`` before the mask.
    """

    head_size: int
    value_size: int
    scale: float
    heads_per_group: int = 1
    causal: Causal = ""
    softcap: float = 0.0
    paged: str = ""
    mask: str = ""
    mask_broadcast: tuple[bool, bool, bool] = (True, True, True)
    has_lengths: bool = False
    has_sinks: bool = False
    window: int = 0
    sequences: bool = False
    query_major: bool = False
    values_in_keys: bool = False

    @property
    def value_row(self) -> int:
        """Numbers of a row in the tensor of values."""
        return self.head_size if self.values_in_keys else self.value_size


@dataclasses.dataclass(frozen=True)
class AttentionInputs:
    """Query [B, H, S, D], key [B, G, P, D] and value [B, G, P, Dv], past ones included, mask with four axes, the number
    of keys in use [B], how many keys are new, and sinks float32 [H]. Keys and values lie in pages both or neither.
    ``value_size``: where ``value`` is the keys, the number of their first columns that are values; else None."""

    query: relax.Expr
    key: Keys
    value: Keys
    mask: relax.Expr | None
    lengths: relax.Expr | None
    new_keys: Any
    sinks: relax.Expr | None = None
    batch: BatchTensors | None = None
    value_size: int | None = None

    @property
    def operands(self) -> list[relax.Expr | None]:
        """Query, key, value, mask, lengths and sinks, in the order in which kernels take them; None for a missing
        one."""
        keys = [tensor.pages if isinstance(tensor, PagedTensor) else tensor for tensor in (self.key, self.value)]
        sequences = [] if self.batch is None else [self.batch.spans, self.batch.table]
        return [self.query, *keys, self.mask, self.lengths, *sequences, self.sinks]


Attend = Callable[[LoweringContext, ir.Node, AttentionInputs, AttentionProblem, relax.TensorType], relax.Expr]
"""A target's converter: it returns the result of the given type, [B, S, H, Dv] if ``query_major``, else
[B, H, S, Dv]."""


def lower_attention(
    lowering: LoweringContext,
    node: ir.Node,
    attend: Attend,
    *,
    takes_sinks: bool = False,
    takes_windows: bool = False,
    takes_values_in_keys: bool = False,
) -> list[Keys]:
    """Result, present keys and present values. ``takes_sinks`` and ``takes_windows``: whether ``attend`` supports
    sinks and windows; without, both stay in the mask. ``takes_values_in_keys``: whether it reads values that are the
    first columns of keys in pages; without, both are gathered.

    Raises UnsupportedError for the scores as an output, for dynamic head sizes and counts, and for a causal mask over
    a cache to which more or fewer keys are added than there are queries.
    """
    refuse_outputs(node, 3)
    with reading_mask(lowering, node, takes_sinks=takes_sinks, takes_windows=takes_windows) as mask:
        window, sinks = mask.window, mask.sinks
        taken = takes_values_in_keys and sinks is None and optional_input(node, SINKS) is None
        inputs, present = _attention_inputs(
            lowering, mask.node, has_mask=not window.is_alone, takes_values_in_keys=taken
        )
    if sinks is not None:
        inputs, present = dataclasses.replace(inputs, sinks=logits_by_head(lowering, sinks.logits)), []
    is_turned = len(lowering.shape(required_input(node, 0))) == 3 or _is_only_turned(node.outputs[0])
    problem = dataclasses.replace(_attention_problem(node, inputs), window=window.size, query_major=is_turned)
    if mask.orders:  # the operator's own order would hide the sink
        problem = dataclasses.replace(problem, causal="last" if inputs.lengths is None else "lengths")
    if lowering.batch is not None:
        inputs, problem = _of_sequences(lowering, node, inputs, problem)
    batch, heads, queries, _ = inputs.query.ty.shape
    places = [queries, heads] if is_turned else [heads, queries]
    output = relax.TensorType([batch, *places, problem.value_size], str(inputs.query.ty.dtype))
    result = attend(lowering, node, inputs, problem, output)
    return [_in_rank_of_query(lowering, node, result, is_turned), *present]


def _is_only_turned(result: ir.Value) -> bool:
    """Whether every reader of a result [B, H, S, Dv] takes it as [B, S, H, Dv]."""
    users = [user for user, _ in result.uses()]
    turning = [operator_name(user) == "Transpose" and list(attribute(user, "perm", ())) == _TURN for user in users]
    return bool(users) and all(turning) and not result.is_graph_output()


def _of_sequences(
    lowering: LoweringContext, node: ir.Node, inputs: AttentionInputs, problem: AttentionProblem
) -> tuple[AttentionInputs, AttentionProblem]:
    """The attention of each sequence alone. Raises UnsupportedError for one that needs more than its own keys."""
    if problem.causal != "lengths" or not isinstance(inputs.key, PagedTensor) or problem.mask:
        raise UnsupportedError(
            "a batch of sequences needs attention over a cache in the causal order, with at most a window; "
            f"this one has {'a mask that says more' if problem.mask else 'another order, or no cache in pages'}"
        )
    logits = optional_input(node, SINKS)
    sinks = None if logits is None else logits_by_head(lowering, logits)
    assert lowering.batch is not None, "a batch of sequences"
    inputs = dataclasses.replace(inputs, batch=lowering.batch.of(inputs.key), sinks=sinks)
    return inputs, dataclasses.replace(problem, sequences=True, has_sinks=sinks is not None)


def _attention_inputs(
    lowering: LoweringContext, node: ir.Node, *, has_mask: bool = True, takes_values_in_keys: bool = False
) -> tuple[AttentionInputs, list[Keys]]:
    """Inputs of the attention, and the present keys and values: the past ones with the new ones appended."""
    query = _heads(lowering, node, 0, "q_num_heads")
    past_key, past_value, used = (optional_input(node, position) for position in (4, 5, 6))
    if past_key is not None and used is not None:
        raise UnsupportedError("it has both past_key and nonpad_kv_seqlen; the operator allows one of them")
    key = value = _with_past(lowering, node, 1, past_key)
    value_size = _columns_of_keys(node, key) if takes_values_in_keys else None
    present = [key]
    if value_size is None or past_value is not None:
        present.append(_with_past(lowering, node, 2, past_value))
    if value_size is None:
        value = present[1]
    if isinstance(key, PagedTensor) and isinstance(value, PagedTensor) and key.lies_as(value):
        lengths = lowering.filled(key, used if key.kept is None else None)  # with a window all keys are in use
    else:
        key, value = (_gathered(lowering, tensor) for tensor in (key, value))
        lengths = None if used is None else lowering.tensor(used)
    added = lowering.shape(required_input(node, 1))
    new_keys = added[2] if len(added) == 4 else added[1]
    mask = _mask(lowering, node, key) if has_mask else None
    if mask is not None and isinstance(key, PagedTensor):  # a kernel reads the mask of keys in use alone
        mask = lowering.ignoring_padding(mask if key.kept is None else lowering.last_entries(mask, key.kept))
    return AttentionInputs(query, key, value, mask, lengths, new_keys, value_size=value_size), present


def _in_rank_of_query(lowering: LoweringContext, node: ir.Node, result: relax.Expr, is_turned: bool) -> relax.Expr:
    """The result in the shape of the node's output: [B, S, H * Dv] where the query has rank 3, else [B, H, S, Dv]."""
    if len(lowering.shape(required_input(node, 0))) == 4:
        return transpose(lowering, result, _TURN) if is_turned else result
    batch, queries, heads, size = result.ty.shape
    return reshape(lowering, result, [batch, queries, heads * size])


def _columns_of_keys(node: ir.Node, key: Keys) -> int | None:
    """The number of columns of keys in pages that the values are, from the first one on; None for other values."""
    values = required_input(node, 2)
    split, shape = values.producer(), values.shape
    if not isinstance(key, PagedTensor) or split is None or operator_name(split) != "Split" or shape is None:
        return None
    is_first = values.index() == 0 and attribute(split, "axis", 0) in (-1, 3) and len(shape) == 4
    size = shape[3] if is_first and split.inputs[0] is required_input(node, 1) else None
    return size if isinstance(size, int) else None


def _heads(lowering: LoweringContext, node: ir.Node, position: int, count: str) -> relax.Expr:
    """An input as [B, heads, S, D]; a rank-3 input [B, S, heads * D] is split by the attribute ``count``."""
    tensor = lowering.tensor(required_input(node, position))
    shape = list(tensor.ty.shape)
    if len(shape) == 4:
        return tensor
    heads, width = attribute(node, count, 0), static_size(shape[2])
    if not heads or width is None or width % heads:
        raise UnsupportedError(
            f"input {position} of rank 3 cannot be split into {heads} heads; expected {count} to divide it"
        )
    split = reshape(lowering, tensor, [shape[0], shape[1], heads, width // heads])
    return transpose(lowering, split, _TURN)


def _with_past(lowering: LoweringContext, node: ir.Node, position: int, past: ir.Value | None) -> Keys:
    """Keys or values [B, G, P, D]: those of an input, appended to the past ones if there are any."""
    cached = lowering.paged(required_input(node, position))
    if past is None and cached is not None and len(cached.ty.shape) == 4:
        return cached
    new, before = _heads(lowering, node, position, "kv_num_heads"), lowering.paged(past)
    if past is None:
        return new
    if before is not None and before.continued in node.outputs:
        return lowering.appended(node, before, new)
    return lowering.convert_as("Concat", [past, lowering.value_of(new)], {"axis": 2})[0]


def _gathered(lowering: LoweringContext, tensor: Keys) -> relax.Expr:
    """The tensor in ordinary memory."""
    if not isinstance(tensor, PagedTensor):
        return tensor
    return lowering.compute(tensor.gathered(), [tensor.pages], "gathered")[0]


def _mask(lowering: LoweringContext, node: ir.Node, key: Keys) -> relax.Expr | None:
    """The mask as [B|1, H|1, S|1, L]."""
    operand = optional_input(node, 3)
    if operand is None:
        return None
    mask = lowering.tensor(operand)
    shape = list(mask.ty.shape)
    shape = [1] * (4 - len(shape)) + shape
    mask = reshape(lowering, mask, shape)
    if static_size(shape[3]) == 1 and static_size(key.ty.shape[2]) != 1:
        mask = lowering.broadcast_to(mask, [*shape[:3], key.ty.shape[2]])
    return mask


def _check_sizes(inputs: AttentionInputs) -> None:
    """Raises UnsupportedError where query, key and value are known not to belong together."""
    query, key, value = (
        [static_size(size) for size in tensor.ty.shape] for tensor in (inputs.query, inputs.key, inputs.value)
    )
    for what, sizes in (
        ("batch", (query[0], key[0], value[0])),
        ("number of heads of key and value", (key[1], value[1])),
        ("number of keys and values", (key[2], value[2])),
        ("size of a head of query and key", (query[3], key[3])),
    ):
        if len({size for size in sizes if size is not None}) > 1:
            raise UnsupportedError(f"the {what} is {' and '.join(map(str, sizes))}; expected the same")


def _attention_problem(node: ir.Node, inputs: AttentionInputs) -> AttentionProblem:
    _check_sizes(inputs)
    head_size, value_size = (static_size(tensor.ty.shape[3]) for tensor in (inputs.query, inputs.value))
    value_size = value_size if inputs.value_size is None else inputs.value_size
    if head_size is None or value_size is None:
        raise UnsupportedError("the size of a head is dynamic; expected a static last axis of query and value")
    scale: Any = attribute(node, "scale", None)
    broadcast = (True, True, True)
    if inputs.mask is not None:
        first, second, third, _ = (static_size(size) == 1 for size in inputs.mask.ty.shape)
        broadcast = (first, second, third)
    return AttentionProblem(
        head_size=head_size,
        value_size=value_size,
        scale=float(scale) if scale is not None else 1 / math.sqrt(head_size),
        heads_per_group=_heads_per_group(inputs.query.ty.shape[1], inputs.key.ty.shape[1]),
        causal=_causal(node, inputs),
        softcap=float(attribute(node, "softcap", 0.0)),
        paged=inputs.key.stored if isinstance(inputs.key, PagedTensor) else "",
        mask="" if inputs.mask is None else str(inputs.mask.ty.dtype),
        mask_broadcast=broadcast,
        has_lengths=inputs.lengths is not None,
        has_sinks=inputs.sinks is not None,
        values_in_keys=inputs.value_size is not None,
    )


def _heads_per_group(heads: Any, groups: Any) -> int:
    if tvm_ffi.structural_equal(heads, groups):
        return 1
    sizes = static_size(heads), static_size(groups)
    if sizes[0] is None or not sizes[1] or sizes[0] % sizes[1]:
        actual = " query heads cannot share ".join(
            "a dynamic number of" if size is None else str(size) for size in sizes
        )
        raise UnsupportedError(f"{actual} heads of keys; expected static numbers, the first a multiple of the second")
    return sizes[0] // sizes[1]


def _causal(node: ir.Node, inputs: AttentionInputs) -> Causal:
    """Position of the queries among the keys, see :class:`AttentionProblem`; "" for one without a causal mask."""
    if not attribute(node, "is_causal", 0):
        return ""
    if optional_input(node, 6) is not None:
        return "lengths"
    if optional_input(node, 4) is None:
        return "first"
    if not tvm_ffi.structural_equal(inputs.new_keys, inputs.query.ty.shape[2]):
        raise UnsupportedError("is_causal with past_key needs as many new keys as there are queries")
    return "last" if inputs.lengths is None else "lengths"

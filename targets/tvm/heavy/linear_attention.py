"""Opset 27 LinearAttention before any kernel: its static properties, and its operands in float32."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from tvm import relax

from moec.common.errors import UnsupportedError
from moec.targets.tvm.kernels.kernel import Kernel, KernelCall, select
from moec.targets.tvm.lowering.attributes import attribute, optional_input, required_input
from moec.targets.tvm.lowering.context import HeavyConverter, LoweringContext
from moec.targets.tvm.lowering.nodes import record_of
from moec.targets.tvm.lowering.paged_tensors import PagedTensor
from moec.targets.tvm.sizes.shapes import static_size

Decay = Literal["", "head", "channel"]
NUMBERS = ("spans", "entries_before", "entries_after")
"""Tensors of kernels that tell of the sequences of a batch."""
FORMULA = "S = exp(decay) * S; S += k (beta * (v - S^T k))^T; y = scale * S^T q, token by token"


@dataclasses.dataclass(frozen=True)
class LinearAttentionProblem:
    """``heads`` of keys, values and states [key_size, value_size], each with ``group`` heads of queries.

    ``decay``: whether states decay, by one number per head or by one per channel of the key. ``delta``: the delta rule,
    which subtracts from a value what the state already returns for its key. It has a factor ``beta``, one per head, or
    one per token if ``shared_beta``. ``sequences``: tokens are those of several sequences one behind the other, each
    with a state of its own (:mod:`moec.ir.batches`). ``in_entries``: kernels read and write states in their entries.
    """

    heads: int
    group: int
    key_size: int
    value_size: int
    scale: float
    decay: Decay = ""
    delta: bool = False
    shared_beta: bool = False
    sequences: bool = False
    in_entries: bool = False

    @property
    def parameters(self) -> list[tuple[str, tuple[str | int, ...]]]:
        """Names and shapes of the tensors that kernels take, all float32 except :data:`NUMBERS`, which are int64. ``y``
        and ``after``, the new state, are results. An absent ``decay`` or ``beta`` is a single number, which is not
        read. Entries are ``states``: that of sequence n has number ``entries_before[n]``, and ``entries_after[n]``."""
        matrix = (self.heads, self.key_size, self.value_size)
        state = ("N" if self.sequences else "B", *matrix)
        decay, beta = (
            self.heads * (self.key_size if self.decay == "channel" else 1),
            1 if self.shared_beta else self.heads,
        )
        result = ("y", ("B", "T", self.heads * self.group * self.value_size))
        spans = [("spans", ("N", 2))] if self.sequences else []
        entries = [("entries_before", ("N",)), ("entries_after", ("N",)), ("states", ("E", 1, *matrix)), result]
        return [
            ("query", ("B", "T", self.heads * self.group * self.key_size)),
            ("key", ("B", "T", self.heads * self.key_size)),
            ("value", ("B", "T", self.heads * self.value_size)),
            *([] if self.in_entries else [("state", state)]),
            ("decay", ("B", "T", decay) if self.decay else (1,)),
            ("beta", ("B", "T", beta) if self.delta else (1,)),
            *spans,
            *(entries if self.in_entries else [result, ("after", state)]),
        ]


def converter(kernel: Kernel, machine: Any) -> HeavyConverter:
    """Converter that uses a target's kernel; its function takes :attr:`LinearAttentionProblem.parameters`."""

    def convert(lowering: LoweringContext, node: ir.Node) -> list[relax.Expr]:
        return _lower(lowering, node, kernel, machine)

    return convert


def _lower(lowering: LoweringContext, node: ir.Node, kernel: Kernel, machine: Any) -> list[relax.Expr | PagedTensor]:
    """The result and the new state. Raises UnsupportedError for sizes of heads that are dynamic or do not fit."""
    problem = _problem(lowering, node)
    query = lowering.tensor(required_input(node, 0))
    batch, tokens = query.ty.shape[0], query.ty.shape[1]
    past, entries = optional_input(node, 3), _entries(lowering, node)
    sequences = batch if lowering.batch is None else lowering.batch.spans.ty.shape[0]
    shape = [sequences, problem.heads, problem.key_size, problem.value_size]
    operands = [lowering.tensor(required_input(node, position)) for position in (0, 1, 2)]
    if entries is None:
        zeros = relax.op.zeros(shape, "float32")
        operands.append(lowering.emit(zeros) if past is None else lowering.tensor_of_shape(past, shape))
    gates = ((4, bool(problem.decay)), (5, problem.delta))
    none = relax.const(np.zeros(1, np.float32))
    operands += [lowering.tensor(required_input(node, place)) if has else none for place, has in gates]
    result = relax.TensorType([batch, tokens, problem.heads * problem.group * problem.value_size], "float32")
    arguments = [_cast(lowering, operand, "float32") for operand in operands]
    arguments += [] if lowering.batch is None else [lowering.batch.spans]
    facts = {"heads": problem.heads, "key_size": problem.key_size, "value_size": problem.value_size}
    chosen = select((kernel,), problem, machine)
    called, dtype = KernelCall(chosen, kernel.build(problem, machine), arguments, facts), str(query.ty.dtype)
    record = record_of(node, called)
    if entries is not None and lowering.batch is not None:
        arguments += [lowering.batch.entries_before, lowering.batch.entries_after]
        pages = lowering.emit(entries.pages)
        after, y = lowering.call_kernel_on(called.function, arguments, [pages], record, new=[result])
        return [_cast(lowering, y, dtype), dataclasses.replace(entries, pages=after, continued=None)]
    types = [result, relax.TensorType(shape, "float32")]
    y, after = lowering.call_kernel(called.function, arguments, types, record)
    return [_cast(lowering, y, dtype), _cast(lowering, after, dtype if past is None else lowering.dtype(past))]


def _entries(lowering: LoweringContext, node: ir.Node) -> PagedTensor | None:
    """The entries of a batch's states that the node alone replaces; None where a state is made of them, or read again
    behind the node."""
    entries, after = lowering.paged(optional_input(node, 3)), node.outputs[1]
    is_alone = entries is not None and entries.of_sequences and entries.continued is after and not after.uses()
    return entries if is_alone and entries is not None and entries.stored == "float32" else None


def _problem(lowering: LoweringContext, node: ir.Node) -> LinearAttentionProblem:
    queries, heads = (int(attribute(node, name, 0)) for name in ("q_num_heads", "kv_num_heads"))
    rule = attribute(node, "update_rule", "gated_delta")
    widths = [_width(lowering, node, position) for position in range(3)]
    if heads < 1 or queries < 1 or queries % heads or widths[1] % heads or widths[2] % heads:
        raise UnsupportedError(
            f"{queries} query heads and {heads} others do not divide query, key and value, which are {widths} wide"
        )
    key_size, value_size = widths[1] // heads, widths[2] // heads
    if widths[0] != queries * key_size:
        raise UnsupportedError(f"a query of {queries} heads is {widths[0]} wide, and a key of one head {key_size}")
    decay: Decay = ""
    if rule in ("gated", "gated_delta"):
        width = _width(lowering, node, 4)
        decay = "head" if width == heads else "channel"
        if width not in (heads, heads * key_size):
            raise UnsupportedError(f"decay is {width} wide; expected {heads} or {heads * key_size}")
    delta = rule in ("delta", "gated_delta")
    beta = _width(lowering, node, 5) if delta else heads
    if beta not in (1, heads):
        raise UnsupportedError(f"beta is {beta} wide; expected 1 or {heads}")
    scale = float(attribute(node, "scale", 0.0)) or 1 / math.sqrt(max(1, key_size))
    return LinearAttentionProblem(
        heads,
        queries // heads,
        key_size,
        value_size,
        scale,
        decay,
        delta,
        shared_beta=delta and beta != heads,
        sequences=lowering.batch is not None,
        in_entries=_entries(lowering, node) is not None,
    )


def _width(lowering: LoweringContext, node: ir.Node, position: int) -> int:
    shape = lowering.shape(required_input(node, position))
    width = static_size(shape[-1]) if len(shape) == 3 else None
    if width is None:
        raise UnsupportedError(f"input {position} has shape {list(shape)}; expected three axes, the last of known size")
    return width


def _cast(lowering: LoweringContext, tensor: relax.Expr, dtype: str) -> relax.Expr:
    return tensor if str(tensor.ty.dtype) == dtype else lowering.emit(relax.op.astype(tensor, dtype))

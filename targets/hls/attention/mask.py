"""The kind of an attention block's mask: none, or causal, possibly with a window. It may also hold the scores of sinks.

A mask is found by running it on whole sequences: as many tokens as positions, no earlier ones, no pads. Inputs of the
model that only masks depend on are then all 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.ir.interpreter import EvaluationError
from moec.targets.hls.attention.float_block import met_keys
from moec.targets.hls.graph.affine import random_inputs
from moec.targets.hls.graph.calibrate import evaluate

Array = np.ndarray[Any, Any]

_BATCHES = (1, 3)
"""Batch sizes that masks are computed for."""
_MOST_POSITIONS = 2048
"""The most positions of a mask that is computed: its size grows with their square."""
_MASK = 3
"""The index of the mask among the operands of Attention."""
_NOTHING = -1e4
"""An addend below this hides a key; float16 holds nothing below -65504."""


def masks_nothing(model: ir.Model, mask: ir.Value) -> bool:
    """Whether a mask depends on constants and shapes alone, and lets every query see every key (True, or an addend of
    0)."""
    if inputs_behind(mask):
        return False
    for batch in _BATCHES:
        try:
            (values,) = evaluate(model, random_inputs(model, batch), [mask])
        except ValueError:  # a size that only the caller knows
            return False
        if not np.array_equal(values, np.ones_like(values) if values.dtype == bool else np.zeros_like(values)):
            return False
    return True


@dataclasses.dataclass(frozen=True)
class CausalMask:
    """A mask that shows a token the keys up to itself, or, if ``window`` is not 0, the last ``window`` of these.
    ``sinks`` [H]: the scores of attention sinks; None without sinks."""

    window: int
    sinks: Array | None


def causal_mask(
    model: ir.Model, mask: ir.Value, tokens: ir.Value, positions: int, has_sinks: bool, is_causal: bool = False
) -> CausalMask:
    """The causal mask of a block that takes ``tokens``. ``has_sinks``: whether the key of sinks precedes all keys;
    ``is_causal``: whether the block hides keys after a token itself.

    Raises UnsupportedError where the mask is not causal, or windowed, for sequences of up to ``positions`` tokens,
    naming a query and a key for which it is not."""
    if positions > _MOST_POSITIONS:
        raise UnsupportedError(f"its mask is computed for {positions} positions; expected at most {_MOST_POSITIONS}")
    ones = inputs_behind(mask)
    shared = sorted(str(value.name) for value in ones & inputs_behind(tokens))
    if shared:
        raise UnsupportedError(
            f"its mask {mask.name!r} depends on the numbers of {shared[0]!r}, as its tokens do; expected other inputs"
        )
    last = None
    fixed = None if tokens.shape is None else tokens.shape[1]
    for count in [fixed] if isinstance(fixed, int) else sorted({1, positions}):
        feeds = random_inputs(model, 2, count)
        feeds |= {value: np.ones_like(feeds[value]) for value in ones if value in feeds}
        try:
            (values,) = evaluate(model, feeds, [mask])
        except (ValueError, EvaluationError) as error:
            raise UnsupportedError(
                f"its mask {mask.name!r} cannot be computed from sequences of tokens alone: {error}"
            ) from error
        sinks = _sinks_in(mask, values) if has_sinks else None
        values = values[..., 1:] if has_sinks else values
        seen = values if values.dtype == bool else values == 0
        hidden = ~values if values.dtype == bool else values < _NOTHING
        if seen.ndim < 2 or seen.shape[-1] != count or seen.shape[-2] not in (1, count):
            raise UnsupportedError(
                f"its mask {mask.name!r} is {values.shape} for {count} tokens; expected {count} keys"
            )
        if is_causal:
            order = met_keys(count, count, 0)
            seen, hidden = seen & order, hidden | ~order
        window = int(seen.reshape(-1, count)[-1].sum())  # of the last query
        window = window if 0 < window < count else 0
        expected = met_keys(count, count, window)
        wrong = np.argwhere((seen != expected) | (hidden == expected))
        if len(wrong):
            query, key = wrong[0][-2:]
            raise UnsupportedError(
                f"its mask {mask.name!r} {'hides' if expected[query, key] else 'shows or weakens'} key {key} to "
                f"query {query}; expected that each token sees those up to itself, a window of them, or all tokens"
            )
        last = CausalMask(window, sinks)
    assert last is not None
    return last


def _sinks_in(mask: ir.Value, scores: Array) -> Array:
    """The scores of sinks [H]: the first column of a mask [B, H, T, 1 + keys], the same for all tokens. Minus infinity
    means that a head has no sink."""
    sinks = scores[:1, :, :1, 0] if scores.ndim == 4 and scores.dtype != bool else np.zeros((1, 1, 0))
    if not sinks.size or not (sinks < np.inf).all() or (scores[..., 0] != sinks).any():
        raise UnsupportedError(
            f"its mask {mask.name!r} is {scores.shape}, {scores.dtype}; expected one score per head before the "
            "keys, equal for all tokens and less than infinity"
        )
    return np.asarray(sinks[0, :, 0], np.float32)


def inputs_of_masks(model: ir.Model) -> set[ir.Value]:
    """The graph's inputs whose numbers, not only shapes, the masks of its attention depend on."""
    nodes = [node for node in model.graph if node.op_type == "Attention" and node.domain == ""]
    masks = [node.inputs[_MASK] for node in nodes if len(node.inputs) > _MASK]
    return {value for mask in masks if mask is not None for value in inputs_behind(mask)}


def inputs_behind(value: ir.Value, ends: Collection[ir.Value] = ()) -> set[ir.Value]:
    """The graph's inputs whose numbers, not only shapes, a value depends on, without paths through ``ends`` values and
    through masks of Attention nodes."""
    inputs: set[ir.Value] = set()
    seen: set[ir.Value] = set(ends)
    pending = [value]
    while pending:
        needed = pending.pop()
        node = needed.producer()
        if needed in seen or (node is not None and node.op_type == "Shape"):
            continue
        seen.add(needed)
        if node is None and needed.const_value is None:
            inputs.add(needed)
        operands = [] if node is None else list(node.inputs)
        if node is not None and node.op_type == "Attention":
            operands[_MASK : _MASK + 1] = []
        pending += [operand for operand in operands if operand is not None]
    return inputs

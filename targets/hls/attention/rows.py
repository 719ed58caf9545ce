"""Rows of queries, keys and values, from normalised tokens to the scores: a product, then for queries and keys a
normalisation (of each head's row, or of all heads together) and a rotary embedding, in this order.

All paths from the tokens to a query lead through a few values one after the other, its dominators. The product ends at
one of them, the normalisation at another, and the rotary embedding begins at one. The embedding is found by running it
on unit vectors: they show which channels it mixes and how, however the graph lays them out (halves, neighbours, a part
of a row). Since scores are sums over channels, rows are reordered so that rotated pairs are neighbours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.ir.interpreter import EvaluationError
from moec.targets.hls.attention.float_block import RotaryEmbedding, normalized_rows
from moec.targets.hls.attention.mask import inputs_behind
from moec.targets.hls.design.normalization import FloatNorm
from moec.targets.hls.graph.affine import affine_maps, random_inputs
from moec.targets.hls.graph.calibrate import evaluate
from moec.targets.hls.graph.residuals import NORMS, norm_of

Array = np.ndarray[Any, Any]

_SHORT = 8
"""Positions at which unit vectors probe a rotary embedding."""
_TOLERANCE = 1e-4
_LATENT = "expected a product of tokens, or, as DeepSeek has them, latents that keys and values share"


@dataclasses.dataclass(frozen=True)
class HeadRows:
    """The steps that make rows of H heads: the product with ``weights`` [H, h, d] and ``bias`` [H, h], the ``norm`` of
    each row or of all heads' rows, and the rotary embedding ``turns``. ``order``: for each channel the index that it
    has in the graph's rows, since channels are reordered into rotated pairs."""

    weights: Array
    bias: Array
    norm: FloatNorm | None = None
    turns: RotaryEmbedding | None = None
    order: tuple[int, ...] = ()

    def ordered(self, order: Array) -> HeadRows:
        def moved(numbers: Array) -> Array:
            return self._by_head(numbers)[:, order].reshape(-1)

        norm = self.norm and dataclasses.replace(self.norm, weight=moved(self.norm.weight), bias=moved(self.norm.bias))
        return dataclasses.replace(self, weights=self.weights[:, order], bias=self.bias[:, order], norm=norm)

    def widened(self, width: int) -> HeadRows:
        """The rows with channels of zeros appended. Raises UnsupportedError for normalised rows."""
        if self.weights.shape[1] == width:
            return self
        if self.norm is not None:
            raise UnsupportedError(
                f"rows of {self.weights.shape[1]} channels are normalised; expected as many channels as values have"
            )
        weights = widened_rows(self.weights.swapaxes(1, 2), width).swapaxes(1, 2)
        return dataclasses.replace(self, weights=weights, bias=widened_rows(self.bias, width))

    def _by_head(self, numbers: Array) -> Array:
        """The numbers of a normalisation by head, [h] or [H h] → [1 or H, h]."""
        return numbers.reshape(-1, self.weights.shape[1])


def widened_rows(rows: Array, width: int) -> Array:
    """Pad rows with zeros, [..., h] → [..., width]."""
    return np.pad(rows, [*[(0, 0)] * (rows.ndim - 1), (0, width - rows.shape[-1])])


def find_rows(model: ir.Model, tokens: ir.Value, rows: ir.Value, width: int, heads: int, positions: int) -> HeadRows:
    """The steps from normalised ``tokens`` [B, T, d] to ``rows`` [B, H, T, h] or [B, T, H h] before the scores.

    Raises UnsupportedError, naming the node, where something else lies in between.
    """
    dominators = dominators_between(tokens, rows)
    place, norm = _norm_of_rows(dominators)
    starts = [dominators[place + 1]] if norm else [rows, *(value for value in dominators[1:] if _rank(value) == 4)]
    try:
        start, weights, bias = _product(model, tokens, starts, width)
    except UnsupportedError as error:
        latents = [] if norm else norms_between(tokens, rows)
        if not latents:
            raise
        latent = latents[0].producer()
        assert latent is not None
        raise UnsupportedError(
            f"{node_name(latent)}: normalises a part of the inputs of {rows.name!r}; {_LATENT}"
        ) from error
    if len(bias) % heads:
        raise UnsupportedError(f"{start.name!r} has {len(bias)} channels; expected a multiple of {heads} heads")
    steps = HeadRows(weights.reshape(heads, -1, width), bias.reshape(heads, -1), norm)
    start = dominators[place] if norm else start
    if norm is not None:
        _expect_norm_of_rows(start, rows, norm, steps)
    if start is not rows:
        steps = _with_turns(model, steps, start, rows, heads, positions)
    _expect_agreement(model, tokens, rows, steps, positions)
    return steps


def _product(
    model: ir.Model, tokens: ir.Value, values: Sequence[ir.Value], width: int
) -> tuple[ir.Value, Array, Array]:
    """The first of the values that is a product of tokens, with its weights and bias."""
    reasons = []
    for value in values:
        try:
            ((weights, bias),) = affine_maps(model, tokens, [value], width)
        except UnsupportedError as error:
            reasons.append(error)
        else:
            return value, weights, bias
    raise reasons[0]


def norms_between(source: ir.Value, result: ir.Value) -> list[ir.Value]:
    """Results of the normalisations between ``source`` and ``result``; on each path only the one nearest to the
    result."""
    norms: list[ir.Value] = []
    seen, pending = {source}, [result]
    while pending:
        value = pending.pop()
        node = value.producer()
        if value in seen or node is None:
            continue
        seen.add(value)
        if node.op_type in NORMS and node.domain == "":
            norms.append(value)
        else:
            pending += [operand for operand in node.inputs if operand is not None]
    return norms


def dominators_between(source: ir.Value, result: ir.Value) -> list[ir.Value]:
    """The dominators of ``result`` on its paths from ``source``: the values that all these paths lead through, from the
    result to the source, both included."""
    order: dict[ir.Value, int] = {}

    def depth(value: ir.Value) -> int:
        """The length of the longest path from the source to a value; -1 without a path."""
        if value is source:
            return 0
        if value not in order:
            order[value] = -1  # until it is known; graphs have no cycles
            node = value.producer()
            depths = [depth(operand) for operand in (() if node is None else node.inputs) if operand is not None]
            order[value] = max(depths, default=-1) + 1 if max(depths, default=-1) >= 0 else -1
        return order[value]

    if depth(result) < 0:
        raise UnsupportedError(f"{result.name!r} is not computed from {source.name!r}")
    dominators, open_values = [], {result}
    while open_values != {source}:
        last = max(open_values, key=depth)
        if len(open_values) == 1:
            dominators.append(last)
        node = last.producer()
        assert node is not None
        open_values.remove(last)
        open_values |= {operand for operand in node.inputs if operand is not None and depth(operand) >= 0}
    return [*dominators, source]


def _norm_of_rows(dominators: list[ir.Value]) -> tuple[int, FloatNorm | None]:
    """The index of the dominator that is a normalisation's result, and the normalisation; 0 and None without one."""
    for place, value in enumerate(dominators[:-1]):
        node = value.producer()
        if node is not None and node.op_type in NORMS and node.domain == "":
            return place, norm_of(node)
    return 0, None


def _expect_norm_of_rows(normal: ir.Value, rows: ir.Value, norm: FloatNorm, steps: HeadRows) -> None:
    """Check that a normalisation acts on the rows that are scored. Raises UnsupportedError, naming the node, if not."""
    heads, width = steps.weights.shape[:2]
    last = None if rows.shape is None else rows.shape[-1]
    channels = width if not isinstance(last, int) else last if _rank(rows) == 4 else last // heads
    node = normal.producer()
    assert node is not None
    if channels != width:
        raise UnsupportedError(
            f"{node_name(node)}: normalises {len(norm.weight)} channels before a second product, which makes "
            f"{heads} rows of {channels}; {_LATENT}"
        )
    if len(norm.weight) not in (width, heads * width):
        raise UnsupportedError(
            f"{node_name(node)}: normalises {len(norm.weight)} channels; expected {width}, those of a head, or those "
            f"of all {heads}"
        )


def _with_turns(
    model: ir.Model, rows: HeadRows, start: ir.Value, result: ir.Value, heads: int, positions: int
) -> HeadRows:
    """The rows with the rotary embedding between ``start`` and ``result``, each [B, H, T, h], [B, T, H, h] or
    [B, T, H h], and with channels reordered for it; unchanged if there is none."""
    width = rows.weights.shape[1]
    count = fixed_tokens(start, heads) or min(_SHORT, positions)
    units = np.eye(width, dtype=np.float32)[:, None, None].repeat(heads, 1).repeat(count, 2)
    mixed = _turned(model, start, result, units, heads)[:, 0]  # [h in, T, h out]
    if np.array_equal(mixed, units[:, 0]):
        return rows
    touched = np.abs(mixed).max(axis=1) > 0
    crowded = [place for place, line in enumerate(touched) if not 1 <= line.sum() <= 2]
    if crowded or width % 2:
        raise UnsupportedError(
            f"{result.name!r}: channels {crowded[:3]} of a row of {width} are mixed with more than one other; "
            "expected pairs, as in a rotary embedding"
        )
    taken, order = _side_by_side(mixed[:, 0], touched)
    ordered = rows.ordered(taken)
    longest = fixed_tokens(start, heads) or positions
    even = np.zeros(width, np.float32)
    even[taken[0::2]] = 1
    evens = np.broadcast_to(even, (1, heads, longest, width)).astype(np.float32)
    turned = _turned(model, start, result, evens, heads)[0, 0][:, order]
    return dataclasses.replace(
        ordered, turns=RotaryEmbedding(turned[:, 0::2], turned[:, 1::2]), order=tuple(order.tolist())
    )


def _side_by_side(first: Array, touched: Array) -> tuple[Array, Array]:
    """Orders of channels before and after a rotary embedding in which rotated pairs are neighbours; channels that stay
    come last. ``touched`` [h in, h out]: whether an input contributes to an output at any position. ``first``
    [h in, h out]: the factors at the first position, which show whether the embedding also permutes channels."""
    width, places = len(touched), range(len(touched))
    mixed = [place for place in places if touched[place].sum() == 2]
    pairs = [
        (left, right) for left in mixed for right in mixed if left < right and (touched[left] == touched[right]).all()
    ]
    taken = [place for pair in pairs for place in pair] + [place for place in places if place not in mixed]
    stays = all(touched[pair, pair].all() for pair in map(list, pairs))
    behind = {place: place if stays and place in mixed else int(np.abs(first[place]).argmax()) for place in taken}
    if sorted(taken) != [*places] or sorted(behind.values()) != [*places]:
        raise UnsupportedError(f"channels of a row of {width} are not mixed in pairs; expected a rotary embedding")
    return np.array(taken), np.array([behind[place] for place in taken])


def _expect_agreement(model: ir.Model, tokens: ir.Value, result: ir.Value, rows: HeadRows, positions: int) -> None:
    """Check that rows of random tokens agree with the graph, for all heads and positions, up to the order of channels.
    Short and long sequences are tried, since some embeddings change their angles with the length (longrope, dynamic
    NTK). Raises UnsupportedError if not."""
    for count in lengths_probed(tokens, positions):
        _expect_agreement_of(model, tokens, result, rows, count)


def lengths_probed(tokens: ir.Value, positions: int) -> list[int]:
    """Lengths of the sequences to probe with: a short one and the longest, or the only one that the graph allows."""
    fixed = fixed_tokens(tokens, 0)
    return [fixed] if fixed else sorted({min(_SHORT, positions), positions})


def _expect_agreement_of(model: ir.Model, tokens: ir.Value, result: ir.Value, rows: HeadRows, count: int) -> None:
    """Check rows of sequences of ``count`` random tokens."""
    width, heads = rows.weights.shape[2], len(rows.weights)
    size = (fixed_batch(tokens) or 1, count, width)
    samples = np.random.default_rng(3).normal(size=size).astype(np.float32)
    feeds = _feeds(model, tokens, result, samples)
    (actual,) = run_to(model, feeds, result)
    actual = actual if actual.ndim == 4 else actual.reshape(*size[:2], heads, -1).swapaxes(1, 2)
    actual = actual[..., list(rows.order)] if rows.order else actual
    expected = np.einsum("btd,hcd->bhtc", samples, rows.weights, optimize=True) + rows.bias[:, None]
    expected = normalized_rows(rows.norm, expected)
    if rows.turns is not None:
        expected = rows.turns.run(expected)
    expect_close(
        actual,
        expected,
        f"{result.name!r} is more than a product per token of {tokens.name!r}, a normalisation of each head's row, "
        f"or of all, and a rotary embedding, in sequences of {count} tokens",
    )


def expect_close(actual: Array, expected: Array, problem: str) -> None:
    if actual.shape != expected.shape or not np.abs(actual - expected).max() <= _TOLERANCE * np.abs(expected).max():
        raise UnsupportedError(problem)


def _turned(model: ir.Model, start: ir.Value, result: ir.Value, rows: Array, heads: int) -> Array:
    """Run the graph from rows [B, H, T, h] at ``start`` to rows of the same shape at ``result``, in as many calls as
    its batch size requires."""
    batch = fixed_batch(start) or len(rows)
    padded = np.pad(rows, ((0, -len(rows) % batch), (0, 0), (0, 0), (0, 0)))
    parts = np.split(padded, len(padded) // batch)
    return np.concatenate([_turned_at_once(model, start, result, part, heads) for part in parts])[: len(rows)]


def _turned_at_once(model: ir.Model, start: ir.Value, result: ir.Value, rows: Array, heads: int) -> Array:
    by_head = start.shape is not None and _rank(start) == 4 and start.shape[1] == heads
    fed = rows if by_head else rows.swapaxes(1, 2)
    fed = fed.reshape(*fed.shape[:2], -1) if _rank(start) == 3 else fed
    (actual,) = run_to(model, _feeds(model, start, result, fed, rows.shape[2]), result)
    if actual.ndim != 4:
        actual = actual.reshape(len(rows), rows.shape[2], heads, -1).swapaxes(1, 2)
    return actual


def _feeds(
    model: ir.Model, source: ir.Value, result: ir.Value, rows: Array, tokens: int | None = None
) -> dict[ir.Value, Array]:
    return {**whole_sequence(model, [source], result, len(rows), tokens or rows.shape[1]), source: rows}


def whole_sequence(
    model: ir.Model, sources: Sequence[ir.Value], result: ir.Value, images: int, count: int
) -> dict[ir.Value, Array]:
    """Arrays for the model's inputs other than the sources, for whole sequences of ``count`` tokens from position 0 on.
    Inputs [B, T] that the result depends on are positions, or masks of ones if the graph sums them up to positions."""
    feeds = random_inputs(model, images, count)
    for value in inputs_behind(result, sources):
        if value in feeds and feeds[value].ndim == 2:
            numbers = np.ones(count) if _is_added_up(value) else np.arange(count)
            feeds[value] = np.broadcast_to(numbers.astype(feeds[value].dtype), feeds[value].shape)
    return feeds


def _is_added_up(value: ir.Value) -> bool:
    """Whether the graph computes positions as cumulative sums of an input, a mask of tokens."""
    users = [use.node for use in value.uses()]
    return any(node.op_type == "CumSum" or (node.op_type == "Cast" and _is_added_up(node.outputs[0])) for node in users)


def run_to(model: ir.Model, feeds: dict[ir.Value, Array], result: ir.Value) -> list[Array]:
    try:
        return evaluate(model, feeds, [result])
    except (ValueError, EvaluationError) as error:
        raise UnsupportedError(
            f"{result.name!r} cannot be computed from tokens and their positions alone: {error}"
        ) from error


def fixed_tokens(value: ir.Value, heads: int) -> int | None:
    """The number of tokens of a sequence if the graph fixes it, else None."""
    if value.shape is None:
        return None
    count = value.shape[1] if _rank(value) == 3 or value.shape[1] != heads else value.shape[2]
    return count if isinstance(count, int) else None


def fixed_batch(value: ir.Value) -> int | None:
    """The number of sequences if the graph fixes it, else None."""
    batch = None if value.shape is None else value.shape[0]
    return batch if isinstance(batch, int) else None


def _rank(value: ir.Value) -> int:
    return 0 if value.shape is None else len(value.shape)

"""A whole vision transformer or decoder in a graph: embedding, blocks on one residual stream, normalisation and head.

Blocks of attention and of experts are the same that become projects of their own otherwise. Between two of them there
may only be dense feed-forward layers. Every part is recognised by what it computes, in the other modules of this
package. A graph of another form does not fit one design; the reason names the node in the way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.targets.hls.attention.graph import GraphAttention
from moec.targets.hls.graph.dense_layer import origin
from moec.targets.hls.model.embedding import find_embedding
from moec.targets.hls.model.feed_forward import find_feed_forward
from moec.targets.hls.model.float_model import GraphModel
from moec.targets.hls.model.head import find_head, find_token_head
from moec.targets.hls.model.token_table import find_token_table
from moec.targets.hls.moe.blocks import GraphBlock

_Part = GraphBlock | GraphAttention


def find_model(
    model: ir.Model, moe: Sequence[GraphBlock], attention: Sequence[GraphAttention], refused: Sequence[str]
) -> GraphModel:
    """The vision transformer that the whole graph is. ``moe`` and ``attention``: its blocks; ``refused``: the reasons
    why other candidates are no blocks.

    Raises UnsupportedError, naming the node, where the graph has another form.
    """
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    if len(inputs) != 1 or len(model.graph.outputs) != 1:
        names = ", ".join(str(value.name) for value in (*inputs, *model.graph.outputs))
        raise UnsupportedError(f"inputs and outputs are {names}; expected one of each, images and logits")
    if refused:
        raise UnsupportedError(refused[0])
    by_tokens = {origin(part.tokens): part for part in (*moe, *attention)}
    for part in by_tokens.values():
        if part.numbers.norm is None:
            raise UnsupportedError(f"{part.name}: is not x + block(norm(x)) of a residual stream x")
    stream = _first(model, by_tokens)
    tokens, width = _sizes(stream)
    embedding = find_embedding(model, inputs[0], stream)
    blocks, last = _chain(model, stream, by_tokens, tokens)
    missing = [part for part in by_tokens.values() if not any(part is block for block in blocks)]
    if missing:
        raise UnsupportedError(f"{missing[0].name}: does not take the output of the block before it")
    head = find_head(model, last, model.graph.outputs[0], tokens, width)
    return GraphModel(inputs[0], last, model.graph.outputs[0], tokens, width, embedding, tuple(blocks), head)


def find_decoder(
    model: ir.Model,
    moe: Sequence[GraphBlock],
    attention: Sequence[GraphAttention],
    refused: Sequence[str],
    tokens: int,
    cached: int,
) -> GraphModel:
    """The layers of a decoder from embedded tokens on, with its head; use :func:`without_head` if the head does not
    fit. A call has up to ``tokens`` tokens of a sequence of up to ``cached``; 0 if each call is a whole sequence.

    Raises UnsupportedError, naming the node, where the layers are no chain.
    """
    if refused:
        raise UnsupportedError(refused[0])
    by_tokens = {origin(part.tokens): part for part in (*moe, *attention)}
    for part in by_tokens.values():
        if part.numbers.norm is None:
            raise UnsupportedError(f"{part.name}: is not x + block(norm(x)) of a residual stream x")
    stream = _first(model, by_tokens)
    blocks, last = _chain(model, stream, by_tokens, tokens)
    missing = [part for part in by_tokens.values() if not any(part is block for block in blocks)]
    if missing:
        raise UnsupportedError(f"{missing[0].name}: does not take the output of the block before it")
    width = blocks[0].numbers.width
    table = find_token_table(model, stream)
    found_model = GraphModel(stream, last, last, tokens, width, None, tuple(blocks), None, cached, table)
    try:
        result, head = find_token_head(model, last, model.graph.outputs, width, tokens)
    except UnsupportedError as error:
        return dataclasses.replace(found_model, headless=str(error))
    return dataclasses.replace(found_model, result=result, head=head)


def without_head(graph: GraphModel, reason: str) -> GraphModel:
    """The decoder without its head: it returns the last block's output, and the caller computes the logits."""
    return dataclasses.replace(graph, result=graph.stream, head=None, headless=reason)


def _first(model: ir.Model, by_tokens: Mapping[ir.Value, _Part]) -> ir.Value:
    """The tokens that the first block takes."""
    places = {value: place for place, node in enumerate(model.graph) for value in node.outputs}
    return min(by_tokens, key=lambda value: places.get(value, -1))


def _sizes(stream: ir.Value) -> tuple[int, int]:
    """The number of tokens of an image, and of their channels."""
    sizes = [] if stream.shape is None else list(stream.shape)
    if len(sizes) != 3 or not isinstance(sizes[1], int) or not isinstance(sizes[2], int):
        raise UnsupportedError(
            f"tokens {stream.name!r} have the shape {stream.shape}; expected [images, tokens, channels]"
        )
    return sizes[1], sizes[2]


def _chain(
    model: ir.Model, stream: ir.Value, by_tokens: Mapping[ir.Value, _Part], tokens: int
) -> tuple[list[_Part], ir.Value]:
    """The blocks from the stream on, each of which takes the output of the one before, and the output of the last."""
    blocks: list[_Part] = []
    while True:
        part = by_tokens.get(origin(stream)) or find_feed_forward(model, stream, tokens)
        if part is None:
            return blocks, stream
        blocks.append(part)
        stream = part.output

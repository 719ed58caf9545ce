"""The patch embedding of a graph, from an image to the tokens before the first block.

There is exactly one product, a convolution or a matrix. Nodes before it may move and scale elements of the image. Nodes
after it may move its results, and insert or add anything that does not depend on the image: biases, class tokens,
positions. Both are found by running the nodes, whatever their operators are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.ir.dialect import is_moec
from moec.targets.hls.graph.affine import MOST_ELEMENTS, sizes_behind_first
from moec.targets.hls.graph.between import nodes_between
from moec.targets.hls.graph.dense_layer import constant, dense_layer, origin
from moec.targets.hls.model.float_model import FloatEmbedding
from moec.targets.hls.model.moved import Moved, by_image, moved

Array = np.ndarray[Any, Any]

_PRODUCTS = ("Conv", "MatMul", "Gemm")
_TOLERANCE = 1e-4


def find_embedding(model: ir.Model, image: ir.Value, tokens: ir.Value) -> FloatEmbedding | None:
    """The embedding from ``image`` to ``tokens``; None where the image is the tokens. Raises UnsupportedError, naming
    the node or value, where something else lies in between."""
    if origin(tokens) is image:
        return None
    sizes = sizes_behind_first(image)
    if not sizes or math.prod(sizes) > MOST_ELEMENTS:
        raise UnsupportedError(
            f"{image.name!r} has the shape {image.shape}; expected images of one size, of {MOST_ELEMENTS} numbers "
            "at most"
        )
    product = _product_between(image, tokens)
    before = moved(model, image, sizes, product.inputs[0])
    inputs = _unfolded(product, before) if product.op_type == "Conv" else _rows(before)
    weights, bias = _weights(product)
    behind, table = _behind(model, product, tokens, len(inputs.places), len(weights))
    embedding = _assembled(sizes, inputs, weights, bias, behind, table)
    _expect_agreement(model, image, tokens, embedding)
    return embedding


def _product_between(image: ir.Value, tokens: ir.Value) -> Any:
    """The only product between image and tokens. Raises UnsupportedError where there is none, or several."""
    nodes = nodes_between(image, tokens, lambda node: node.op_type in _PRODUCTS or is_moec(node, "Linear"))
    if len(nodes) != 1:
        names = ", ".join(sorted(node_name(node) for node in nodes)[:3]) or "none"
        raise UnsupportedError(
            f"between {image.name!r} and the first block's tokens {tokens.name!r} are {len(nodes)} products "
            f"({names}); expected one product of patches"
        )
    return nodes[0]


def _rows(before: Moved) -> Moved:
    """The operand of a matrix product as rows [T, in]."""
    return Moved(*(array.reshape(-1, array.shape[-1]) for array in (before.places, before.scales, before.offsets)))


def _unfolded(product: ir.Node, before: Moved) -> Moved:
    """The operand of a convolution as rows: the elements under its kernel at each place,
    [places, channels x kernel]."""
    kernel = constant(product.inputs[1]).shape[2:]
    attributes = {name: attribute.value for name, attribute in product.attributes.items()}
    rank = len(kernel)
    if attributes.get("group", 1) != 1 or attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UnsupportedError(f"{node_name(product)}: has groups or auto_pad; expected one group and explicit pads")
    strides, dilations = (list(attributes.get(name, [1] * rank)) for name in ("strides", "dilations"))
    pads = list(attributes.get("pads", [0] * 2 * rank))
    reach = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True)]
    _expect_few(product, before.places.shape, kernel, pads, reach, strides)
    around = [(0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    parts = []
    for values, outside in ((before.places, -1), (before.scales, 0), (before.offsets, 0)):
        padded = np.pad(values, around, constant_values=outside)
        windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(1, rank + 1)))
        steps = (slice(None), *(slice(None, None, stride) for stride in strides))
        windows = windows[(*steps, *(slice(None, None, dilation) for dilation in dilations))]
        by_place = np.moveaxis(windows, 0, rank)
        parts.append(by_place.reshape(int(np.prod(by_place.shape[:rank])), -1))
    return Moved(*parts)


def _expect_few(
    product: ir.Node,
    image: Sequence[int],
    kernel: Sequence[int],
    pads: Sequence[int],
    reach: Sequence[int],
    strides: Sequence[int],
) -> None:
    """Check that all patches of ``kernel`` together have no more elements than an image may have. Raises
    UnsupportedError if not."""
    padded = [size + sum(pads[axis :: len(kernel)]) for axis, size in enumerate(image[1:])]
    axes = zip(padded, reach, strides, strict=True)
    places = [(size - length) // max(1, stride) + 1 for size, length, stride in axes]
    largest = image[0] * max(math.prod(padded), math.prod(places) * math.prod(kernel))
    if min(*places, *strides) < 1 or min(pads) < 0 or largest > MOST_ELEMENTS:
        raise UnsupportedError(
            f"{node_name(product)}: {'x'.join(map(str, places))} patches of {math.prod(kernel)} elements of {image[0]} "
            f"channels; expected {MOST_ELEMENTS} numbers at most"
        )


def _weights(product: ir.Node) -> tuple[Array, Array]:
    """The weights [d, in] and the bias [d] of the product."""
    if product.op_type != "Conv":
        layer = dense_layer(product.outputs[0])
        return layer.weights, layer.bias
    weights = constant(product.inputs[1])
    bias = constant(product.inputs[2]) if len(product.inputs) > 2 else np.zeros(len(weights), np.float32)
    return weights.reshape(len(weights), -1), bias


def _behind(model: ir.Model, product: ir.Node, tokens: ir.Value, places: int, width: int) -> tuple[Moved, Array]:
    """The source of each number of the tokens [T, d] among the product's results, as an index into
    [places, width], and the table [T, d] that is added."""
    result = product.outputs[0]
    is_conv = product.op_type == "Conv"
    sizes = sizes_behind_first(result)
    if sizes is None:
        raise UnsupportedError(f"{node_name(product)}: gives the shape {result.shape}; expected images of one size")
    source = moved(model, result, (places, width) if len(sizes) == 1 else sizes, tokens)
    if source.places.ndim != 2:
        raise UnsupportedError(f"{tokens.name!r} has the shape {tokens.shape}; expected [images, tokens, channels]")
    if is_conv:  # channels come first
        channel, place = np.divmod(source.places, places)
        source = Moved(np.where(source.places >= 0, place * width + channel, -1), source.scales, source.offsets)
    return source, source.offsets


def _assembled(
    shape: tuple[int, ...], inputs: Moved, weights: Array, bias: Array, behind: Moved, table: Array
) -> FloatEmbedding:
    width = len(weights)
    is_patch = behind.places[:, :1] >= 0
    rows = np.where(is_patch, behind.places[:, :1] // width, 0)
    expected = np.where(is_patch, rows * width + np.arange(width), -1)
    scales = np.abs(behind.scales).max(axis=0) * np.sign(behind.scales.sum(axis=0))
    if not np.array_equal(behind.places, expected) or not is_patch.any():
        raise UnsupportedError("tokens are not whole results of the product of patches, in the order of its channels")
    taken, elements, offsets = (
        np.where(is_patch, of_rows[rows[:, 0]], nothing)
        for of_rows, nothing in ((inputs.places, -1), (inputs.scales, 0), (inputs.offsets, 0))
    )
    of_element = np.abs(elements).max(axis=0) * np.sign(elements.sum(axis=0))
    return FloatEmbedding(
        shape,
        taken.astype(np.int32),
        (weights * scales[:, None] * of_element).astype(np.float32),
        (table + (offsets @ weights.T + bias) * scales * is_patch).astype(np.float32),
    )


def _expect_agreement(model: ir.Model, image: ir.Value, tokens: ir.Value, embedding: FloatEmbedding) -> None:
    random = np.random.default_rng(2)
    images = random.uniform(0, 2, (2, *embedding.shape)).astype((image.dtype or ir.DataType.FLOAT).numpy())
    expected = by_image(model, image, images, tokens)
    error = np.abs(embedding.run(images) - expected).max(initial=0.0)
    if not error <= _TOLERANCE * max(1.0, np.abs(expected).max(initial=0.0)):
        raise UnsupportedError(f"{tokens.name!r} is more than a product of the patches of {image.name!r}")

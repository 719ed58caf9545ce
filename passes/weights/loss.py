"""The loss from storing a layer's weights in another format: the errors of its weights and of its output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.mapped_files import release_pages
from moec.common.names import node_name
from moec.ir import dialect, semantics
from moec.ir.dialect import ExpertsSpec, LinearSpec, ProductSpec
from moec.ir.semantics_dispatch import grouped_matmul
from moec.ir.weight_operands import input_axis, stored_weights
from moec.ir.weights.stored import StoredWeight
from moec.passes.framework.base import Loss

Array = np.ndarray[Any, Any]

SAMPLED_EXPERTS = 8
"""Number of experts of a layer that are compared, evenly spaced: reading all weights of a large model takes minutes."""
_ROWS = 64
"""Rows of generated input, for all compared experts together."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """A moec node at one moment: its attributes, and the constants of its weights and biases."""

    node: ir.Node
    spec: ProductSpec
    weights: dict[str, StoredWeight]
    biases: dict[str, Array]

    @property
    def formats(self) -> dict[str, list[str]]:
        """The different formats of every weight, in the order of the experts."""
        return {name: list(dict.fromkeys(map(str, weight.formats))) for name, weight in self.weights.items()}

    def describe_formats(self) -> str:
        """The formats as text: ``up int4/128+int8, down int8``."""
        return ", ".join(f"{name} {'+'.join(formats)}" for name, formats in self.formats.items())


def layer_of(node: ir.Node) -> Layer:
    """The present layer of a node, without biases that are not constant. Raises UnsupportedError for weights that are
    not stored in one of the ways of :mod:`moec.ir.weights.stored`."""
    biases = {}
    for name, value in dialect.inputs_of(node).items():
        tensor = None if value is None or "bias" not in name else ir.convenience.get_const_tensor(value)
        if tensor is not None and name != "correction_bias":
            biases[name] = tensor.numpy()
    (kind,) = (kind for kind in dialect.SPECS[node.op_type] if issubclass(kind, ProductSpec))
    return Layer(node, dialect.spec_of(node, kind), stored_weights(node), biases)


def loss(
    pass_name: str, before: Layer, after: Layer, seen: Callable[[int], Array | None] = lambda expert: None
) -> Loss:
    """Compare some experts of a layer before and after, on rows that each has ``seen``, or else on generated ones
    (standard normal, always the same)."""
    weights, outputs = _compared(before, after, seen)
    arithmetic = after.spec.arithmetic
    return Loss(pass_name, node_name(after.node), after.formats, arithmetic, weights.relative, outputs.relative)


def output_error(before: Layer, after: Layer, seen: Callable[[int], Array | None]) -> float:
    """The relative error of the outputs of layers whose weights may differ in shape."""
    return _compared(before, after, seen)[1].relative


def output_of(layer: Layer, expert: int, rows: Array) -> Array:
    """The output [n,width] of one expert of a layer for rows [n,d], with a routing weight of 1, in the type of the
    rows."""
    return _output(layer, expert, matrices_of(layer, expert), rows)


def output_with(layer: Layer, expert: int, matrices: Mapping[str, Array], rows: Array) -> Array:
    """:func:`output_of` with other ``matrices``, by operand and as the graph has them, for some of the expert's."""
    return _output(layer, expert, matrices_of(layer, expert) | dict(matrices), rows)


def _compared(before: Layer, after: Layer, seen: Callable[[int], Array | None]) -> tuple[_RelativeNorm, _RelativeNorm]:
    """The differences of weights of equal shape, and of outputs."""
    weights, outputs, generator = _RelativeNorm(), _RelativeNorm(), np.random.default_rng(0)
    experts = _sampled(before)
    for expert in experts:
        old, new = matrices_of(before, expert), matrices_of(after, expert)
        name, first = next(iter(old.items()))
        width = first.shape[input_axis(before.node, name)]
        rows = generator.normal(size=(-(-_ROWS // len(experts)), width)).astype(np.float32)
        inputs = seen(expert)
        rows = rows if inputs is None else inputs.astype(np.float32)
        for name in old:
            if old[name].shape == new[name].shape:
                weights.add(old[name], new[name])
        outputs.add(_output(before, expert, old, rows), _output(after, expert, new, rows))
        release_pages()
    return weights, outputs


def _sampled(layer: Layer) -> list[int]:
    count = next(iter(layer.weights.values())).experts
    return sorted({int(expert) for expert in np.linspace(0, count - 1, min(count, SAMPLED_EXPERTS))})


def matrices_of(layer: Layer, expert: int) -> dict[str, Array]:
    """The weights of one expert by operand, decoded, as the graph has them."""
    return {name: weight.run_of(expert).decoded(expert) for name, weight in layer.weights.items()}


def _output(layer: Layer, expert: int, matrices: dict[str, Array], rows: Array) -> Array:
    """Output of one expert of the layer, or of its dense product, for the rows."""
    spec = layer.spec
    if isinstance(spec, LinearSpec):
        return semantics.linear(spec, rows, matrices["weight"], layer.biases.get("bias"))
    stacks = {name: matrix[None] for name, matrix in matrices.items()}
    biases = {name: bias[expert : expert + 1] for name, bias in layer.biases.items()}
    if isinstance(spec, ExpertsSpec):
        ids = np.zeros((len(rows), 1), np.int32)
        alone = dataclasses.replace(spec, hidden_sizes=spec.hidden_sizes[expert : expert + 1])
        return semantics.experts(alone, rows, np.ones(ids.shape, np.float32), ids, **stacks, **biases)
    return grouped_matmul(spec, rows, stacks["weights"], np.array([0, len(rows)]), biases.get("bias"))


class _RelativeNorm:
    """The Frobenius norm of a difference, relative to that of the expected array; only finite elements count."""

    def __init__(self) -> None:
        self._error = self._size = 0.0

    def add(self, expected: Array, actual: Array) -> None:
        with np.errstate(invalid="ignore"):
            self._error += _square_sum(actual - expected)
        self._size += _square_sum(expected)

    @property
    def relative(self) -> float:
        return (self._error / self._size) ** 0.5 if self._size else 0.0


def _square_sum(array: Array) -> float:
    total = float(np.vdot(array, array))
    return total if np.isfinite(total) else float(np.square(array[np.isfinite(array)], dtype=np.float64).sum())

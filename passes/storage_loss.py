"""What storing weights in another format costs a layer: the error of its weights and of its output, against before."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir import dialect, semantics
from moec.ir.dialect import ExpertsSpec, LinearSpec, ProductSpec
from moec.ir.formats import WeightRun, input_axis, weight_inputs, weight_runs
from moec.ir.names import node_name
from moec.passes.base import Loss

Array = np.ndarray[Any, Any]

SAMPLED_EXPERTS = 16
"""How many experts of a layer are compared, evenly spaced: reading all weights of a large model takes minutes."""
_ROWS = 64
"""Rows of generated input for all of them together."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """A moec node as it is at one moment: its attributes, and where its weights and biases lie."""

    node: ir.Node
    spec: ProductSpec
    weights: dict[str, list[WeightRun]]
    biases: dict[str, Array]

    @property
    def formats(self) -> dict[str, list[str]]:
        """The formats of every weight, in the order of the experts, each once."""
        return {name: list(dict.fromkeys(str(one.format) for one in runs)) for name, runs in self.weights.items()}

    def describe_formats(self) -> str:
        """``up int4/128+int8, down int8``."""
        return ", ".join(f"{name} {'+'.join(formats)}" for name, formats in self.formats.items())


def layer_of(node: ir.Node) -> Layer:
    """The layer at this moment. Raises UnsupportedError for weights that are not stored as :mod:`moec.ir.formats` says
    and biases that are not constant: those are not looked at."""
    weights = {name: weight_runs(value) for name, value in weight_inputs(node).items()}
    biases = {}
    for name, value in dialect.inputs_of(node).items():
        tensor = None if value is None or "bias" not in name else ir.convenience.get_const_tensor(value)
        if tensor is not None and name != "correction_bias":
            biases[name] = tensor.numpy()
    (kind,) = (kind for kind in dialect.SPECS[node.op_type] if issubclass(kind, ProductSpec))
    return Layer(node, dialect.spec_of(node, kind), weights, biases)


def loss(pass_name: str, before: Layer, after: Layer) -> Loss:
    """Compare a layer with what it was, on some experts and on generated rows (standard normal, always the same)."""
    experts = _sampled(before)
    old_output, new_output = (_output(one, experts) for one in (before, after))
    return Loss(
        pass_name,
        node_name(after.node),
        after.formats,
        after.spec.arithmetic,
        _relative(_matrices(before, experts), _matrices(after, experts)),
        _relative(iter([old_output]), iter([new_output])),
    )


class _Decoded:
    """Weights of all experts, decoded one at a time; what :class:`moec.ir.semantics.Stack` asks for."""

    def __init__(self, runs: Sequence[WeightRun]) -> None:
        self._runs = runs
        self.shape = (runs[-1].first + runs[-1].count, *runs[0].shape)

    def __getitem__(self, expert: int, /) -> Array:
        run = next(one for one in self._runs if one.first <= expert < one.first + one.count)
        return run.decoded(expert)


def _sampled(layer: Layer) -> list[int]:
    count = _Decoded(next(iter(layer.weights.values()))).shape[0]
    return sorted({int(expert) for expert in np.linspace(0, count - 1, min(count, SAMPLED_EXPERTS))})


def _matrices(layer: Layer, experts: Sequence[int]) -> Iterator[Array]:
    for runs in layer.weights.values():
        stack = _Decoded(runs)
        yield from (stack[expert] for expert in experts)


def _output(layer: Layer, experts: Sequence[int]) -> Array:
    """The rows that come out of the experts, or of the dense product, in float32."""
    stacks = {name: _Decoded(runs) for name, runs in layer.weights.items()}
    name, stack = next(iter(stacks.items()))
    width = stack.shape[input_axis(layer.node, name)]
    per_expert = -(-_ROWS // len(experts))
    rows = np.random.default_rng(0).normal(size=(len(experts) * per_expert, width)).astype(np.float32)
    if isinstance(layer.spec, LinearSpec):
        return semantics.linear(layer.spec, rows, stack[0], layer.biases.get("bias"))
    ids = np.repeat(np.array(experts, np.int32), per_expert)[:, None]
    if isinstance(layer.spec, ExpertsSpec):
        weights = np.ones(ids.shape, np.float32)
        return semantics.experts(layer.spec, rows, weights, ids, **stacks, **layer.biases)
    return semantics.grouped_matmul(layer.spec, rows, stack, ids, layer.biases.get("bias"))


def _relative(expected: Iterator[Array], found: Iterator[Array]) -> float:
    """The Frobenius norm of the difference as a share of that of what is expected; only finite elements count."""
    error = size = 0.0
    for one, other in zip(expected, found, strict=True):
        finite = np.isfinite(one) & np.isfinite(other)
        one, other = np.where(finite, one, 0), np.where(finite, other, 0)
        error += float(np.square(other - one, dtype=np.float64).sum())
        size += float(np.square(one, dtype=np.float64).sum())
    return (error / size) ** 0.5 if size else 0.0

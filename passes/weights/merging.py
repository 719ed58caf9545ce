"""One set of weights in the place of several: weighted averages of experts whose hidden units were matched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.mapped_files import release_pages
from moec.ir import dialect
from moec.ir.dialect import EXPERT_WEIGHTS
from moec.ir.graphs import add_constant
from moec.ir.weight_operands import weight_inputs
from moec.ir.weights.stored import StoredWeight, constant
from moec.passes.graph.edits import fresh_name, remove_unused
from moec.passes.weights.hidden_units import HiddenUnits
from moec.passes.weights.store import change_numbers, store

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Merged:
    """Experts that become one, which the first of them stands for: ``shares`` of each in the average, in all 1, and the
    ``orders`` [units] in which their hidden units match those of the first; as many units as the largest has."""

    experts: Sequence[int]
    shares: Sequence[float]
    orders: Sequence[Array]


def merged(experts: Sequence[int], weights: Sequence[float], orders: Sequence[Array]) -> Merged:
    """The average by ``weights``; that of all alike where these are zero."""
    total = float(np.sum(weights))
    shares = [weight / total for weight in weights] if total > 0 else [1 / len(experts)] * len(experts)
    return Merged(experts, shares, orders)


def unmergeable(node: ir.Node) -> str | None:
    """Why weights of the node cannot be averaged."""
    for name, value in weight_inputs(node).items():
        quantised = next((form for form in StoredWeight.of(value).formats if form.quantized), None)
        if quantised is not None:
            return f"{name} is {quantised}; run this pass before quantize-experts"
        if value.dtype == ir.DataType.DOUBLE:
            return f"{name} is float64"
    return None


class Averages:
    """Gives the experts that others are merged with their averages, which are computed when they are read, one expert
    at a time. All experts are still there afterwards, the others as they were."""

    def __init__(self, graph: ir.Graph, node: ir.Node, groups: Sequence[Merged]) -> None:
        self._graph, self._node, self._units = graph, node, HiddenUnits(node)
        self._groups: Mapping[int, Merged] = {group.experts[0]: group for group in groups}
        self._formats = {name: weight.formats for name, weight in self._units.weights.operands.items()}

    def store(self) -> None:
        spec, sizes = self._units.weights.spec, list(self._units.weights.sizes)
        for name in EXPERT_WEIGHTS:
            if dialect.inputs_of(self._node)[name] is None:
                continue
            if name in self._formats:
                change_numbers(self._node, name, self._changed(name))
            else:
                self._change_bias(name)
        if spec.hidden_sizes:
            for first, group in self._groups.items():
                sizes[first] = max(sizes[expert] for expert in group.experts)
            self._node.attributes["hidden_sizes"] = ir.AttrInt64s("hidden_sizes", sizes)

    def store_as_before(self, experts: Sequence[int]) -> None:
        """Store weights in narrower types once more, where they were; ``experts``: those that are left."""
        for name, formats in self._formats.items():
            store(self._node, name, [formats[expert] for expert in experts])

    def _changed(self, name: str) -> Callable[[Array, int], Array]:
        value = weight_inputs(self._node)[name]
        assert value.dtype is not None
        weight, dtype, axis = StoredWeight.of(value), value.dtype.numpy(), self._units.axis(name) - 1

        def changed(numbers: Array, expert: int) -> Array:
            if expert not in self._groups:
                return numbers.astype(dtype)
            average = self._average(name, expert, lambda member: weight.run_of(member).decoded(member), axis)
            release_pages()
            return average.astype(dtype)

        return changed

    def _change_bias(self, name: str) -> None:
        value = dialect.inputs_of(self._node)[name]
        tensor = constant(value)
        assert value is not None and tensor is not None
        numbers = tensor.numpy()
        axis = None if name == "down_bias" else 0
        changed = np.array(numbers)
        for expert in self._groups:
            changed[expert] = self._average(name, expert, lambda member: numbers[member], axis).astype(numbers.dtype)
        new = add_constant(
            self._graph, ir.Tensor(changed, dtype=tensor.dtype), fresh_name(self._graph, f"{value.name}_changed")
        )
        self._node.replace_input_with(dialect.INPUTS[self._node.op_type].index(name), new)
        remove_unused(self._graph, value)

    def _average(self, name: str, expert: int, read: Callable[[int], Array], axis: int | None) -> Array:
        """The average in float64 of the members' arrays from ``read``, whose units lie along ``axis``."""
        group = self._groups[expert]
        total: Array | None = None
        for member, share, order in zip(group.experts, group.shares, group.orders, strict=True):
            numbers = read(member).astype(np.float64)
            part = share * (numbers if axis is None else self._matched(name, numbers, member, order, axis))
            total = part if total is None else total + part
        assert total is not None
        return total

    def _matched(self, name: str, numbers: Array, member: int, order: Array, axis: int) -> Array:
        """The units in another order, zeros for those that the member does not have, as many as there were."""
        count, own = self._units.count, self._units.weights.sizes[member]
        complete = np.concatenate([order, np.arange(len(order), count)])
        both = name in ("up", "up_bias") and self._units.weights.spec.fused
        positions = self._units.positions_of_both(complete) if both else complete
        absent = self._units.positions_of_both(np.arange(own, count)) if both else np.arange(own, count)
        numbers = np.array(numbers)
        numbers[(slice(None),) * axis + (absent,)] = 0
        return np.take(numbers, positions, axis)

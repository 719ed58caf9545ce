"""The proposal that experts of any form are a graph over dispatched rows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from moec.ir import dialect
from moec.ir.dialect import DispatchSpec, LinearSpec
from moec.ir.interpreter import Evaluator
from moec.ir.last_tokens import NORMALIZING
from moec.ir.weights.stacks import ExpertStack
from moec.passes.raising import simple_experts
from moec.passes.raising.block import Block
from moec.passes.raising.dataflow import Array, DataFlow
from moec.passes.raising.expert_results import expert_results
from moec.passes.raising.failure import NoResultError
from moec.passes.raising.mixing import Mixing, explaining_routings
from moec.passes.raising.pair_reading import pair_steps
from moec.passes.raising.router import RoutingProposal
from moec.passes.raising.row_reading import steps_of
from moec.passes.raising.row_steps import PRODUCT, ROWS, Operand, Step, joined, numbers_of, shared, whole
from moec.passes.raising.simple_experts import SimpleExperts
from moec.passes.raising.weights import EntryPlace, ExpertTensor


class Writing(simple_experts.ExpertWriting, Protocol):
    """Destination of nodes and constants: a graph, or a draft to be tried."""

    def tensor(self, label: str, tensor: ExpertTensor) -> ir.Value: ...


@dataclasses.dataclass(frozen=True)
class RowProposal:
    """Proposal that experts apply ``steps`` to their rows; the last step is their result."""

    routing: RoutingProposal
    experts: int
    dataflow: DataFlow
    steps: tuple[Step, ...]
    simple: SimpleExperts | None = None
    """Experts without steps; ``experts`` counts the others."""

    @functools.cached_property
    def used(self) -> set[ir.Value]:
        """The constants that it reads as weights and biases."""
        operands = [operand for step in self.steps for operand in step.inputs]
        own = {value for operand in operands if isinstance(operand, ExpertTensor) for value in operand.parts}
        common = {operand.part for operand in operands if isinstance(operand, EntryPlace)}
        bias = self.routing.correction_bias
        return own | common | ({bias} if bias is not None else set())

    @property
    def absent(self) -> list[int]:
        """The ids of experts that add nothing to y."""
        return [] if self.simple is None else self.simple.absent

    def run(self, block: Block, x: Array, logits: Array) -> Array:
        """y [T,d] in float64 for rows x [T,d] and logits [T,E]."""
        weights, ids = self.routing.run(block, logits)
        inputs, evaluator = self._evaluator
        (y,) = evaluator.run(dict(zip(inputs, (x, weights, ids.astype(np.int32)), strict=True)))
        return y

    @functools.cached_property
    def _evaluator(self) -> tuple[list[ir.Value], Evaluator]:
        inputs = [ir.Value(name=name) for name in ("x", "weights", "ids")]
        draft = _Draft()
        y = self.write(draft, *inputs)
        return inputs, Evaluator(draft.nodes, inputs, [y], {"": 24}, dtype=np.float64)

    def write(self, writing: Writing, x: ir.Value, weights: ir.Value, ids: ir.Value) -> ir.Value:
        """Write the nodes that compute y [T,d] from x [T,d] and from weights and ids [T,k]."""
        stored = ids if self.simple is None else self.simple.stored_ids(writing, ids)
        label = "y" if self.simple is None else "stored_y"
        y = _Graph(writing, self.dataflow, self.experts, x, stored).write(self.steps, weights, label)
        dtype = self.steps[ROWS].dtype
        if self.simple is None or dtype is None:
            return y
        return self.simple.add_to(writing, y, x, weights, ids, dtype)

    def moved(
        self, counterparts: Mapping[ir.Value, ir.Value], routing: RoutingProposal, dataflow: DataFlow
    ) -> RowProposal:
        """The same proposal with other constants."""

        def operand(source: Operand) -> Operand:
            if isinstance(source, EntryPlace):
                return source.moved(counterparts)
            return source.moved(counterparts, dataflow) if isinstance(source, ExpertTensor) else source

        steps = (dataclasses.replace(step, inputs=tuple(map(operand, step.inputs))) for step in self.steps)
        return RowProposal(routing, self.experts, dataflow, tuple(steps), self.simple)

    def __str__(self) -> str:
        route = self.routing.spec
        return f"router {route.score} top-{route.k}, {len(self.steps) - 1} operators on the rows of each expert"


def propose_rows(block: Block, routings: Sequence[RoutingProposal]) -> RowProposal:
    """Propose the steps that the experts of a block apply to their rows. Raises NotUnderstoodError if they cannot be
    read."""
    routing = next(iter(explaining_routings(block, routings)), None)
    if routing is None:
        raise NoResultError("y is not the sum of its experts' results, weighted by the router")
    mixing = Mixing.of(block, routing)
    results = expert_results(block, mixing)
    if not results:
        return RowProposal(routing, block.E, block.dataflow, tuple(pair_steps(block)))
    stored, simple = tuple(sorted(results)), None
    if len(stored) < block.E:
        simple = SimpleExperts.of(block, mixing, list(results.values()), stored)
        if simple is None:
            missing = min(set(range(block.E)) - results.keys())
            raise NoResultError(f"no value was found that is the result of expert {missing}")
    steps = joined(block.dataflow, [steps_of(block, results[expert]) for expert in stored])
    return RowProposal(routing, len(stored), block.dataflow, tuple(steps), simple)


class _Draft:
    """Nodes outside of any graph."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []

    def add(self, node: ir.Node, dtype: ir.DataType | None, *outputs: str) -> tuple[ir.Value, ...]:
        for value, label in zip(node.outputs, outputs, strict=True):
            value.name = label
        self.nodes.append(node)
        return tuple(node.outputs)

    def constant(self, array: Array, label: str) -> ir.Value:
        return ir.Value(name=f"{label}.constant", const_value=ir.tensor(array, name=label))

    def tensor(self, label: str, tensor: ExpertTensor) -> ir.Value:
        stack = ExpertStack(label, tensor.dtype, tensor.shape, tensor.__getitem__)
        return ir.Value(name=f"{label}.stack", const_value=stack)


class _Graph:
    """Writer of steps. Steps that are equal for all experts and tokens come before rows are dispatched."""

    def __init__(self, writing: Writing, dataflow: DataFlow, experts: int, x: ir.Value, ids: ir.Value) -> None:
        self._writing, self._dataflow = writing, dataflow
        node = dialect.make_node("Dispatch", {"experts": ids}, DispatchSpec(experts))
        outputs = writing.add(node, ir.DataType.INT32, "offsets", "positions", "tokens", "owners")
        self._offsets, self._positions, self._tokens, self._owners = outputs
        self._of_tokens: dict[int, ir.Value] = {ROWS: x}
        self._of_rows: dict[int, ir.Value] = {}
        self._steps: Sequence[Step] = ()

    def write(self, steps: Sequence[Step], weights: ir.Value, label: str) -> ir.Value:
        self._steps = steps
        for number, step in enumerate(steps):
            if number == ROWS:
                continue
            read = [operand for operand in step.inputs if isinstance(operand, int)]
            of_tokens = shared(step) and all(number_read in self._of_tokens for number_read in read)
            written = self._of_tokens if of_tokens else self._of_rows
            written[number] = self._step(number, step, self._of_tokens.__getitem__ if of_tokens else self._rows)
        last = len(steps) - 1
        combined: dict[str, ir.Value | None] = {
            "rows": self._rows(last),
            "weights": weights,
            "positions": self._positions,
        }
        return self._writing.add(dialect.make_node("Combine", combined), steps[ROWS].dtype, label)[0]

    def _rows(self, number: int) -> ir.Value:
        if number not in self._of_rows:
            values = [self._of_tokens[number], self._tokens]
            self._of_rows[number] = self._node("Gather", values, f"rows_{number}", self._steps[number], axis=0)
        return self._of_rows[number]

    def _step(self, number: int, step: Step, value_of: Any) -> ir.Value:
        label = f"step_{number}"
        if step.operator == PRODUCT:
            return self._product(step, value_of, label)
        if step.operator in NORMALIZING and not shared(step):
            return self._normalized(step, value_of, label)
        inputs = [self._operand(operand, value_of, f"{label}.{place}") for place, operand in enumerate(step.inputs)]
        return self._node(step.operator, inputs, label, step, **dict(step.attributes))

    def _operand(self, operand: Operand, value_of: Any, label: str) -> ir.Value | None:
        if operand is None:
            return None
        if isinstance(operand, int):
            return value_of(operand)
        if isinstance(operand, tuple):
            return self._writing.constant(np.array(operand, np.int64), label)
        if isinstance(operand, EntryPlace):
            return self._writing.constant(np.ascontiguousarray(numbers_of(self._dataflow, operand)), label)
        return self._owned(operand, label)

    def _owned(self, tensor: ExpertTensor, label: str) -> ir.Value:
        """Gather the entry [R,n] of each row's expert from a table of all experts."""
        table = self._writing.tensor(label, tensor)
        node = ir.node("Gather", [table, self._owners], {"axis": 0})
        (value,) = self._writing.add(node, tensor.dtype, f"{label}.owned")
        return _shaped(value, tensor.shape[-1])

    def _product(self, step: Step, value_of: Any, label: str) -> ir.Value:
        rows, weight, bias = step.inputs
        value = self._operand(rows, value_of, label)
        if isinstance(weight, ExpertTensor):
            own = bias if isinstance(bias, ExpertTensor) else None
            operands: dict[str, ir.Value | None] = {
                "x": value,
                "weights": self._writing.tensor(f"{label}.weight", weight),
                "offsets": self._offsets,
                "bias": None if own is None else self._writing.tensor(f"{label}.bias", own),
            }
            node = dialect.make_node("GroupedMatMul", operands, step.product)
        else:
            assert isinstance(weight, EntryPlace)
            own = bias if isinstance(bias, EntryPlace) else None
            turned, matrix = self._shared_matrix(weight, f"{label}.weight")
            added = None if own is None else self._operand(own, value_of, f"{label}.bias")
            spec = LinearSpec(transposed=not turned, **dataclasses.asdict(step.product))
            node = dialect.make_node("Linear", {"x": value, "weight": matrix, "bias": added}, spec)
        if own is bias:
            return _shaped(self._writing.add(node, step.dtype, label)[0], step.width)
        product = _shaped(self._writing.add(node, step.dtype, f"{label}.product")[0], step.width)
        return self._node("Add", [product, self._operand(bias, value_of, f"{label}.bias")], label, step)

    def _shared_matrix(self, place: EntryPlace, label: str) -> tuple[bool, ir.Value]:
        """A matrix that all experts share, in its stored form if possible; and whether that is [N,K]."""
        part = place.part
        for turned, piece in ((False, place), (True, place.turned)):
            if self._dataflow.shape(part) == piece.shape and piece == whole(part, piece.shape):
                return turned, self._as_stored(part, label)
        return False, self._writing.constant(np.ascontiguousarray(numbers_of(self._dataflow, place)), label)

    def _as_stored(self, part: ir.Value, label: str) -> ir.Value:
        if isinstance(self._writing, _Draft):
            return self._writing.constant(self._dataflow.array(part), label)
        return part

    def _normalized(self, step: Step, value_of: Any, label: str) -> ir.Value:
        """A norm with different factors and summands per expert: both are applied after it."""
        rows, scale, *bias = step.inputs
        value = value_of(rows)
        assert step.width is not None and step.dtype is not None
        ones = self._writing.constant(np.ones(step.width, step.dtype.numpy()), f"{label}.ones")
        value = self._node(step.operator, [value, ones], f"{label}.norm", step, **dict(step.attributes))
        for place, (operator, operand) in enumerate(zip(("Mul", "Add"), (scale, *bias), strict=False), 1):
            if operand is not None:
                name = label if place == 1 + len(bias) else f"{label}.{operator}"
                value = self._node(operator, [value, self._operand(operand, value_of, f"{label}.{place}")], name, step)
        return value

    def _node(
        self, op_type: str, inputs: Sequence[ir.Value | None], label: str, step: Step, **attributes: Any
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes=attributes)
        return _shaped(self._writing.add(node, step.dtype, label)[0], step.width)


def _shaped(value: ir.Value, width: int | None) -> ir.Value:
    value.shape = ir.Shape([None, width])
    return value

"""Runs a model, or a cut-out of one, in numpy: slow, plain, and right for every shape including empty ones.

Built on ``onnx.reference``, with the operators of :mod:`moec.ir.operators`. With ``dtype=np.float64`` every float in
the graph (inputs, weights, constants, targets of casts) becomes float64, which turns the interpreter into a judge: of
two results that differ by rounding, the nearer one can be told.

Weights are never serialised. They are handed to the operators as arrays, memory-mapped where the model's file is, and
become float64 only where an operator computes with them: a block that gathers the weights of a few experts never holds
those of all experts twice. Of a stack that makes its experts when they are read, those that are picked are made, anew
each time. A value is dropped as soon as the last node has used it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import DTypeLike
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from moec.common.errors import one_line
from moec.common.names import node_name
from moec.ir.graphs import is_op, read_values
from moec.ir.movement import moving
from moec.ir.operators import OPERATOR_CLASSES
from moec.ir.opsets import OPSET, version_for
from moec.ir.reference_nodes import FLOATS, forget_width, name_unused_outputs, widen_node
from moec.ir.semantics import experts, linear, moe, route
from moec.ir.weights.stacks import ExpertStack
from moec.ir.widened import WIDENED_FROM, WidenedConstants, only_multiplied

__all__ = ["EvaluationError", "Evaluator", "evaluate", "experts", "linear", "moe", "route", "run", "runner"]

Array = np.ndarray[Any, Any]
Watcher = Callable[[ir.Node, Sequence[Any], Sequence[Any]], None]
Change = Callable[[ir.Node, Sequence[Any]], Sequence[Any]]
"""The replacements of a node's outputs."""

_MOVING = moving(casts=False)
_EXPERTS = frozenset({("moec", "Experts"), ("moec", "MoE"), ("com.microsoft", "MoE")})
"""Operators that compute in the type of x and convert the weights of one expert at a time."""
_BY_EXPERT = _EXPERTS - {("com.microsoft", "MoE")}
"""Operators that ask a stack for one expert's weights at a time."""


class EvaluationError(Exception):
    """A node could not be computed; names the node, its operator and the reason."""


class Evaluator:
    """A list of nodes made ready to run many times.

    ``inputs`` are the values that every call feeds. All other values that the nodes use and do not compute must be
    constants and are read once, here; those that are only multiplied by are kept in ``widened`` from the run
    ``WIDENED_FROM`` on. Nodes must be in topological order.
    Raises ValueError for a value that is neither fed, nor computed, nor constant, and for two values of one name;
    EvaluationError for an operator that it does not know.
    """

    def __init__(
        self,
        nodes: Sequence[ir.Node],
        inputs: Iterable[ir.Value],
        outputs: Sequence[ir.Value],
        opset_imports: Mapping[str, int],
        functions: Iterable[ir.Function] = (),
        *,
        dtype: DTypeLike | None = None,
        widened: WidenedConstants | None = None,
    ) -> None:
        self._widened, self._multiplied, self._runs = widened, list[ir.Value](), 0
        self._dtype = None if dtype is None else np.dtype(dtype)
        if self._dtype not in (None, np.dtype(np.float64)):
            raise ValueError(f"dtype is {self._dtype}; expected float64, or None for the model's own types")
        self._outputs = list(outputs)
        self._inputs = set(inputs)
        # nodes Constant are read like initializers, so that their tensors are not copied into a protobuf message
        computed = [node for node in nodes if not is_op(node, "Constant")]
        self._constants = self._read_constants(computed)
        protos = [ir.serde.serialize_node(node) for node in computed]
        function_protos = [ir.serde.serialize_function(function) for function in functions]
        for proto in (*protos, *(node for function in function_protos for node in function.node)):
            name_unused_outputs(proto)
            forget_width(proto)
            if self._dtype is not None:
                widen_node(proto)
        # Feeds may have any name. One declared input makes onnx.reference resolve operators that depend on their input
        # types when they run, with the arrays at hand, instead of refusing them for lack of declared types.
        graph = onnx.GraphProto(name="cut_out", node=protos, input=[onnx.ValueInfoProto(name="_")])
        graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in self._outputs)
        imports = {"moec": 1, "com.microsoft": 1, **opset_imports}
        imports[""] = version_for(computed, imports.get("", OPSET))
        model = onnx.ModelProto(graph=graph, functions=function_protos)
        model.opset_import.extend(onnx.OperatorSetIdProto(domain=d, version=v) for d, v in imports.items())
        try:
            operators = ReferenceEvaluator(model, new_ops=OPERATOR_CLASSES).rt_nodes_
        except Exception as error:  # an operator it lacks, in a version it lacks, with an attribute it cannot take
            raise EvaluationError(f"the reference interpreter cannot run these nodes: {one_line(error)}") from error
        self._steps = [
            _NodeStep(
                node,
                [*runner.input],
                [*runner.output],
                runner.need_context(),
                _run_of(runner),
                [*map(_name, _captured(node))],
            )
            for node, runner in zip(computed, operators, strict=True)
        ]
        _mark_last_uses(self._steps, {_name(value) for value in self._outputs})

    def run(
        self, feeds: Mapping[ir.Value, Array], watch: Watcher | None = None, change: Change | None = None
    ) -> list[Array]:
        """Evaluate once; the results are in the order of ``outputs``. ``watch`` is called with every node that was
        computed (bodies of If and Loop excepted), its inputs and its outputs; what ``change`` makes of the outputs of
        such a node takes their place.

        Raises KeyError for an input without a feed, and EvaluationError for a node that cannot be computed.
        """
        values = self._given(feeds)
        with np.errstate(all="ignore"):
            for step in self._steps:
                self._compute(step, values, watch, change)
                for name in step.last_uses:
                    values.pop(name, None)
        return [self._widen(values[_name(value)]) for value in self._outputs]

    @property
    def operators(self) -> dict[ir.Node, Callable[..., Sequence[Any]]]:
        """The nodes, in the order in which they run, and the functions of arrays that they are computed by."""
        return {step.node: step.run for step in self._steps}

    def values(self, feeds: Mapping[ir.Value, Array]) -> dict[str, Any]:
        """All values of an evaluation by name, for :meth:`run_changed`."""
        values = self._given(feeds)
        with np.errstate(all="ignore"):
            for step in self._steps:
                self._compute(step, values, None, None)
        return values

    def run_changed(self, values: Mapping[str, Any], changed: Mapping[ir.Value, Array]) -> list[Array]:
        """The results where some inputs are others than in the evaluation that ``values`` are of; nodes that depend on
        none of these are not computed again."""
        current = {**values, **{_name(value): self._widen(np.asarray(array)) for value, array in changed.items()}}
        moved = {_name(value) for value in changed}
        with np.errstate(all="ignore"):
            for step in self._steps:
                if not moved.isdisjoint((*step.inputs, *step.captured)):
                    self._compute(step, current, None, None)
                    moved.update(step.outputs)
        return [self._widen(current[_name(value)]) for value in self._outputs]

    def _given(self, feeds: Mapping[ir.Value, Array]) -> dict[str, Any]:
        self._runs += 1
        if self._runs == WIDENED_FROM and self._widened is not None:
            self._constants.update(self._widened.all_of(self._multiplied, self._constants))
        values: dict[str, Any] = {"": None, **self._constants}
        for value in self._inputs:
            values[_name(value)] = self._widen(np.asarray(feeds[value]))
        return values

    def _compute(self, step: _NodeStep, values: dict[str, Any], watch: Watcher | None, change: Change | None) -> None:
        """Add the outputs of a step to ``values``."""
        inputs = [values[name] for name in step.inputs]
        kept = range(len(inputs)) if self._decodes_weight(step) else _taken_as_they_are(step.node, inputs)
        inputs = [value if index in kept else self._widen(value) for index, value in enumerate(inputs)]
        context = {"context": values} if step.needs_context else {}
        try:
            if step.node in self._casts:
                values[step.outputs[0]] = _cast(step.node, inputs[0])
                return
            picked = bool(inputs) and type(inputs[0]) is ExpertStack  # isinstance is slow where there are protocols
            if picked:
                inputs = _picked(step.node, *inputs)
            inputs = [_LazyStack(value) if type(value) is ExpertStack else value for value in inputs]
            values.update({name: self._widen(values[name]) for name in step.captured})
            outputs = inputs if picked and len(inputs) == 1 else step.run(*inputs, **context)
        except MemoryError:
            raise
        except Exception as error:  # whatever numpy or the operator's own checks raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)[:160]
            raise EvaluationError(f"node {node_name(step.node)!r} ({step.node.op_type}): {reason}") from error
        if change is not None:
            outputs = change(step.node, outputs)
        if watch is not None:
            watch(step.node, inputs, outputs)
        values.update(zip(step.outputs, outputs, strict=False))

    def _decodes_weight(self, step: _NodeStep) -> bool:
        """Whether a step makes a weight of its stored form: it has the numbers of its own type, in float64 too."""
        return is_op(step.node, "DequantizeLinear") and all(not name or name in self._constants for name in step.inputs)

    def _read_constants(self, nodes: Sequence[ir.Node]) -> dict[str, Array | ExpertStack]:
        """All values from outside that are not fed, by name; stacks from which experts are picked alone as they are."""
        constants: dict[str, Array | ExpertStack] = {}
        read = {value for node in nodes for value in _read_whole(node)}.union(self._outputs)
        self._casts = {node for node in nodes if _casts_stack(node) and node.outputs[0] not in read}
        others = (node for node in nodes if node not in self._casts)
        read = {value for node in others for value in _read_whole(node)}.union(self._outputs)
        multiplied = only_multiplied(nodes).difference(self._outputs)
        by_name: dict[str, ir.Value] = {}
        computed = {output for node in nodes for output in node.outputs}
        for value in (*_uses(nodes), *self._outputs):
            if by_name.setdefault(_name(value), value) is not value:
                raise ValueError(f"two values are named {value.name!r}; names must be unique to evaluate a graph")
            if value in computed or value in self._inputs or value.name in constants:
                continue
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is None:
                raise ValueError(f"value {value.name!r} is not constant and nothing here computes or feeds it")
            if isinstance(tensor, ExpertStack) and value not in read:
                constants[_name(value)] = tensor
            else:
                constants[_name(value)] = tensor.numpy()
                if self._widened is not None and value in multiplied and tensor.dtype in FLOATS:
                    self._multiplied.append(value)
        return constants

    def _widen(self, array: Any) -> Any:
        if (
            self._dtype is None
            or not isinstance(array, np.ndarray)
            or array.dtype == self._dtype
            or array.dtype.kind in "biuOSU"
            or onnx.helper.np_dtype_to_tensor_dtype(array.dtype) not in FLOATS
        ):
            return array
        return array.astype(self._dtype)


@dataclasses.dataclass
class _NodeStep:
    """A node, the names of its values, how to compute it, and the outer values its bodies capture."""

    node: ir.Node
    inputs: list[str]
    outputs: list[str]
    needs_context: bool
    run: Callable[..., Sequence[Any]]
    captured: list[str]
    last_uses: list[str] = dataclasses.field(default_factory=list)


def _run_of(operator: Any) -> Callable[..., Sequence[Any]]:
    """A short ``operator.run``, which takes as long as small arrays do themselves: it collects the attributes anew
    and checks types that the operators of onnx have by themselves."""
    if type(operator).run is not OpRun.run or operator.has_subgraph or operator.has_linked_attribute:
        return operator.run
    attributes = {name: getattr(operator, name) for name in operator.attributes_names_}

    def run(*inputs: Any, **context: Any) -> list[Any]:
        results = operator._run(*inputs, **attributes, **context)
        if not isinstance(results, tuple):  # GridSample of no elements
            raise TypeError(
                f"{type(operator).__name__} gives {type(results).__name__}; expected a tuple of its outputs"
            )
        return [np.array(result) if np.isscalar(result) else result for result in results]

    return run


def _taken_as_they_are(node: ir.Node, inputs: Sequence[Any]) -> Collection[int]:
    """Positions of inputs that need not be widened before ``node`` runs, because it does so piece by piece or not at
    all. One wide input is enough to make the result wide."""
    if node.domain == "" and node.op_type in _MOVING:
        return range(len(inputs))
    if node.domain == "" and node.op_type == "MatMul":
        return (0,) if inputs[0].size > inputs[1].size else (1,)
    if (node.domain, node.op_type) == ("moec", "GroupedMatMul"):
        return range(1, len(inputs))
    return range(2, len(inputs)) if (node.domain, node.op_type) in _EXPERTS else ()


class _LazyStack:
    """A :class:`moec.ir.semantics.Stack` whose parts are made when they are asked for."""

    def __init__(self, stack: ExpertStack) -> None:
        self.shape = tuple(stack.shape.numpy())
        self._stack = stack

    def __getitem__(self, expert: Any) -> Array:
        return self._stack.expert(int(expert))


def _casts_stack(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == ("", "Cast") and isinstance(
        ir.convenience.get_const_tensor(node.inputs[0]) if node.inputs[0] is not None else None, ExpertStack
    )


def _cast(node: ir.Node, stack: ExpertStack) -> ExpertStack:
    """The same in another type, whose parts are cast when they are made."""
    dtype = ir.DataType(node.attributes["to"].as_int())
    return ExpertStack(None, dtype, stack.shape.numpy(), lambda expert: stack.expert(expert).astype(dtype.numpy()))


def _read_whole(node: ir.Node) -> Iterator[ir.Value]:
    """Values that ``node`` takes from outside; not the one from whose first axis it picks, nor weights by expert."""
    if (node.domain, node.op_type) in _BY_EXPERT:
        return (value for value in node.inputs[:2] if value is not None)
    if (node.domain, node.op_type) == ("moec", "GroupedMatMul"):
        return (value for place, value in enumerate(node.inputs) if place != 1 and value is not None)
    axis = {"Gather": "axis", "GatherND": "batch_dims"}.get("" if node.domain else node.op_type)
    picks = axis is not None and node.attributes.get_int(axis, 0) == 0
    return itertools.islice(_uses([node]), 1 if picks else 0, None)


def _picked(node: ir.Node, stack: ExpertStack, indices: Array) -> list[Array]:
    """The inputs of a Gather or GatherND from a stack: of whole experts the result, for a copy of such weights costs as
    much again; of parts of them the data, of the experts that it needs alone, and the indices."""
    count, *shape = stack.shape.numpy()
    ids = indices if node.op_type == "Gather" else indices[..., 0]
    chosen, places = np.unique(ids, return_inverse=True)
    if chosen.size and not -count <= chosen[0] <= chosen[-1] < count:
        raise IndexError(f"picks experts {chosen[0]} to {chosen[-1]} of {count}")
    places = places.reshape(ids.shape)
    picks_whole = ids is indices or indices.shape[-1] == 1
    data = np.empty((*(ids.shape if picks_whole else chosen.shape), *shape), stack.dtype.numpy())
    for place, expert in enumerate(chosen):
        data[places == place if picks_whole else place] = stack.expert(int(expert) % count)
    return [data] if picks_whole else [data, np.concatenate([places[..., None], indices[..., 1:]], -1)]


def _mark_last_uses(steps: Sequence[_NodeStep], kept: set[str]) -> None:
    seen = {"", *kept}
    for step in reversed(steps):
        names = {*step.inputs, *step.outputs, *step.captured} - seen
        step.last_uses = list(names)
        seen |= names


def _captured(node: ir.Node) -> list[ir.Value]:
    """Values from outside that the bodies of ``node`` use."""
    inputs = set(node.inputs)
    return [value for value in _uses([node]) if value not in inputs]


def evaluate(
    nodes: Sequence[ir.Node],
    feeds: Mapping[ir.Value, Array],
    outputs: Sequence[ir.Value],
    opset: int = 24,
    *,
    dtype: DTypeLike | None = None,
) -> list[Array]:
    """Evaluate a cut-out once. For repeated runs of the same nodes build an :class:`Evaluator`."""
    return Evaluator(nodes, feeds, outputs, {"": opset}, dtype=dtype).run(feeds)


def run(
    model: ir.Model,
    inputs: Mapping[str, Array],
    *,
    dtype: DTypeLike | None = None,
    watch: Watcher | None = None,
) -> dict[str, Array]:
    """Run a whole model once on named inputs: see :func:`runner`."""
    return runner(model, dtype=dtype)(inputs, watch)


def runner(model: ir.Model, *, dtype: DTypeLike | None = None) -> Callable[..., dict[str, Array]]:
    """A whole model made ready to run many times, as a function of named inputs, ``watch`` and ``change``, as for
    :meth:`Evaluator.run`. It returns the outputs by name, and raises ValueError naming the inputs that are missing or
    not known to the model."""
    graph = model.graph
    required = [value for value in graph.inputs if value.name not in graph.initializers]
    names = [_name(value) for value in required]
    evaluator = Evaluator(
        list(graph), required, graph.outputs, model.opset_imports, model.functions.values(), dtype=dtype
    )

    def run(
        inputs: Mapping[str, Array], watch: Watcher | None = None, change: Change | None = None
    ) -> dict[str, Array]:
        if set(names) != set(inputs):
            raise ValueError(f"the model takes inputs {names}, but was given {sorted(inputs)}")
        results = evaluator.run({value: inputs[_name(value)] for value in required}, watch, change)
        return {_name(value): result for value, result in zip(graph.outputs, results, strict=True)}

    return run


def _name(value: ir.Value) -> str:
    if not value.name:
        raise ValueError(f"a value without a name cannot be evaluated: {value}")
    return value.name


def _uses(nodes: Iterable[ir.Node]) -> Iterator[ir.Value]:
    """The values that ``nodes`` read, those included that bodies of If, Loop and Scan take from outside."""
    for node in nodes:
        yield from read_values(node)

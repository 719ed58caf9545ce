"""Experts on several ranks: rows travel to the ranks that hold their experts, and results come back."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir import dialect
from moec.ir.dialect import EXPERT_WEIGHTS, ExpertsSpec, RanksSpec
from moec.ir.exchanged_rows import chosen_experts, computes_in_float32, exchanged_bytes
from moec.ir.graphs import read_values
from moec.ir.streaming import set_streamed
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import replace_node, value_names
from moec.passes.graph.unfused import with_route
from moec.passes.graph.writer import Writer, as_float32
from moec.placing.metadata import layers_of, listed, set_plan
from moec.placing.place import DEFAULT_METHOD, Method, place_in_order, place_measured
from moec.placing.placement import ExpertPlacement
from moec.placing.plan import ExpertPlan
from moec.placing.volume import ExchangedLayer, RowBytes, TransportChoice, choose_for_all
from moec.profiles.file import Profile
from moec.profiles.measures import ExpertsMeasures


@dataclasses.dataclass(frozen=True)
class PlaceExperts:
    """Places the experts of every layer on ``ranks`` processes of ``nodes`` machines. It does not change any result.

    1. A ``moec.MoE`` becomes ``moec.Route`` and ``moec.Experts``. The rows of this rank's tokens are sent to the ranks
       that hold their experts (``moec.SendRows``), those of all ranks are received (``moec.ReceiveRows``) and go
       through ``moec.Experts`` as tokens with one expert each, and results come back (``moec.ReturnRows``). The rank
       that has a token multiplies with its weights and sums in the order of its slots (``moec.Combine``): the same
       products and sums as without ranks.
    2. Everything after ``moec.SendRows`` stands as late as possible, in front of the first reader of the result, so
       that independent nodes, such as a shared expert, compute while rows travel.
    3. Weights that the expert multiplies its input with (``weight_on_input``) travel with the rows, and are not
       multiplied again.
    4. The model's plan gets the placement [layer][rank][slot], unless it has one (``follow-plan``): with ``profile``, a
       file of ``moec profile``, one that ``method`` finds, with so many ``replicas`` of each layer's experts; else
       consecutive experts on consecutive ranks. The transport of rows is the plan's, or that of fewer bytes, with a
       remark.
    5. Experts over dispatched rows (``moec.Dispatch``) stay on every rank, with a remark, as do those of other graphs
       than the model's own (bodies of loops and branches).

    ::

        (float[T,4] x) => (float[T,4] y) <float[4,2] r, float[2,3,4] up, float[2,4,3] down> {
           a = MatMul (x, r)
           y = moec.MoE <gate_layout = "none", k = 1> (x, a, , up, down)
        }
            infer-shapes,place-experts{ranks=2} ->
        (float[T,4] x) => (float[T,4] y) <float[4,2] r, float[2,3,4] up, float[2,4,3] down> {
           a = MatMul (x, r)
           y_weights, y_experts = moec.Route <k = 1> (a)
           "y.sent" = moec.SendRows <layer = 0> (x, y_experts)
           "y.rows", "y.owners", "y.own_weights" = moec.ReceiveRows <layer = 0> ("y.sent", x, y_experts)
           "y.results" = moec.Experts <gate_layout = "none"> ("y.rows", "y.own_weights", "y.owners", up, down)
           "y.pairs", "y.positions" = moec.ReturnRows <layer = 0> ("y.results", y_experts)
           y = moec.Combine ("y.pairs", y_weights, "y.positions")
        }
    """

    name: ClassVar[str] = "place-experts"
    exactness: ClassVar[Exactness] = "exact"

    ranks: int = 2
    nodes: int = 1
    replicas: int = 0
    method: Method = DEFAULT_METHOD
    profile: str | None = None

    def apply(self, model: ir.Model, report: Report) -> bool:
        layers = layers_of(model)
        self._report_others(model, report)
        if not layers:
            report.warn(self.name, "", "the model has no layer of experts that could be placed on ranks")
            return False
        plan = listed(model)
        with self._measured(layers) as measures:
            if plan.placement is None:
                plan = plan.placed(self._placement(plan, measures))
            assert plan.placement is not None, "the plan was placed"
            choice = self._transport(layers, plan.placement, measures)
        if plan.transport is None:
            report.note(self.name, "", f"rows go to other ranks by {choice.transport}: {choice.reason}")
            plan = dataclasses.replace(plan, transport=choice.transport)
        set_plan(model, plan)
        set_streamed(model)
        for number, node in enumerate(layers):
            _send_rows(model.graph, with_route(model.graph, node), RanksSpec(number))
        return True

    @contextlib.contextmanager
    def _measured(self, layers: Sequence[ir.Node]) -> Iterator[Sequence[ExpertsMeasures] | None]:
        """Context of the layers' measures in the profile, None where there is none."""
        if self.profile is None:
            yield None
            return
        with contextlib.closing(Profile.read(self.profile)) as profile:
            yield [profile.experts(node) for node in layers]

    def _placement(self, plan: ExpertPlan, measures: Sequence[ExpertsMeasures] | None) -> ExpertPlacement:
        if measures is None:
            sizes = [(layer.name, layer.experts) for layer in plan.layers]
            return place_in_order(sizes, self.ranks, self.nodes, self.replicas)
        names = [layer.name for layer in plan.layers]
        return place_measured(measures, self.ranks, self.nodes, self.replicas, self.method, names=names)

    def _transport(
        self, layers: Sequence[ir.Node], placement: ExpertPlacement, measures: Sequence[ExpertsMeasures] | None
    ) -> TransportChoice:
        """Choose the transport by the bytes of the layers' rows."""
        measured = [None] * len(layers) if measures is None else measures
        rows = [
            ExchangedLayer(placed, k, RowBytes(*width), None if own is None else own.recorded())
            for node, placed, own in zip(layers, placement.layers, measured, strict=True)
            if (width := exchanged_bytes(node)) is not None and (k := chosen_experts(node)) is not None
        ]
        return choose_for_all(rows, placement.nodes)

    def _report_others(self, model: ir.Model, report: Report) -> None:
        for node in model.graph.all_nodes():
            inside = node.graph is not model.graph and dialect.has_experts(node)
            if inside or dialect.is_moec(node, "Dispatch"):
                why = "they are in a loop or branch" if inside else "they are a graph over dispatched rows"
                report.note(self.name, node_name(node), f"its experts are on every rank: {why}")


def _send_rows(graph: ir.Graph, node: ir.Node, layer: RanksSpec) -> None:
    """Let the rows of a ``moec.Experts`` node travel."""
    inputs, result = dialect.inputs_of(node), node.outputs[0]
    spec = dialect.spec_of(node, ExpertsSpec)
    weights = inputs["weights"] if spec.weight_on_input else None
    pairs = {"x": inputs["x"], "experts": inputs["experts"], "weights": weights}
    write = Writer(node, value_names(graph))
    sent = write.insert(dialect.make_node("SendRows", pairs, layer), "sent")
    _move_behind_others(graph, node)
    received = dialect.make_node("ReceiveRows", {"sent": sent, **pairs}, layer)
    write.insert(received, "rows", "owners", "own_weights")
    own = dict(zip(("x", "experts", "weights"), received.outputs, strict=True))
    operands = {name: inputs[name] for name in EXPERT_WEIGHTS}
    widens = computes_in_float32(inputs["x"], operands.values())
    if widens:
        own["x"] = as_float32(write, received.outputs[0])
        operands = {name: _widened(write, name, value) for name, value in operands.items()}
    experts = dialect.make_node("Experts", {**own, **operands}, spec, name=node.name or node_name(node))
    experts.metadata_props.update(node.metadata_props)
    results = write.insert(experts, "results")
    returned = dialect.make_node("ReturnRows", {"results": results, "experts": inputs["experts"]}, layer)
    write.insert(returned, "pairs", "positions")
    rows, positions = returned.outputs
    summed = {"rows": rows, "weights": _weights_of_sum(write, inputs["weights"], spec), "positions": positions}
    total = write.insert(dialect.make_node("Combine", summed), "combined")
    if widens:
        total = write.add("Cast", total, label="rounded", to=result.dtype)
    name = result.name
    replace_node(node, [total])
    result.name, total.name = f"{name}.replaced", name


def _widened(write: Writer, name: str, value: ir.Value | None) -> ir.Value | None:
    """A constant operand in float32: a weight stays stored as it is, a bias is converted."""
    if value is None or value.const_value is None:
        return value
    if name.endswith("_bias"):
        return write.constant(value.const_value.numpy().astype(np.float32), name)
    cast = write.add("Cast", value, label=name, to=ir.DataType.FLOAT)
    cast.shape, cast.type = value.shape, ir.TensorType(ir.DataType.FLOAT)  # for moec.ir.blocks
    return cast


def _weights_of_sum(write: Writer, weights: ir.Value | None, spec: ExpertsSpec) -> ir.Value | None:
    """The weights with which results are summed: 1 for all where experts saw weighted rows."""
    if not spec.weight_on_input or weights is None:
        return weights
    unit = write.constant(np.ones((), (weights.dtype or ir.DataType.FLOAT).numpy()), "one")
    return write.add("Expand", unit, write.add("Shape", weights, label="sizes"), label="ones")


def _move_behind_others(graph: ir.Graph, node: ir.Node) -> None:
    """Move a node in front of the first reader of its result."""
    (result,) = node.outputs
    first = next((other for other in graph if result in read_values(other)), None)
    graph.remove(node)
    if first is None:
        graph.append(node)
    else:
        graph.insert_before(first, node)

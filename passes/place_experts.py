"""Experts on several ranks: rows travel to the ranks that hold their experts, and results come back."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.names import node_name
from moec.ir import dialect
from moec.ir.dialect import EXPERT_WEIGHTS, ExpertsSpec, RanksSpec
from moec.ir.exchanged_rows import chosen_experts, computes_in_float32, exchanged_bytes
from moec.ir.expert_weights import ExpertWeights
from moec.ir.graphs import read_values
from moec.ir.streaming import set_streamed
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import replace_node, value_names
from moec.passes.graph.unfused import with_route
from moec.passes.graph.writer import Writer, as_float32
from moec.placing.metadata import set_layer, set_placement
from moec.placing.place import DEFAULT_METHOD, Method, place_in_order, place_measured
from moec.placing.placement import ExpertPlacement, read_placement_file
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
    4. The model records the placement [layer][rank][slot]: that in the file ``placement``; with ``profile``, a file of
       ``moec profile``, one that ``method`` finds, with so many ``replicas`` of each layer's experts; else consecutive
       experts on consecutive ranks. The transport of rows is the file's, or that of fewer bytes, with a remark.
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

    ranks: int | None = None  # those of the file ``placement``, else 2
    nodes: int = 1
    replicas: int = 0
    method: Method = DEFAULT_METHOD
    profile: str | None = None
    placement: str | None = None

    @functools.cached_property
    def from_file(self) -> ExpertPlacement | None:
        """The placement in the file, which is read once; None without a file. Raises MoecError for a file that is no
        placement, or one on another number of ranks than asked for."""
        if self.placement is None:
            return None
        placement = read_placement_file(self.placement)
        if self.ranks not in (None, placement.ranks):
            raise MoecError(f"{self.placement}: is for {placement.ranks} ranks, not for {self.ranks}")
        return placement

    def apply(self, model: ir.Model, report: Report) -> bool:
        layers = [node for node in model.graph if dialect.has_experts(node)]
        self._report_others(model, report)
        if not layers:
            report.warn(self.name, "", "the model has no layer of experts that could be placed on ranks")
            return False
        with self._measured(layers) as measures:
            placement = self._placement(layers, measures)
            choice = self._transport(layers, placement, measures)
        if placement.transport is None:
            report.note(self.name, "", f"rows go to other ranks by {choice.transport}: {choice.reason}")
            placement = dataclasses.replace(placement, transport=choice.transport)
        set_placement(model, placement)
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

    def _placement(self, layers: Sequence[ir.Node], measures: Sequence[ExpertsMeasures] | None) -> ExpertPlacement:
        names = [node_name(node) for node in layers]
        ranks = 2 if self.ranks is None else self.ranks
        if self.from_file is not None:
            return self._checked(self.from_file, names, layers)
        if measures is None:
            sizes = [ExpertWeights(node).experts for node in layers]
            return place_in_order(zip(names, sizes, strict=True), ranks, self.nodes, self.replicas)
        return place_measured(measures, ranks, self.nodes, self.replicas, self.method, names=names)

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

    def _checked(self, placement: ExpertPlacement, names: Sequence[str], layers: Sequence[ir.Node]) -> ExpertPlacement:
        """Return a placement with the names of the model's layers. Raises MoecError for one of other layers."""
        expected = [ExpertWeights(node).experts for node in layers]
        actual = [layer.experts for layer in placement.layers]
        if actual != expected:
            raise MoecError(f"{self.placement}: places layers of {actual} experts; the model has layers of {expected}")
        pairs = zip(placement.layers, names, strict=True)
        return dataclasses.replace(
            placement, layers=tuple(dataclasses.replace(each, name=name) for each, name in pairs)
        )

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
    set_layer(experts, layer.layer)
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

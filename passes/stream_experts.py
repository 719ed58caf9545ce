"""Experts that are read when they are chosen, and before that, when they probably will be."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import ClassVar

import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.ir import dialect
from moec.ir.dialect import RouteSpec
from moec.ir.expert_ids import routing_of
from moec.ir.streaming import set_shares, set_streamed, tables_read_whole
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import fresh_name, value_names
from moec.passes.graph.router_product import RouterProduct, router_product
from moec.passes.graph.unfused import with_route
from moec.passes.graph.writer import Writer
from moec.placing.metadata import layers_of, listed
from moec.profiles.file import Profile


@dataclasses.dataclass(frozen=True)
class StreamExperts:
    """Marks a model whose weights are larger than memory, and predicts in every layer the experts that the next one
    will probably select: those that its router selects for the rows of this layer. It does not change any result.

    A layer adds little to a token compared with its previous value. The next router, applied one layer early, therefore
    selects mostly the same experts: 63% to 82% of them on a trained model (benchmarks/results/streaming.md).
    Normalising the rows as the next layer does is no improvement.

    1. The model is marked (:mod:`moec.ir.streaming`): targets that stream experts read only the selected ones, and
       only the rows that are looked up of large tables.
    2. A ``moec.Absent`` tells a router that takes the best experts of each token which of them are not in memory. The
       caller of the model may allow experts in memory to replace them; by default none does. A ``moec.MoE`` becomes
       ``moec.Route`` and ``moec.Experts`` for it.
    3. Applies to two consecutive layers, each a ``moec.MoE`` or a ``moec.Experts`` with its ``moec.Route``, if the
       second one's logits are the product of its rows with a constant matrix. The second one's product and ``Route``
       are repeated before the first layer, on the first one's rows, followed by a ``moec.Expect`` of the experts.
    4. With ``profile``, a file of ``moec profile``, each layer records how often its experts were selected: these are
       read first, and kept longest.
    5. A large table of which one node looks up rows, which the targets read from disk, and another node reads all,
       for which it stays in memory, is a remark.
    6. A next layer with other logits, or with rows of another size, is not predicted, with a remark. Nor is one whose
       router looks at all tokens together (``expert_choice``, ``capacity``).

    ::

        (float[T,4] x) => (float[T,4] y)
           <float[4,2] r, float[4,2] s, float[2,3,4] up, float[2,4,3] down, float[2,3,4] up_2, float[2,4,3] down_2> {
           a = MatMul (x, r)
           z = moec.MoE <gate_layout = "none", k = 1> (x, a, , up, down)
           b = MatMul (z, s)
           y = moec.MoE <gate_layout = "none", k = 1> (z, b, , up_2, down_2)
        }
            infer-shapes,stream-experts ->
        (float[T,4] x) => (float[T,4] y)
           <float[4,2] r, float[4,2] s, float[2,3,4] up, float[2,4,3] down, float[2,3,4] up_2, float[2,4,3] down_2> {
           a = MatMul (x, r)
           "z.next_logits" = MatMul (x, s)
           "z.next_weights", "z.next_experts" = moec.Route <k = 1> ("z.next_logits")
           "z.rows" = moec.Expect (x, "z.next_experts", down_2)
           z_absent = moec.Absent (a, down)
           z_weights, z_experts = moec.Route <k = 1> (a, , z_absent)
           z = moec.Experts <gate_layout = "none"> ("z.rows", z_weights, z_experts, up, down)
           b = MatMul (z, s)
           y_absent = moec.Absent (b, down_2)
           y_weights, y_experts = moec.Route <k = 1> (b, , y_absent)
           y = moec.Experts <gate_layout = "none"> (z, y_weights, y_experts, up_2, down_2)
        }
    """

    name: ClassVar[str] = "stream-experts"
    exactness: ClassVar[Exactness] = "exact"

    profile: str | None = None

    def apply(self, model: ir.Model, report: Report) -> bool:
        layers = layers_of(model)
        taken = value_names(model.graph)
        if not set_streamed(model):
            return False
        listed(model)
        if self.profile is not None:
            _note_shares(layers, Profile.read(self.profile))
        for node, following in itertools.pairwise(layers):
            router = _router(following)
            reason = _obstacle(node, following, router)
            if router is None or reason is not None:
                report.note(self.name, node_name(following), f"its experts are not read ahead: {reason}")
            else:
                _expect(Writer(node, taken), node, following, router)
        for node in layers:
            _tell_absent(model.graph, node)
        for table, reader in tables_read_whole(model.graph).items():
            size, name = (0 if table.const_value is None else table.const_value.nbytes) / (1 << 20), node_name(reader)
            report.note(self.name, str(table.name), f"its {size:.1f} MiB stay in memory: {name!r} reads more than rows")
        return True


@dataclasses.dataclass(frozen=True)
class _LayerRouter:
    """The router of a layer: the product that computes its logits, its attributes, and the bias of its selection."""

    product: RouterProduct
    spec: RouteSpec
    correction_bias: ir.Value | None


def _note_shares(layers: Iterable[ir.Node], profile: Profile) -> None:
    for node in layers:
        measures = profile.experts(node)
        set_shares(node, measures.count / max(1, measures.tokens))


def _router(layer: ir.Node) -> _LayerRouter | None:
    inputs = dialect.inputs_of(layer)
    chosen = inputs.get("experts")
    route = layer if chosen is None else chosen.producer()
    if route is None or not (dialect.is_moec(route, "MoE") or dialect.is_moec(route, "Route")):
        return None
    operands = dialect.inputs_of(route)
    logits, x = operands["logits"], inputs["x"]
    product = None if logits is None or x is None else router_product(logits, x)
    if product is None:
        return None
    return _LayerRouter(product, dialect.spec_of(route, RouteSpec), operands["correction_bias"])


def _obstacle(node: ir.Node, following: ir.Node, router: _LayerRouter | None) -> str | None:
    """The reason why the experts of a layer cannot be predicted from the rows of the layer before; None if they can."""
    if router is None:
        return "its logits are no product of its rows with a constant matrix"
    if router.spec.selection == "expert_choice" or router.spec.capacity:
        return "its router looks at all tokens together"
    rows, rows_after = (dialect.inputs_of(layer)["x"] for layer in (node, following))
    if rows is None or rows_after is None or _width(rows) is None or _width(rows) != _width(rows_after):
        return "its rows have another size than those of the layer before"
    if rows.dtype != rows_after.dtype:
        return "its rows have another type than those of the layer before"
    return None


def _tell_absent(graph: ir.Graph, layer: ir.Node) -> None:
    """Tell the router of a layer which experts are not in memory, if it can select others instead."""
    try:
        routing = routing_of(layer)
    except UnsupportedError:
        return
    spec = dialect.spec_of(routing.route, RouteSpec)
    if spec.selection != "topk" or spec.score == "sparsemixer" or spec.capacity or routing.table is not None:
        return
    experts = with_route(graph, layer)
    route = routing_of(experts).route
    down, logits = dialect.inputs_of(experts)["down"], dialect.inputs_of(route)["logits"]
    absent = dialect.make_node("Absent", {"logits": logits, "weights": down})
    (tolerance,) = absent.outputs
    tolerance.name = fresh_name(graph, f"{experts.outputs[0].name}_absent")
    tolerance.type = ir.TensorType(ir.DataType.FLOAT)
    tolerance.shape = None if logits is None or logits.shape is None else ir.Shape([logits.shape[1]])
    _bring_before(route, down)
    graph.insert_before(route, absent)
    position = dialect.INPUTS["Route"].index("tolerance")
    route.resize_inputs(position + 1)
    route.replace_input_with(position, tolerance)


def _width(value: ir.Value) -> int | None:
    size = None if value.shape is None else value.shape[-1]
    return size if isinstance(size, int) else None


def _expect(write: Writer, node: ir.Node, following: ir.Node, router: _LayerRouter) -> None:
    x, product = node.inputs[0], router.product.node
    down = dialect.inputs_of(following)["down"]
    assert x is not None
    for operand in (*product.inputs[1:], router.correction_bias, down):
        _bring_before(node, operand)
    again = ir.Node(product.domain, product.op_type, [x, *product.inputs[1:]], list(product.attributes.values()))
    logits = write.insert(again, "next_logits")
    operands = {"logits": logits, "correction_bias": router.correction_bias}
    route = dialect.make_node("Route", operands, router.spec)
    write.insert(route, "next_weights", "next_experts")
    expected = {"x": x, "experts": route.outputs[1], "weights": down}
    rows = write.insert(dialect.make_node("Expect", expected), "rows")
    for added in (again, route):
        added.outputs[0].type = product.outputs[0].type
    route.outputs[1].type = ir.TensorType(ir.DataType.INT32)
    logits.shape = ir.Shape([x.shape[0] if x.shape else None, *(product.outputs[0].shape or [None])[-1:]])
    rows.type, rows.shape = x.type, x.shape
    node.replace_input_with(0, rows)


def _bring_before(node: ir.Node, value: ir.Value | None) -> None:
    """Move the nodes that compute a weight, which depend only on constants, in front of ``node``."""
    maker = None if value is None else value.producer()
    if maker is None or maker in _before(node):
        return
    for operand in maker.inputs:
        _bring_before(node, operand)
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    graph.remove(maker)
    graph.insert_before(node, maker)


def _before(node: ir.Node) -> set[ir.Node]:
    assert node.graph is not None
    return set(itertools.takewhile(lambda other: other is not node, node.graph))

"""Every rule of the verifier has a model that breaks it; models that break none pass."""

from collections.abc import Callable

import onnx_ir as ir
import pytest

from moec.common.errors import VerificationError
from moec.ir.dialect import DispatchSpec, ExpertsSpec, LinearSpec, ProductSpec, RouteSpec, make_node
from moec.ir.rules import RULES
from moec.ir.verifier import verify, violations

Shape = tuple[int | str | None, ...] | None

SHAPES: dict[str, Shape] = {
    "x": ("T", 8),
    "logits": ("T", 4),
    "correction_bias": (4,),
    "tolerance": (4,),
    "weights": ("T", 2),
    "experts": ("T", 2),
    "up": (4, 12, 8),
    "down": (4, 8, 6),
    "gate": (4, 6, 8),
    "up_bias": (4, 12),
    "down_bias": (4, 8),
    "gate_bias": (4, 6),
}
ROUTE = ("logits", "correction_bias")
TOLERANT = ("logits", "tolerance")
EXPERTS = ("x", "weights", "experts", "up", "down", "up_bias", "down_bias")
SEPARATE = ("x", "weights", "experts", "up", "down", "gate", "gate_bias")
GROUPED = {"x": ("R", 8), "weights": (4, 8, 5), "offsets": (5,), "bias": (4, 5)}
MOE = ("x", "logits", "correction_bias", "up", "down", "up_bias", "down_bias")


def model_with(node: ir.Node) -> ir.Model:
    node.name = "the_node"
    for index, output in enumerate(node.outputs):
        output.name = f"output_{index}"
    inputs = [value for value in node.inputs if value is not None]
    return ir.Model(ir.Graph(inputs, node.outputs, nodes=[node], opset_imports={"": 24, "moec": 1}), ir_version=10)


def node_of(
    op_type: str,
    names: tuple[str, ...],
    *specs: RouteSpec | DispatchSpec | ProductSpec,
    types: dict | None = None,
    **shapes: Shape,
) -> ir.Node:
    """A node whose inputs have the usual shapes and types, except the given ones."""
    values = {}
    for name in names:
        usual = ir.DataType.INT32 if name in ("experts", "offsets", "positions") else ir.DataType.FLOAT
        values[name] = ir.val(name, (types or {}).get(name, usual), shapes.get(name, SHAPES.get(name)))
    return make_node(op_type, values, *specs)


def route(spec: RouteSpec | None = None, names: tuple[str, ...] = ROUTE, **changes) -> ir.Node:
    return node_of("Route", names, spec or RouteSpec(k=2), **changes)


def experts(spec: ExpertsSpec | None = None, names: tuple[str, ...] = EXPERTS, **changes) -> ir.Node:
    return node_of("Experts", names, spec or ExpertsSpec(), **changes)


def moe(route_spec: RouteSpec | None = None, spec: ExpertsSpec | None = None, **changes) -> ir.Node:
    return node_of("MoE", MOE, route_spec or RouteSpec(k=2), spec or ExpertsSpec(), **changes)


def grouped(**changes) -> ir.Node:
    return node_of("GroupedMatMul", tuple(GROUPED), **{**GROUPED, **changes})


def dispatch(spec: DispatchSpec | None = None, **changes) -> ir.Node:
    return node_of("Dispatch", ("experts",), spec or DispatchSpec(4), **changes)


def combine(**changes) -> ir.Node:
    shapes = {"rows": ("R", 8), "weights": ("T", 2), "positions": ("T", 2), **changes}
    return node_of("Combine", ("rows", "weights", "positions"), **shapes)


def linear(spec: LinearSpec | None = None, **changes) -> ir.Node:
    shapes = {"x": ("B", "T", 8), "weight": (5, 8), "bias": (5,), **changes}
    return node_of("Linear", ("x", "weight", "bias"), spec or LinearSpec(), **shapes)


def with_attribute(node: ir.Node, attribute: ir.Attr) -> ir.Node:
    node.attributes[attribute.name] = attribute
    return node


def without_k() -> ir.Node:
    node = route()
    del node.attributes["k"]
    return node


def without_expert_count() -> ir.Node:
    node = dispatch()
    del node.attributes["expert_count"]
    return node


def with_wide_owners() -> ir.Node:
    node = dispatch()
    node.outputs[3].dtype = ir.DataType.INT64
    return node


def with_wide_ids() -> ir.Node:
    node = route()
    node.outputs[1].dtype = ir.DataType.INT64
    return node


def separate(**changes) -> ir.Node:
    shapes: dict[str, Shape] = {"up": (4, 6, 8), **changes}
    return experts(ExpertsSpec(gate_layout="separate"), SEPARATE, **shapes)


VALID: dict[str, Callable[[], ir.Node]] = {
    "route": route,
    "route without bias": lambda: route(names=("logits",)),
    "route over groups": lambda: route(RouteSpec(k=2, groups=2, groups_kept=1)),
    "route to all": lambda: route(RouteSpec(k=4, selection="all")),
    "expert choice": lambda: route(RouteSpec(k=4, selection="expert_choice", capacity=2)),
    "sparse mixer": lambda: route(RouteSpec(k=2, score="sparsemixer"), names=("logits",)),
    "experts": experts,
    "experts with a gate of their own": separate,
    "experts without a gate": lambda: experts(
        ExpertsSpec("relu", "none"), ("x", "weights", "experts", "up", "down"), up=(4, 6, 8)
    ),
    "transposed weights": lambda: experts(
        ExpertsSpec(up_transposed=True, down_transposed=True), up=(4, 8, 12), down=(4, 6, 8)
    ),
    "clamped swiglu": lambda: experts(ExpertsSpec(alpha=1.702, limit=7.0, up_offset=1.0)),
    "unknown sizes": lambda: experts(x=(None, None), up=("E", "twice_f", "d"), weights=None),
    "unknown types": lambda: experts(types=dict.fromkeys(EXPERTS)),
    "routing in float32 of float16 experts": lambda: moe(
        types={name: ir.DataType.FLOAT16 for name in MOE if name not in ROUTE}
    ),
    "moe": moe,
    "identity experts": lambda: moe(spec=ExpertsSpec(identity_experts=2), logits=("T", 6), correction_bias=(6,)),
    "experts of several sizes": lambda: experts(ExpertsSpec(hidden_sizes=(6, 0, 3, 6))),
    "experts in int8": lambda: experts(ExpertsSpec(arithmetic="int8", activation_group=4)),
    "linear": linear,
    "linear on a vector": lambda: linear(x=(8,)),
    "transposed linear": lambda: linear(LinearSpec(transposed=True, arithmetic="bfloat16"), weight=(8, 5)),
    "dispatch": dispatch,
    "combine": combine,
    "combine of numbers of rows and tokens": lambda: combine(rows=(7, 8), weights=(5, 2), positions=(5, 2)),
    "grouped": grouped,
    "grouped without bias": lambda: node_of("GroupedMatMul", tuple(GROUPED)[:3], **GROUPED),
}


@pytest.mark.parametrize("case", VALID)
def test_valid_nodes_pass(case: str) -> None:
    verify(model_with(VALID[case]()))


BROKEN: list[tuple[str, str, Callable[[], ir.Node]]] = [
    ("known-operator", "no such operator", lambda: ir.node("Router", [], domain="moec", num_outputs=1)),
    ("input-count", "lacks input logits", lambda: ir.node("Route", [], {"k": 2}, domain="moec", num_outputs=2)),
    ("input-count", "lacks input up, down", lambda: experts(names=("x", "weights", "experts"))),
    (
        "input-count",
        "has 4 inputs; at most 3",
        lambda: ir.node("Route", [ir.val(n) for n in "abcd"], {"k": 2}, domain="moec", num_outputs=2),
    ),
    ("output-count", "has 1 outputs", lambda: ir.node("Route", [ir.val("logits")], {"k": 2}, domain="moec")),
    ("normalization", "cannot be negative", lambda: with_attribute(route(), ir.AttrFloat32("normalize_floor", -1.0))),
    ("normalization", "belongs to normalize", lambda: with_attribute(route(), ir.AttrFloat32("normalize_floor", 0.5))),
    ("known-attribute", "no attribute top_k", lambda: with_attribute(route(), ir.AttrInt64("top_k", 2))),
    (
        "known-attribute",
        "no attribute activation",
        lambda: with_attribute(route(), ir.AttrString("activation", "silu")),
    ),
    ("attribute-type", "scale is of type INT", lambda: with_attribute(route(), ir.AttrInt64("scale", 2))),
    ("attribute-type", "k is of type FLOAT", lambda: with_attribute(route(), ir.AttrFloat32("k", 2.0))),
    ("attribute-choice", "score='softmin'", lambda: route(RouteSpec(k=2, score="softmin"))),
    ("attribute-choice", "activation='swish'", lambda: experts(ExpertsSpec(activation="swish"))),
    ("attribute-choice", "gate_layout='halves'", lambda: moe(spec=ExpertsSpec(gate_layout="halves"))),
    ("attribute-choice", "arithmetic='fp4'", lambda: linear(LinearSpec(arithmetic="fp4"))),
    (
        "attribute-type",
        "hidden_sizes is of type INT",
        lambda: with_attribute(experts(), ir.AttrInt64("hidden_sizes", 2)),
    ),
    ("rank", "bias has rank 2", lambda: linear(bias=(1, 5))),
    ("dtype", "weight is FLOAT16", lambda: linear(types={"weight": ir.DataType.FLOAT16})),
    ("activation-group", "is -1", lambda: linear(LinearSpec(arithmetic="int8", activation_group=-1))),
    ("activation-group", "belongs to", lambda: experts(ExpertsSpec(activation_group=32))),
    ("linear-sizes", "x is a scalar", lambda: linear(x=())),
    ("linear-sizes", "8 in x, 7 in weight", lambda: linear(weight=(5, 7))),
    ("linear-sizes", "8 in weight, 5 in bias", lambda: linear(LinearSpec(transposed=True), weight=(8, 8))),
    ("hidden-sizes", "between -1 and 2", lambda: experts(ExpertsSpec(hidden_sizes=(2, -1, 2, 2)))),
    ("hidden-sizes", "an expert has 0 to 6", lambda: experts(ExpertsSpec(hidden_sizes=(2, 2, 2, 7)))),
    ("hidden-sizes", "2 in hidden_sizes, 4 in up", lambda: experts(ExpertsSpec(hidden_sizes=(2, 2)))),
    ("rank", "logits has rank 3", lambda: route(logits=(1, "T", 4))),
    ("rank", "up has rank 2", lambda: experts(up=(12, 8))),
    ("rank", "weights has rank 2", lambda: grouped(weights=(8, 5))),
    ("ids-int32", "experts is INT64", lambda: experts(types={"experts": ir.DataType.INT64})),
    ("ids-int32", "experts is INT64", with_wide_ids),
    ("ids-int32", "owners is INT64", with_wide_owners),
    ("ids-int32", "offsets is INT64", lambda: grouped(types={"offsets": ir.DataType.INT64})),
    ("ids-int32", "positions is FLOAT", lambda: combine(types={"positions": ir.DataType.FLOAT})),
    ("rank", "experts has rank 1", lambda: dispatch(experts=("T",))),
    ("rank", "offsets has rank 2", lambda: grouped(offsets=(4, 2))),
    ("rank", "rows has rank 3", lambda: combine(rows=("T", 2, 8))),
    ("float-routing", "weights is INT32", lambda: combine(types={"weights": ir.DataType.INT32})),
    ("dispatched-experts", "lacks attribute expert_count", without_expert_count),
    ("dispatched-experts", "expert_count is 0", lambda: dispatch(DispatchSpec(0))),
    ("float-routing", "logits is INT32", lambda: route(types={"logits": ir.DataType.INT32})),
    ("float-routing", "weights is BOOL", lambda: experts(types={"weights": ir.DataType.BOOL})),
    ("dtype", "down is FLOAT16", lambda: experts(types={"down": ir.DataType.FLOAT16})),
    ("dtype", "bias is DOUBLE", lambda: grouped(types={"bias": ir.DataType.DOUBLE})),
    ("k-present", "lacks attribute k", without_k),
    ("k-range", "k is 5, but there are only 4", lambda: route(RouteSpec(k=5))),
    ("k-range", "k is 0", lambda: moe(RouteSpec(k=0))),
    ("selection-of-all", "k is 2 and there are 4", lambda: route(RouteSpec(k=2, selection="all"))),
    ("relative-threshold", "is 1.5; expected", lambda: route(RouteSpec(k=2, relative_threshold=1.5))),
    ("relative-threshold", "is -0.5; expected", lambda: route(RouteSpec(k=2, relative_threshold=-0.5))),
    ("relative-threshold", "is nan; expected", lambda: route(RouteSpec(k=2, relative_threshold=float("nan")))),
    ("capacity", "capacity is -1", lambda: route(RouteSpec(k=2, capacity=-1))),
    ("capacity", "needs a capacity", lambda: route(RouteSpec(k=4, selection="expert_choice"))),
    ("groups", "do not divide into 3", lambda: route(RouteSpec(k=2, groups=3))),
    ("groups", "keeps 3 of 2", lambda: route(RouteSpec(k=2, groups=2, groups_kept=3))),
    ("groups", "keeps 1 of 0", lambda: route(RouteSpec(k=2, groups=0))),
    ("groups", "hold only 2 experts", lambda: route(RouteSpec(k=3, groups=2))),
    ("sparsemixer", "at most 2", lambda: route(RouteSpec(k=3, score="sparsemixer"))),
    ("sparsemixer", "correction_bias", lambda: route(RouteSpec(k=2, score="sparsemixer"))),
    ("sparsemixer", "groups", lambda: route(RouteSpec(k=2, score="sparsemixer", groups=2), ("logits",))),
    ("correction-bias-size", "4 in logits, 3 in correction_bias", lambda: route(correction_bias=(3,))),
    ("tolerance", "4 in logits, 3 in tolerance", lambda: route(names=TOLERANT, tolerance=(3,))),
    ("tolerance", "selection='all'", lambda: route(RouteSpec(k=4, selection="all"), TOLERANT)),
    ("tolerance", "score='sparsemixer'", lambda: route(RouteSpec(k=2, score="sparsemixer"), TOLERANT)),
    ("gate-input", "needs input gate", lambda: experts(ExpertsSpec(gate_layout="separate"))),
    ("gate-input", "takes no input gate", lambda: experts(names=SEPARATE)),
    ("gate-input", "takes no input gate_bias", lambda: experts(names=(*EXPERTS, "gate_bias"))),
    ("gate-attributes", "limit needs a gate", lambda: experts(ExpertsSpec("silu", "none", limit=7.0))),
    ("gate-attributes", "up_offset needs a gate", lambda: experts(ExpertsSpec("silu", "none", up_offset=1.0))),
    ("gate-attributes", "limit is -1.0", lambda: experts(ExpertsSpec(limit=-1.0))),
    ("gate-attributes", "alpha belongs to silu", lambda: experts(ExpertsSpec("gelu", alpha=1.702))),
    ("gate-attributes", "identity_experts is -1", lambda: experts(ExpertsSpec(identity_experts=-1))),
    ("expert-count", "4 in up, 3 in down", lambda: experts(down=(3, 8, 6))),
    ("expert-count", "4 in up", lambda: moe(logits=("T", 6), correction_bias=(6,))),
    ("hidden-size", "9 in x, 8 in up", lambda: experts(x=("T", 9))),
    ("hidden-size", "8 in x, 8 in up, 7 in down", lambda: experts(down=(4, 7, 6))),
    ("hidden-size", "7 in gate", lambda: separate(gate=(4, 6, 7))),
    ("hidden-size", "12 in up", lambda: experts(ExpertsSpec(up_transposed=True))),
    ("intermediate-size", "6 in up, 5 in down", lambda: experts(down=(4, 8, 5))),
    ("intermediate-size", "5 in gate", lambda: separate(gate=(4, 5, 8))),
    ("intermediate-size", "13 is odd", lambda: experts(up=(4, 13, 8), up_bias=(4, 13))),
    ("bias-size", "12 in up, 6 in up_bias", lambda: experts(up_bias=(4, 6))),
    ("bias-size", "8 in down, 7 in down_bias", lambda: moe(down_bias=(4, 7))),
    ("bias-size", "6 in gate, 5 in gate_bias", lambda: separate(gate_bias=(4, 5))),
    ("pairs", "tokens differs: 5 in x, 6 in weights", lambda: experts(x=(5, 8), weights=(6, 2))),
    ("pairs", "per token differs: 2 in weights, 3 in experts", lambda: experts(experts=("T", 3))),
    ("pairs", "tokens differs: 5 in weights, 6 in positions", lambda: combine(weights=(5, 2), positions=(6, 2))),
    ("pairs", "per token differs: 2 in weights, 3 in positions", lambda: combine(positions=("T", 3))),
    ("token-count", "5 in x, 6 in logits", lambda: moe(x=(5, 8), logits=(6, 4))),
    ("grouped-sizes", "experts differs", lambda: grouped(bias=(3, 5))),
    ("grouped-sizes", "experts differs: 4 in weights, 4 in bias, 3 in offsets", lambda: grouped(offsets=(4,))),
    ("grouped-sizes", "input size differs", lambda: grouped(x=("T", 7))),
    ("grouped-sizes", "output size differs", lambda: grouped(bias=(4, 6))),
]


@pytest.mark.parametrize("rule, excerpt, make", BROKEN, ids=[f"{rule}: {message}" for rule, message, _ in BROKEN])
def test_a_broken_rule_is_named_with_its_node(rule: str, excerpt: str, make: Callable[[], ir.Node]) -> None:
    with pytest.raises(VerificationError) as caught:
        verify(model_with(make()))
    message = str(caught.value)
    assert message.startswith("node the_node (moec.")
    assert f"breaks rule {rule}: " in message
    assert excerpt in message and "\n" not in message


def test_every_rule_has_a_model_that_breaks_it() -> None:
    assert {rule.name for rule in RULES} == {rule for rule, _, _ in BROKEN}


def chain() -> ir.Model:
    x = ir.val("x", ir.DataType.FLOAT, ("T",))
    first = ir.node("Relu", [x], name="first")
    second = ir.node("Neg", first.outputs, name="second")
    first.outputs[0].name, second.outputs[0].name = "a", "b"
    return ir.Model(ir.Graph([x], second.outputs, nodes=[first, second], opset_imports={"": 24}), ir_version=10)


def test_a_graph_in_order_passes() -> None:
    verify(chain())


def test_use_before_definition() -> None:
    model = chain()
    first, second = model.graph
    model.graph.remove(second)
    model.graph.insert_before(first, second)
    with pytest.raises(VerificationError, match=r"node second \(Neg\) breaks rule topological-order: uses a"):
        verify(model)


def test_use_of_an_undefined_value() -> None:
    model = chain()
    model.graph[1].replace_input_with(0, ir.val("ghost"))
    with pytest.raises(VerificationError, match=r"node second \(Neg\) breaks rule undefined-value: uses ghost"):
        verify(model)


def test_an_undefined_output() -> None:
    model = chain()
    model.graph.outputs[0] = ir.val("ghost")
    with pytest.raises(VerificationError, match="breaks rule undefined-value: its output ghost"):
        verify(model)


def test_two_definitions_of_one_name() -> None:
    model = chain()
    model.graph[1].outputs[0].name = "a"
    with pytest.raises(VerificationError, match=r"node second \(Neg\) breaks rule single-definition"):
        verify(model)


def test_the_structure_of_nested_graphs_is_checked() -> None:
    model = chain()
    inner = ir.node("Abs", [ir.val("ghost")], name="inner")
    inner.outputs[0].name = "c"
    body = ir.Graph([], inner.outputs, nodes=[inner], name="body")
    model.graph[1].attributes["then_branch"] = ir.AttrGraph("then_branch", body)
    assert list(violations(model)) == [
        "node inner (Abs) breaks rule undefined-value: uses ghost, which nothing defines"
    ]


def test_nested_graphs_may_use_values_around_them() -> None:
    model = chain()
    inner = ir.node("Abs", model.graph[0].outputs, name="inner")
    inner.outputs[0].name = "c"
    body = ir.Graph([], inner.outputs, nodes=[inner], name="body")
    model.graph[1].attributes["then_branch"] = ir.AttrGraph("then_branch", body)
    verify(model)

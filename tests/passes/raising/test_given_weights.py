"""Mixtures whose weights are those of no known router: it stays, and the experts are raised."""

import numpy as np
import pytest

from moec.common.budgets import FOLLOWED_ZEROS, NESTED_FACTORS
from moec.ir import dialect, interpreter
from moec.ir.dialect import RouteSpec, spec_of
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.passes.raise_moe import RaiseMoE
from moec.passes.raising.dataflow import DataFlow
from moec.passes.raising.given_weights import most_chosen

from ..before_after import check, model_of

SIGNATURE = "(float[T,6] x) => (float[T,6] y)"
STACKS = "float[6,4] gate, float[4,6,5] up, float[4,5,6] down"
EXPERTS = """h = Einsum <equation = "td,edf->tef"> (x, up)
    a = Relu (h)
    o = Einsum <equation = "tef,efd->ted"> (a, down)
    y = Einsum <equation = "ted,te->td"> (o, weights)"""
RAISED = """y = moec.Experts <activation = "relu", down_transposed = 1, gate_layout = "none", up_transposed = 1>
        (x, "y.weights", "y.experts", up, down)"""
PASSES = "infer-shapes,raise-moe,remove-dead-nodes"

SOFT = """logits = MatMul (x, gate)
    weights = Softmax <axis = -1> (logits)"""
EVERY = '"y.weights", "y.experts" = moec.Route <k = 4, score = "relu", selection = "all", threshold = 0.0> (weights)'
CHOSEN = """logits = MatMul (x, gate)
    top, chosen = TopK <axis = -1> (logits, two)
    raised = Exp (top)
    shape = Shape (logits)
    zeros = ConstantOfShape (shape)
    weights = ScatterElements <axis = -1> (zeros, chosen, raised)"""
TWO = '"y.weights", "y.experts" = moec.Route <k = 2, score = "relu", threshold = 0.0> (weights)'


@pytest.mark.parametrize(
    ("router", "route"),
    [
        pytest.param(SOFT, EVERY, id="all"),
        pytest.param(SOFT.replace("Softmax <axis = -1>", "Relu"), EVERY, id="those above zero"),
        pytest.param(CHOSEN, TWO, id="two that an unknown function weighs"),
    ],
)
def test_experts_are_raised_behind_a_router_that_stays(router, route):
    constants = f"{STACKS}, int64[1] two = {{2}}" if "two" in router else STACKS
    (remark,) = check(
        PASSES,
        f"{SIGNATURE} <{constants}> {{ {router}\n {EXPERTS} }}",
        f"{SIGNATURE} <{constants}> {{ {router}\n {route}\n {RAISED} }}",
    )
    assert remark.message.startswith("its router stays as ordinary operators: ")


def test_weights_may_be_experts_by_tokens(build, normal, raise_and_compare):
    """The weights are those not below the second largest, after a Transpose."""
    text = f"""logits = MatMul (x, router)
        top, chosen = TopK <axis = -1> (logits, k)
        second = ReduceMin <keepdims = 1> (top, minus_one)
        is_less = Less (logits, second)
        masked = Where (is_less, low, logits)
        turned = Transpose <perm = [1, 0]> (masked)
        weights = Softmax <axis = 0> (turned)
        {EXPERTS.replace("te->td", "et->td")}"""
    low = np.array(-np.inf, np.float32)
    route, _ = raise_and_compare(build(text, up=normal(4, 6, 5), down=normal(4, 5, 6), low=low))
    assert spec_of(route, RouteSpec) == RouteSpec(k=4, score="relu", selection="all", threshold=0.0)


PRODUCT = """logits = MatMul (x, gate)
    soft = Softmax <axis = -1> (logits)
    signed = Tanh (logits)
    weights = Mul (soft, signed)"""


def test_weights_that_may_be_negative_leave_nobody_out(normal):
    """The weights come after a softmax, which is searched for if nothing selects."""
    model = model_of(f"{SIGNATURE} <{STACKS}> {{ {PRODUCT}\n {EXPERTS} }}")
    x = normal(9, 6)
    before = interpreter.run(model, {"x": x})["y"]
    pipeline.run(model, pipeline.parse(PASSES))
    (route,) = [node for node in model.graph if dialect.is_moec(node, "Route")]
    assert spec_of(route, RouteSpec) == RouteSpec(k=4, score="identity", selection="all")
    np.testing.assert_allclose(interpreter.run(model, {"x": x})["y"], before, atol=1e-5)


def test_places_that_run_out_stay_with_the_router(build, texts, normal, raise_and_compare):
    """The weights of later tokens depend on earlier ones; an expert's result for a token does not."""
    model = build(limited(texts, "mixture"), up=normal(4, 6, 5), down=normal(4, 5, 6), **LIMITS)
    report = Report()
    route, _ = raise_and_compare(model, report)
    assert spec_of(route, RouteSpec) == RouteSpec(k=2, score="relu", threshold=0.0)
    assert "CumSum" in {node.op_type for node in model.graph}


LIMITS = {"token_axis": np.array(0), "capacity": np.array(3, np.float32), "nothing": np.array(0, np.float32)}


def limited(texts, weights: str) -> str:
    """The first tokens alone have an expert, counted per expert whatever their slot."""
    kept = f"""is_used = Greater ({weights}, nothing)
        used = Cast <to = 1> (is_used)
        count = CumSum (used, token_axis)
        fits = LessOrEqual (count, capacity)
        as_number = Cast <to = 1> (fits)
        kept = Mul ({weights}, as_number)
        h = Einsum"""
    return texts["dense"].replace("(o, mixture)", "(o, kept)").replace("h = Einsum", kept)


def test_sibling_where_experts_see_other_tokens_stays(build, texts, normal, raise_and_compare):
    text = texts["dense"].replace("(o, mixture)", "(o, scores)").replace("Relu (h)", "CumSum (h, scalar_zero)")
    report = Report()
    assert raise_and_compare(build(text, up=normal(4, 6, 5), down=normal(4, 5, 6)), report) == []
    assert report.unraised


def test_sibling_whose_results_others_use_stays():
    """Two mixtures of the same experts: raised, they would be computed twice."""
    text = f"(float[T,6] x) => (float[T,6] y, float[T,4,6] o) <{STACKS}> {{ {SOFT}\n {EXPERTS} }}"
    model = model_of(text)
    RaiseMoE().apply(model, Report())
    assert not any(dialect.is_moec(node) for node in model.graph)


PLACED = """
    shape = Shape (scores)
    zeros = ConstantOfShape (shape)
    mixture = ScatterElements <axis = -1> (zeros, chosen, w)
    is_used = Greater (mixture, nothing)
    used = Cast <to = 1> (is_used)
    count = CumSum <reverse = 1> (used, token_axis)
    fits = LessOrEqual (count, capacity)
    fitting = Cast <to = 1> (fits)
    kept = Mul (mixture, fitting)
    column = Unsqueeze (count, minus_one)
    stands = Equal (column, places)
    place = Cast <to = 1> (stands)
    kept_column = Unsqueeze (kept, minus_one)
    combine = Mul (kept_column, place)
    is_given = Greater (combine, nothing)
    given = Cast <to = 1> (is_given)
    slots = Einsum <equation = "tec,td->ecd"> (given, x)
    h = MatMul (slots, up)
    a = Relu (h)
    o = MatMul (a, down)
    y = Einsum <equation = "tec,ecd->td"> (combine, o)
"""


def test_weights_of_places_may_be_products_of_what_the_router_makes(build, texts, normal, raise_and_compare):
    multiplied = 'combine = Einsum <equation = "te,tec->tec"> (kept, place)'
    text = texts["router"] + PLACED.replace("kept_column = Unsqueeze (kept, minus_one)", "")
    text = text.replace("combine = Mul (kept_column, place)", multiplied)
    weights = {"up": normal(4, 6, 5), "down": normal(4, 5, 6), "places": np.array([1, 2, 3], np.float32)}
    route, _ = raise_and_compare(build(text, **weights, **LIMITS))
    assert spec_of(route, RouteSpec) == RouteSpec(k=2, score="relu", threshold=0.0)


def test_weights_are_looked_for_among_values_as_wide_as_the_logits(build, texts, normal, raise_and_compare):
    """Behind a router that is not known stand many values that are as wide as a token."""
    text = texts["dense"].replace("total = ReduceSum <keepdims = 1> (top, minus_one)", "total = Exp (top)")
    text = text.replace("w = Div (top, total)", "w = Sqrt (total)").replace("y = Einsum", "mixed = Einsum")
    text += "shaped = Reshape (mixed, rows)\n a0 = Neg (shaped)\n a1 = Neg (a0)\n a2 = Neg (a1)\n a3 = Neg (a2)\n"
    route, _ = raise_and_compare(build(f"{text} y = Neg (a3)", up=normal(4, 6, 5), down=normal(4, 5, 6)))
    assert spec_of(route, RouteSpec) == RouteSpec(k=2, score="relu", threshold=0.0)


@pytest.mark.parametrize("shared", [False, True])
def test_experts_whose_tokens_have_places_are_raised_behind_a_router_that_stays(
    build, texts, normal, raise_and_compare, shared
):
    """Unless tokens without a place share the last one."""
    text = texts["router"] + PLACED
    if shared:
        text = text.replace("kept = Mul (mixture, fitting)", "kept = Identity (mixture)")
        text = text.replace("Unsqueeze (count, minus_one)", "Unsqueeze (at, minus_one)")
        text = text.replace("column = Unsqueeze (at", "at = Min (count, capacity)\n column = Unsqueeze (at")
    weights = {"up": normal(4, 6, 5), "down": normal(4, 5, 6), "places": np.array([1, 2, 3], np.float32)}
    report = Report()
    nodes = raise_and_compare(build(text, **weights, **LIMITS), report)
    if shared:
        assert nodes == [] and "left as ordinary operators" in report.remarks[0].message
        return
    route, _ = nodes
    assert spec_of(route, RouteSpec) == RouteSpec(k=2, score="relu", threshold=0.0)
    assert report.remarks[0].message.startswith("its router stays as ordinary operators: ")


@pytest.mark.parametrize(
    ("scatters", "nested", "exceeded"),
    [
        (0, 1, []),
        (0, NESTED_FACTORS.limit, []),
        (0, NESTED_FACTORS.limit + 1, [NESTED_FACTORS]),
        (0, 2000, [NESTED_FACTORS]),
        (9, 0, []),
        (FOLLOWED_ZEROS.limit, 0, [FOLLOWED_ZEROS]),
    ],
)
def test_flags_are_followed_so_far(scatters, nested, exceeded):
    """Two flags of a row are set; what they are scattered into is computed by ``scatters`` nodes, and the flags are
    multiplied ``nested`` times, by the product before, too, so that there are more ways through than steps."""
    steps = ["shape = Shape (x) s0 = ConstantOfShape (shape)"]
    steps += [f"s{n + 1} = Neg (s{n})" for n in range(scatters)]
    steps += [f"v0 = ScatterElements <axis = -1> (s{scatters}, ids, ones)", "p0 = Neg (v0)"]
    steps += [f"v{n + 1} = Mul (v{n}, p{n}) p{n + 1} = Mul (p{n}, v{n})" for n in range(nested)]
    text = f"""(float[T,8] x, int64[T,2] ids, float[T,2] ones) => (float[T,8] y) {{
        {" ".join(steps)} y = Neg (v{nested}) }}"""
    model = model_of(text)
    pipeline.run(model, pipeline.parse("infer-shapes"), Report())
    graph = model.graph
    actual = {}
    assert most_chosen(DataFlow(graph), graph.outputs[0].producer().inputs[0], actual) == (None if exceeded else 2)
    assert list(actual) == exceeded


@pytest.mark.parametrize("nested", [NESTED_FACTORS.limit, NESTED_FACTORS.limit + 1])
def test_weights_that_are_followed_no_further_leave_a_remark(build, texts, normal, raise_and_compare, nested):
    """Then a token may have all experts."""
    text = texts["dense"].replace("w = Div (top, total)", "w = Exp (total)").replace("(o, mixture)", f"(o, m{nested})")
    factors = "m0 = Identity (mixture)\n" + "\n".join(f"m{n + 1} = Mul (m{n}, factor_{n})" for n in range(nested))
    text = text.replace("h = Einsum", f"{factors}\n h = Einsum")
    constants = {f"factor_{n}": np.exp(normal(4)) for n in range(nested)}
    report = Report()
    route, _ = raise_and_compare(build(text, up=normal(4, 6, 5), down=normal(4, 5, 6), **constants), report)
    reported = [remark for remark in report.remarks if "nested factors" in remark.message]
    beyond = nested > NESTED_FACTORS.limit
    assert len(reported) == beyond and spec_of(route, RouteSpec).k == (4 if beyond else 2)

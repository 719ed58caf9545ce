"""Routers are identified by their function, however they are written."""

import numpy as np
import pytest

from moec.ir.dialect import RouteSpec, spec_of
from moec.passes.framework.base import Report
from moec.passes.raise_moe import RaiseMoE
from moec.passes.raising import router
from moec.passes.raising.candidates import candidate_blocks, find_logits
from moec.passes.raising.dataflow import DataFlow

SPELLINGS = {
    "softmax over the selected": (
        "top, chosen = TopK <axis = -1> (logits, k)\n w = Softmax <axis = -1> (top)\n",
        {RouteSpec(k=2, normalize=True), RouteSpec(k=2, score="softmax_topk")},
    ),
    "softmax as it is": (
        "scores = Softmax <axis = -1> (logits)\n w, chosen = TopK <axis = -1> (scores, k)\n",
        {RouteSpec(k=2)},
    ),
    "softmax spelled out": (
        "e = Exp (logits)\n t = ReduceSum <keepdims = 1> (e, minus_one)\n scores = Div (e, t)\n"
        "w, chosen = TopK <axis = -1> (scores, k)\n",
        {RouteSpec(k=2)},
    ),
    "sigmoid with a bias on the choice": (
        "sig = Sigmoid (logits)\n c = Add (sig, bias)\n unused, chosen = TopK <axis = -1> (c, k)\n"
        "picked = GatherElements <axis = -1> (sig, chosen)\n total = ReduceSum <keepdims = 1> (picked, minus_one)\n"
        "safe = Add (total, epsilon)\n share = Div (picked, safe)\n w = Mul (share, factor)\n",
        {RouteSpec(k=2, score="sigmoid", normalize=True, normalize_epsilon=1e-20, scale=2.5)},
    ),
    "sigmoid of the selected logits": (
        "top, chosen = TopK <axis = -1> (logits, k)\n w = Sigmoid (top)\n",
        {RouteSpec(k=2, score="sigmoid_topk")},
    ),
    "sigmoid, and the selection among sigmoids": (
        "sig = Sigmoid (logits)\n w, chosen = TopK <axis = -1> (sig, k)\n",
        {RouteSpec(k=2, score="sigmoid")},
    ),
    "floor under the sum": (
        "sig = Sigmoid (logits)\n top, chosen = TopK <axis = -1> (sig, k)\n"
        "total = ReduceSum <keepdims = 1> (top, minus_one)\n safe = Clip (total, floor)\n w = Div (top, safe)\n",
        {RouteSpec(k=2, score="sigmoid", normalize=True, normalize_floor=1e-3)},
    ),
    "small weights dropped": (
        "sig = Sigmoid (logits)\n top, chosen = TopK <axis = -1> (sig, k)\n"
        "small = LessOrEqual (top, tenth)\n w = Where (small, none, top)\n",
        {RouteSpec(k=2, score="sigmoid", threshold=0.1)},
    ),
    "the best of two groups": (
        "sig = Sigmoid (logits)\n grouped = Reshape (sig, pairs)\n"
        "best_of = ReduceMax <keepdims = 0> (grouped, minus_one)\n unused, best = TopK <axis = -1> (best_of, one)\n"
        "hot = Equal (best, places)\n hot3 = Unsqueeze (hot, minus_one)\n"
        "left = Where (hot3, grouped, none)\n masked = Reshape (left, all)\n"
        "w, chosen = TopK <axis = -1> (masked, k)\n",
        {RouteSpec(k=2, score="sigmoid", groups=2, groups_kept=1)},
    ),
    "softplus": (
        "plus = Softplus (logits)\n q = Sqrt (plus)\n w, chosen = TopK <axis = -1> (q, k)\n",
        {RouteSpec(k=2, score="sqrt_softplus")},
    ),
}
ONE_OF_BEST = (
    "best3 = Unsqueeze (best, minus_one)\n same = Equal (best3, places)\n number = Cast <to = 1> (same)\n"
    "hits = ReduceMax <keepdims = 0> (number, one)\n hits3 = Unsqueeze (hits, minus_one)\n hot3 = Cast <to = 9> (hits3)"
)
EXTRA = {"epsilon": np.array(1e-20, np.float32), "factor": np.array(2.5, np.float32)}
EXTRA |= {"floor": np.array(1e-3, np.float32), "tenth": np.array(0.1, np.float32), "none": np.array(0, np.float32)}
EXTRA |= {"pairs": np.array([-1, 2, 2]), "places": np.array([0, 1]), "all": np.array([-1, 4])}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_router(build, texts, normal, raise_and_compare, spelling):
    router, allowed = SPELLINGS[spelling]
    body = texts["batched"].removeprefix(texts["router"])
    text = "logits = MatMul (x, router)\n" + router + body
    route, _ = raise_and_compare(build(text, up=normal(4, 10, 6), down=normal(4, 6, 5), **EXTRA))
    assert spec_of(route, RouteSpec) in allowed
    assert (len(route.inputs) == 2) == ("bias" in spelling)


def test_as_many_slots_as_the_groups_that_are_kept_have_experts(build, texts, normal, raise_and_compare):
    """Two of three groups of three experts, and six slots."""
    router, _ = SPELLINGS["the best of two groups"]
    text = "logits = MatMul (x, router)\n" + router.replace("best_of, one", "best_of, two")
    text = text.replace("hot = Equal (best, places)\n hot3 = Unsqueeze (hot, minus_one)", ONE_OF_BEST)
    sizes = {"pairs": [-1, 3, 3], "places": [0, 1, 2], "all": [-1, 9], "k": [6], "per_token": [-1, 6, 6]}
    sizes |= {"repeat": [1, 6, 1]}
    arrays = {name: np.array(size) for name, size in sizes.items()}
    body = texts["batched"].removeprefix(texts["router"])
    weights = {"router": normal(6, 9), "up": normal(9, 10, 6), "down": normal(9, 6, 5)}
    route, _ = raise_and_compare(build(text + body, **EXTRA | arrays | weights))
    assert spec_of(route, RouteSpec) == RouteSpec(k=6, score="sigmoid", groups=3, groups_kept=2)


GROUPED = (
    "sig = Sigmoid (logits)\n c = Add (sig, correction)\n grouped = Reshape (c, pairs)\n"
    "best_of = ReduceSum <keepdims = 0> (grouped, minus_one)\n unused, best = TopK <axis = -1> (best_of, two)\n"
    "hot = Equal (best, places)\n hot3 = Unsqueeze (hot, minus_one)\n"
    "left = Where (hot3, grouped, out)\n masked = Reshape (left, all)\n"
    "other, chosen = TopK <axis = -1> (masked, k)\n w = GatherElements <axis = -1> (sig, chosen)\n"
).replace("hot = Equal (best, places)\n hot3 = Unsqueeze (hot, minus_one)", ONE_OF_BEST)


@pytest.mark.parametrize("out", [0, -np.inf])
def test_experts_of_groups_that_are_out_may_still_be_chosen(build, texts, normal, raise_and_compare, out):
    """Scores of dropped groups become 0, and scores of others may be less (DeepSeek-V3 in transformers). An expert of a
    dropped group is then selected. This is rare: it takes small scores in the best groups and larger ones in others."""
    correction = np.array([0.34, 0.06, 0.28, -0.51, 0.21, 0.23, -0.19, 0.11], np.float32)
    sizes = {"pairs": [-1, 4, 2], "places": [0, 1, 2, 3], "all": [-1, 8], "k": [3], "per_token": [-1, 3, 6]}
    arrays = {name: np.array(size) for name, size in (sizes | {"repeat": [1, 3, 1]}).items()}
    weights = {"router": normal(6, 8), "up": normal(8, 10, 6), "down": normal(8, 6, 5), "out": np.float32(out)}
    text = "logits = MatMul (x, router)\n" + GROUPED + texts["batched"].removeprefix(texts["router"])
    route, _ = raise_and_compare(build(text, **EXTRA | arrays | weights, correction=correction))
    stays = RouteSpec(k=3, score="relu", threshold=0.0)
    known = RouteSpec(k=3, score="sigmoid", groups=4, groups_kept=2, group_score="sum_top2")
    assert spec_of(route, RouteSpec) == (known if out else stays)


def test_argmax_is_a_top_one(build, texts, normal, raise_and_compare):
    text = texts["dense"].removeprefix(texts["router"])
    router = (
        "logits = MatMul (x, router)\n scores = Softmax <axis = -1> (logits)\n"
        "w = ReduceMax <keepdims = 1> (scores, minus_one)\n chosen = ArgMax <axis = -1, keepdims = 1> (scores)\n"
    )
    route, _ = raise_and_compare(build(router + text, up=normal(4, 6, 5), down=normal(4, 5, 6)))
    assert spec_of(route, RouteSpec) == RouteSpec(k=1)


def test_router_of_several_layers_ends_before_its_last_product(build, texts, normal, raise_and_compare):
    text = texts["batched"].replace("MatMul (x, router)", "MatMul (hidden, router)")
    text = "before = MatMul (x, square)\n hidden = Tanh (before)\n" + text
    route, _ = raise_and_compare(build(text, up=normal(4, 10, 6), down=normal(4, 6, 5), square=normal(6, 6)))
    assert route.inputs[0].name == "logits"


PRODUCTS = {
    "a product whose other columns are something else": "both = MatMul (x, wide)\n logits, other = Split <axis = -1> "
    "(both, columns)",
    "elements that are multiplied by a scaled weight and added up": "column = Unsqueeze (x, minus_one)\n"
    "whole = Mul (router, factor)\n products = Mul (column, whole)\n logits = ReduceSum <keepdims = 0> (products, one)",
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_logits_are_what_a_product_makes_for_experts(build, texts, normal, raise_and_compare, product):
    text = texts["batched"].replace("logits = MatMul (x, router)", PRODUCTS[product])
    weights = {"wide": normal(6, 11), "columns": np.array([4, 7]), "up": normal(4, 10, 6), "down": normal(4, 6, 5)}
    route, _ = raise_and_compare(build(text, **weights, **EXTRA))
    assert route.inputs[0].name == "logits"


@pytest.mark.parametrize("total", ["MatMul (e, ones)", 'Einsum <equation = "te,eo->to"> (e, ones)', "summed"])
def test_a_sum_that_is_spelled_as_a_product_makes_no_logits(build, texts, normal, raise_and_compare, total):
    lines = f"t = {total}"
    if total == "summed":
        lines = 'sum = Einsum <equation = "te->t"> (e)\n t = Unsqueeze (sum, minus_one)'
    softmax = f"e = Exp (logits)\n {lines}\n scores = Div (e, t)"
    text = texts["batched"].replace("scores = Softmax <axis = -1> (logits)", softmax)
    weights = {"ones": np.ones((4, 1), np.float32), "up": normal(4, 10, 6), "down": normal(4, 6, 5)}
    route, _ = raise_and_compare(build(text, **weights))
    assert route.inputs[0].name == "logits"


def test_ids_of_experts_are_not_tried_as_scales(build, texts, monkeypatch):
    """A loop compares with every id: trying each as a scale would make raising cubic in the number of experts."""
    tried = []
    grid = router._grid
    monkeypatch.setattr(router, "_grid", lambda *arguments: (tried.append(one) or one for one in grid(*arguments)))
    RaiseMoE().apply(build(texts["loop"]), Report())
    assert tried and {routing.spec.scale for routing in tried} == {1.0}


def test_weights_of_experts_are_not_read_for_vectors(build, texts, normal, monkeypatch):
    """Weights of experts depend on the selection, like the router's own constants, and are large."""
    graph = build(texts["batched"], up=normal(4, 10, 6), down=normal(4, 6, 5)).graph
    dataflow = DataFlow(graph)
    anchor = next(node for node in graph if node.op_type == "TopK")
    block = next(candidate_blocks(dataflow, anchor, find_logits(dataflow, anchor)[0]))
    assert {value.name for node in block.router_nodes() for value in node.inputs} >= {"up", "down"}
    monkeypatch.setattr(DataFlow, "array", lambda self, value: pytest.fail(f"reads {value.name}"))
    assert router.expert_vectors(block) == []

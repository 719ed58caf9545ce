"""Decisions of experts count as seen only by tokens that choose the expert, and by elements that reach y."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from moec.ir import dialect
from moec.ir.interpreter import Evaluator
from moec.passes.framework.base import Report
from moec.passes.raise_moe import RaiseMoE
from moec.passes.raising.reaching import reaching
from moec.passes.raising.trials import Trial

from ...text_models import model_of

MANY = 24
"""Experts, all of which every token is computed for."""
BLOCK = """
    logits = MatMul (x, router)
    scores = Softmax <axis = -1> (logits)
    top, chosen = TopK <axis = -1> (scores, one)
    s = Shape (scores)
    zeros = ConstantOfShape (s)
    mixture = ScatterElements <axis = -1> (zeros, chosen, top)
    h = Einsum <equation = "td,edf->tef"> (x, up)
    r = Relu (h)
    {window}
    o = Einsum <equation = "tef,efd->ted"> (a, down)
    {mix}
"""
WINDOW = "above = Greater (h, low)\n below = Less (h, high)\n within = And (above, below)\n "
WINDOWS = {
    "bounds by entry": WINDOW + "a = Where (within, none, r)",
    "a mask": "above = Greater (h, lowest)\n below = Less (h, highest)\n within = And (above, below)\n "
    "f = Cast <to = 1> (within)\n m = Mul (f, one_unit)\n left = Sub (unit, m)\n a = Mul (r, left)",
    "under a flag": WINDOW
    + "x0 = Slice (x, zero, one, one)\n flag = Greater (x0, unit)\n f = Unsqueeze (flag, minus_one)\n "
    "inner = Where (within, none, r)\n a = Where (f, inner, r)",
}
EINSUM = 'y = Einsum <equation = "ted,te->td"> (o, mixture)'
MIXES = {
    "einsum": EINSUM,
    "sum": "m3 = Unsqueeze (mixture, minus_one)\n w3 = Mul (o, m3)\n y = ReduceSum <keepdims = 0> (w3, one)",
    "matmul": "m3 = Unsqueeze (mixture, one)\n w3 = MatMul (m3, o)\n y = Squeeze (w3, one)",
    "where": "m3 = Unsqueeze (mixture, minus_one)\n taken = Greater (m3, none)\n w2 = Mul (o, m3)\n "
    "w3 = Where (taken, w2, none)\n y = ReduceSum <keepdims = 0> (w3, one)",
    "gathered": "c = Unsqueeze (chosen, minus_one)\n g = GatherND <batch_dims = 1> (o, c)\n "
    "w3 = Unsqueeze (top, minus_one)\n p = Mul (g, w3)\n y = ReduceSum <keepdims = 0> (p, one)",
}


@pytest.fixture
def raises(build, normal) -> Callable[..., bool]:
    def run(window: str, mix: str) -> bool:
        low, high, one_unit = np.ones((3, MANY, 5), np.float32)
        low[-1, 2], high[-1, 2] = 2, 2.03
        one_unit[:] = 0
        one_unit[-1, 2] = 1
        weights = {"router": normal(6, MANY) * 3, "up": normal(MANY, 6, 5) * 3, "down": normal(MANY, 5, 6)}
        numbers = {"none": 0, "unit": 1, "lowest": 2, "highest": 2.03}
        bounds = {"low": low, "high": high, "one_unit": one_unit} | {k: np.float32(v) for k, v in numbers.items()}
        model = build(BLOCK.format(window=window, mix=mix), **weights, **bounds)
        RaiseMoE().apply(model, Report())
        return any(dialect.is_moec(node, "Experts") for node in model.graph)

    return run


@pytest.mark.parametrize(
    "mix", ["einsum", *(pytest.param(mix, marks=pytest.mark.nightly) for mix in MIXES if mix != "einsum")]
)
def test_a_window_that_only_tokens_of_other_experts_met_is_not_raised(raises, mix: str) -> None:
    assert not raises(WINDOWS["bounds by entry"], MIXES[mix])


@pytest.mark.parametrize("window", [pytest.param(window, marks=pytest.mark.nightly) for window in list(WINDOWS)[1:]])
def test_a_window_that_something_else_hides_is_not_raised(raises, window: str) -> None:
    assert not raises(WINDOWS[window], EINSUM)


@pytest.mark.parametrize("mix", MIXES)
def test_experts_that_only_cut_at_zero_are_raised(raises, mix: str) -> None:
    assert raises("a = Identity (r)", MIXES[mix])


class Told:
    """A watch that records the live elements of its nodes, all of which it calls new."""

    def __init__(self, news: list[ir.Node]) -> None:
        self._news, self.live = news, dict[str, np.ndarray | None]()

    def news(self, _seen: object) -> list[ir.Node]:
        return self._news

    def fork(self) -> Told:
        return self

    def __call__(self, node: ir.Node, _inputs: object, _outputs: object, live: np.ndarray | None) -> None:
        self.live[str(node.outputs[0].name)] = live


def told(text: str, *decisions: str) -> dict[str, np.ndarray | None] | None:
    """The live elements of the nodes that compute these values, for three rows in a model that takes four at a time;
    None if the watch is not called."""
    model = ir.from_proto(model_of(text, {"sizes": np.array([2, 0])}, "float[4,2] x, float[4,2] logits"))
    (x, logits), (y,) = model.graph.inputs, model.graph.outputs
    from_x = {x}
    for node in model.graph:
        from_x.update(node.outputs if not from_x.isdisjoint(node.inputs) else ())

    def runs(rows: np.ndarray, scores: np.ndarray, _start: object):
        yield {value: np.concatenate([own, np.ones((1, 2))]) for value, own in ((x, rows), (logits, scores))}, len(rows)

    def evaluator(feeds, outputs):
        return Evaluator(list(model.graph), feeds, outputs, {"": 24}, dtype=np.float64)

    block = SimpleNamespace(
        from_x=from_x, starts_for=lambda _: [None], runs=runs, evaluator=evaluator, y=y, d=2, selected=set()
    )
    block.without_zeros = {}
    known, seen = Told([node for node in model.graph if node.outputs[0].name in decisions]), object()
    trial = Trial("rows", np.ones((3, 2)), np.ones((3, 2)))
    result = reaching(block, trial, known, seen)  # pyrefly: ignore
    return None if result is seen else known.live


def test_elements_that_are_added_to_fill_an_evaluation_reach_nothing() -> None:
    live = told("r = Relu (x)\n y = Neg (r)", "r")
    assert live is not None and live["r"] is not None
    np.testing.assert_array_equal(live["r"], np.arange(8).reshape(4, 2) < 6)


def test_all_of_the_first_output_counts_of_a_decision_with_several() -> None:
    live = told("r, s = Split <axis = 1> (x, sizes)\n y = Neg (r)", "r")
    assert live is not None and live["r"] is not None
    np.testing.assert_array_equal(live["r"], np.ones((4, 2), bool))


def test_decisions_of_the_router_count_wherever_they_are() -> None:
    """A selection between values of x belongs to the router if its condition does."""
    text = "other = Neg (logits)\n b = Greater (logits, other)\n n = Neg (x)\n w = Where (b, x, n)\n y = Relu (w)"
    assert told(text, "b", "w") is None
    live = told(text, "b", "w", "y")
    assert live is not None and live["b"] is None and live["w"] is None and live["y"] is not None

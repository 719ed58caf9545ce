"""Small MoE graphs as ONNX text, one per formulation, with random weights. E = 4 experts, k = 2, d = 6, f = 5."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from moec.frontend.onnx.importer import import_model
from moec.passes import pipeline

from ...text_models import give_constants

E, K, D, F = 4, 2, 6, 5
INTEGERS = {
    "minus_one": [-1],
    "zero": [0],
    "one": [1],
    "two": [2],
    "k": [K],
    "rows": [-1, D],
    "per_token": [-1, K, D],
    "repeat": [1, K, 1],
    "ids": list(range(E)),
}

ROUTER = """
    logits = MatMul (x, router)
    scores = Softmax <axis = -1> (logits)
    top, chosen = TopK <axis = -1> (scores, k)
    total = ReduceSum <keepdims = 1> (top, minus_one)
    w = Div (top, total)
"""
BATCHED = """
    x3 = Unsqueeze (x, one)
    x_repeated = Expand (x3, repeat)
    x_pairs = Reshape (x_repeated, rows)
    pair_ids = Reshape (chosen, minus_one)
    up_pairs = Gather <axis = 0> (up, pair_ids)
    x_column = Unsqueeze (x_pairs, minus_one)
    h_column = MatMul (up_pairs, x_column)
    h = Squeeze (h_column, minus_one)
    g, u = Split <axis = -1, num_outputs = 2> (h)
    s = Sigmoid (g)
    silu = Mul (g, s)
    a = Mul (silu, u)
    down_pairs = Gather <axis = 0> (down, pair_ids)
    a_column = Unsqueeze (a, minus_one)
    o_column = MatMul (down_pairs, a_column)
    o = Squeeze (o_column, minus_one)
    w_pairs = Reshape (w, minus_one)
    w_column = Unsqueeze (w_pairs, minus_one)
    weighted = Mul (o, w_column)
    weighted3 = Reshape (weighted, per_token)
    y = ReduceSum <keepdims = 0> (weighted3, one)
"""
DENSE = """
    shape = Shape (scores)
    zeros = ConstantOfShape (shape)
    mixture = ScatterElements <axis = -1> (zeros, chosen, w)
    h = Einsum <equation = "td,edf->tef"> (x, up)
    a = Relu (h)
    o = Einsum <equation = "tef,efd->ted"> (a, down)
    y = Einsum <equation = "ted,te->td"> (o, mixture)
"""
LOOP_START = """
    chosen3 = Unsqueeze (chosen, minus_one)
    hits = Equal (chosen3, ids)
    x_shape = Shape (x)
    y_{first} = ConstantOfShape (x_shape)
"""
LOOP_BODY = """
    hit_{e} = Gather <axis = 2> (hits, expert_{e})
    where_{e} = NonZero (hit_{e})
    token_{e} = Gather <axis = 0> (where_{e}, scalar_zero)
    slot_{e} = Gather <axis = 0> (where_{e}, scalar_one)
    rows_{e} = Gather <axis = 0> (x, token_{e})
    h_{e} = Gemm <transB = 1> (rows_{e}, up_{e}, up_bias_{e})
    a_{e} = Gelu (h_{e})
    o_{e} = Gemm <transB = 1> (a_{e}, down_{e}, down_bias_{e})
    token_column_{e} = Unsqueeze (token_{e}, minus_one)
    slot_column_{e} = Unsqueeze (slot_{e}, minus_one)
    pair_{e} = Concat <axis = 1> (token_column_{e}, slot_column_{e})
    w_{e} = GatherND (w, pair_{e})
    w_column_{e} = Unsqueeze (w_{e}, minus_one)
    weighted_{e} = Mul (o_{e}, w_column_{e})
    y_{after} = ScatterND <reduction = "add"> (y_{before}, token_column_{e}, weighted_{e})
"""


def loop(order: list[int]) -> str:
    """An unrolled expert loop over ``order``."""
    text = LOOP_START.replace("{first}", "0")
    for step, e in enumerate(order):
        body = LOOP_BODY.replace("{e}", str(e)).replace("{before}", str(step))
        text += body.replace("{after}", str(step + 1))
    return text + f"    y = Identity (y_{len(order)})\n"


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (random.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)

    stacked = {"router": normal(D, E), "bias": normal(E)}
    each = {f"{n}_{e}": normal(*s) for e in range(E) for n, s in EACH.items()}
    return stacked | each


EACH = {"up": (F, D), "up_bias": (F,), "down": (D, F), "down_bias": (D,)}


@pytest.fixture
def build() -> Callable[..., ir.Model]:
    """``build(text, shape="T,6", more="", **weights)``: a cleaned-up model that computes y from x (and ``more`` inputs)
    by the nodes of ``text``."""

    def build(text: str, shape: str = f"T,{D}", more: str = "", **extra: np.ndarray) -> ir.Model:
        proto = onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["" : 24, "moec" : 1]>\n'
            f"block (float[{shape}] x{more and f', {more}'}) => (float[{shape}] y) {{\n{text}\n}}"
        )
        scalars = {"scalar_zero": np.int64(0), "scalar_one": np.int64(1)}
        scalars |= {f"expert_{e}": np.int64(e) for e in range(E)}
        arrays = {name: np.array(value, np.int64) for name, value in INTEGERS.items()} | scalars | weights() | extra
        give_constants(proto, arrays)
        model = import_model(proto)
        pipeline.run(model, pipeline.parse(pipeline.CLEAN_UP))
        return model

    return build


@pytest.fixture
def normal() -> Callable[..., np.ndarray]:
    """``normal(*shape)``: float32 weights."""
    random = np.random.default_rng(7)
    return lambda *shape: (random.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)


@pytest.fixture
def texts() -> dict[str, str]:
    """The text of each formulation."""
    return {
        "router": ROUTER,
        "batched": ROUTER + BATCHED,
        "dense": ROUTER + DENSE,
        "loop": ROUTER + loop([0, 1, 2, 3]),
        "shuffled loop": ROUTER + loop([2, 0, 3, 1]),
        "loop without expert 3": ROUTER + loop([0, 1, 2]),
    }


@pytest.fixture
def raise_and_compare() -> Callable[..., list[ir.Node]]:
    """Raise a model in place, and check for several T that it still computes the same; returns its moec nodes."""
    from moec.ir import dialect, interpreter, verifier
    from moec.passes.framework.base import Report
    from moec.passes.raise_moe import RaiseMoE

    def run(model: ir.Model, report: Report | None = None, tokens: tuple[int, ...] = (0, 1, 7, 40)) -> list[ir.Node]:
        random = np.random.default_rng(5)
        leading = len(model.graph.inputs[0].shape or ()) - 2
        inputs = [random.normal(size=(*[2] * leading, T, D)).astype(np.float32) for T in tokens]
        before = [interpreter.run(model, {"x": x})["y"] for x in inputs]
        RaiseMoE().apply(model, Report() if report is None else report)
        pipeline.run(model, pipeline.parse("remove-dead-nodes,infer-shapes"))
        verifier.verify(model)
        for x, want in zip(inputs, before, strict=True):
            got = interpreter.run(model, {"x": x})["y"]
            assert got.shape == want.shape
            np.testing.assert_allclose(got, want, atol=2e-5)
        return [node for node in model.graph if dialect.is_moec(node)]

    return run

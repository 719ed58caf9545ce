"""Experts of any form become a graph over dispatched rows."""

import numpy as np
import onnx_ir as ir
import pytest

import moec
from moec.ir import interpreter
from moec.passes.framework.base import Report

from ...products import sampled
from ..before_after import check, model_of

ROUTER = """logits = MatMul (x, gate)
    scores = Softmax <axis = -1> (logits)
    top, chosen = TopK <axis = -1> (scores, one)
    shape = Shape (scores)
    zeros = ConstantOfShape (shape)
    mixture = ScatterElements <axis = -1> (zeros, chosen, top)"""
RAISED_ROUTER = """logits = MatMul (x, gate)
    "y.weights", "y.experts" = moec.Route <k = 1> (logits)
    "y.offsets", "y.positions", "y.tokens", "y.owners" = moec.Dispatch <expert_count = 2> ("y.experts")"""
CONSTANTS = "float[6,2] gate, float[6,5] base, float[6,5] a0, float[6,5] a1, float[5] n0, float[5] n1"
EACH = """own{e} = MatMul (x, a{e})
    common{e} = MatMul (x, base)
    sum{e} = Add (own{e}, common{e})
    bent{e} = Sin (sum{e})
    scaled{e} = Mul (bent{e}, n{e})
    o{e} = MatMul (scaled{e}, b{e})"""


def test_weights_of_their_own_are_grouped_and_common_ones_multiply_tokens():
    """Products that all experts share are computed once for each token; vectors of single experts are gathered by
    rows."""
    signature = "(float[T,6] x) => (float[T,6] y)"
    first, second = (EACH.replace("{e}", str(e)) for e in range(2))
    before = f"""{signature} <{CONSTANTS}, float[5,6] b0, float[5,6] b1, int64[1] one = {{1}}> {{
        {ROUTER}
        {first}
        {second}
        w0, w1 = Split <axis = 1, num_outputs = 2> (mixture)
        y0 = Mul (o0, w0)
        y1 = Mul (o1, w1)
        y = Add (y0, y1) }}"""
    after = f"""{signature} <float[6,2] gate, float[6,5] base, float[2,6,5] "y.step_1.weight",
        float[2,5] "y.step_5.1", float[2,5,6] "y.step_6.weight"> {{
        {RAISED_ROUTER}
        "y.rows_0" = Gather <axis = 0> (x, "y.tokens")
        "y.step_1" = moec.GroupedMatMul ("y.rows_0", "y.step_1.weight", "y.offsets")
        "y.step_2" = moec.Linear <transposed = 1> (x, base)
        "y.rows_2" = Gather <axis = 0> ("y.step_2", "y.tokens")
        "y.step_3" = Add ("y.step_1", "y.rows_2")
        "y.step_4" = Sin ("y.step_3")
        "y.step_5.1.owned" = Gather <axis = 0> ("y.step_5.1", "y.owners")
        "y.step_5" = Mul ("y.step_4", "y.step_5.1.owned")
        "y.step_6" = moec.GroupedMatMul ("y.step_5", "y.step_6.weight", "y.offsets")
        y = moec.Combine ("y.step_6", "y.weights", "y.positions") }}"""
    assert not check("infer-shapes,raise-moe,remove-dead-nodes", before, after)


def sized(normal, *sizes: int) -> dict[str, np.ndarray]:
    """Weights of experts with so many hidden units."""
    arrays = {}
    for e, f in enumerate(sizes):
        arrays |= {f"up_{e}": normal(f, 6), f"up_bias_{e}": normal(f), f"down_{e}": normal(6, f)}
    return arrays


@pytest.mark.parametrize("bent", ["Gelu", "Cos"])
def test_smaller_experts_are_filled_up(build, texts, normal, raise_and_compare, bent):
    """Hidden units that an expert does not have lead to zeros, whatever the operators between make of them."""
    nodes = raise_and_compare(build(texts["loop"].replace("Gelu", bent), **sized(normal, 5, 3, 4, 1)))
    assert [node.op_type for node in nodes] == ["Route", "Dispatch", "GroupedMatMul", "GroupedMatMul", "Combine"]


def test_sibling_whose_size_matters_stays(build, texts, normal, raise_and_compare):
    """A softmax over more hidden units is another."""
    report = Report()
    model = build(texts["loop"].replace("Gelu", "Softmax"), **sized(normal, 5, 3, 5, 5))
    assert raise_and_compare(model, report) == []
    assert "operators on the rows of each expert) differs by" in report.remarks[0].message


SIMPLE = f"""(float[T,6] x) => (float[T,6] y)
    <float[6,4] gate, float[6,6] a0, float[6,6] a1, float[6] vector, int64[1] one = {{1}}> {{
    {ROUTER}
    w0, w1, w2, w3 = Split <axis = 1, num_outputs = 4> (mixture)
    o0 = MatMul (x, a0)
    y0 = Mul (o0, w0)
    o1 = MatMul (x, a1)
    y1 = Mul (o1, w1)
    y2 = Mul (x, w2)
    y3 = Mul (vector, w3)
    sum = Add (y0, y1)
    more = Add (sum, y2)
    y = Add (more, y3) }}"""
SIMPLE_RAISED = """(float[T,6] x) => (float[T,6] y)
    <float[6,4] gate, int32[5] "y.stored" = {0, 1, -1, -1, -1}, float[2,6,6] "y.step_1.weight",
     float[5] "y.copies" = {0, 0, 1, 0, 0}, int64[1] "y.slots" = {1}, int32[5] "y.vector_of" = {-1, -1, -1, 0, -1},
     float[1,6] "y.vectors"> {
    logits = MatMul (x, gate)
    "y.weights", "y.experts" = moec.Route <k = 1> (logits)
    "y.stored_ids" = Gather <axis = 0> ("y.stored", "y.experts")
    "y.offsets", "y.positions", "y.tokens", "y.owners" = moec.Dispatch <expert_count = 2> ("y.stored_ids")
    "y.rows_0" = Gather <axis = 0> (x, "y.tokens")
    "y.step_1" = moec.GroupedMatMul ("y.rows_0", "y.step_1.weight", "y.offsets")
    "y.stored_y" = moec.Combine ("y.step_1", "y.weights", "y.positions")
    "y.copied" = Gather <axis = 0> ("y.copies", "y.experts")
    "y.copied_shares" = Mul ("y.weights", "y.copied")
    "y.copied_share" = ReduceSum <keepdims = 1> ("y.copied_shares", "y.slots")
    "y.copied_tokens" = Mul (x, "y.copied_share")
    "y.with_copies" = Add ("y.stored_y", "y.copied_tokens")
    "y.vector_ids" = Gather <axis = 0> ("y.vector_of", "y.experts")
    "y.vector_sums" = moec.Combine ("y.vectors", "y.weights", "y.vector_ids")
    y = Add ("y.with_copies", "y.vector_sums") }"""


def test_experts_that_copy_or_are_constant_store_nothing():
    assert not check("infer-shapes,raise-moe,remove-dead-nodes", SIMPLE, SIMPLE_RAISED)


def test_experts_that_return_zeros_store_nothing(build, normal, raise_and_compare):
    text = SIMPLE[SIMPLE.index("logits") : SIMPLE.rindex("y3 =")].replace("x, gate", "x, router") + "y = Add (y0, y1)"
    nodes = raise_and_compare(build(text, a0=normal(6, 6), a1=normal(6, 6)))
    assert [node.op_type for node in nodes] == ["Route", "Dispatch", "GroupedMatMul", "Combine"]


def test_sibling_that_bends_its_tokens_is_no_copy():
    (remark,) = check("infer-shapes,raise-moe,remove-dead-nodes", SIMPLE.replace("Mul (x, w2)", "Max (x, w2)"))
    assert "left as ordinary operators" in remark.message


THREE_LAYERS = """
    m_{e} = Gemm <transB = 1> (a_{e}, middle_{e}, middle_bias_{e})
    v_{e} = Relu (m_{e})
    o_{e} = Gemm <transB = 1> (v_{e}, down_{e}, down_bias_{e})"""
NORMED = """
    v_{e} = LayerNormalization (a_{e}, norm_{e}, norm_bias_{e})
    o_{e} = Gemm <transB = 1> (v_{e}, down_{e}, down_bias_{e})"""
SLICED = """
    s_{e} = Softmax <axis = 1> (a_{e})
    p_{e} = Slice (s_{e}, one, three, one)
    l_{e} = ReduceMax (p_{e}, one)
    v_{e} = Mul (a_{e}, l_{e})
    o_{e} = Gemm <transB = 1> (v_{e}, down_{e}, down_bias_{e})"""
SHAPES = {"middle": (5, 5), "middle_bias": (5,), "norm": (5,), "norm_bias": (5,)}


def with_middle(text: str, middle: str) -> str:
    for e in range(4):
        line = f"o_{e} = Gemm <transB = 1> (a_{e}, down_{e}, down_bias_{e})"
        assert line in text
        text = text.replace(line, middle.replace("{e}", str(e)))
    return text


@pytest.fixture
def deep(build, texts, normal):
    """``deep(middle)``: a loop over experts with further operators in front of the last product."""

    def made(middle: str, text: str = "shuffled loop") -> ir.Model:
        arrays = {f"{name}_{e}": normal(*shape) for e in range(4) for name, shape in SHAPES.items()}
        return build(with_middle(texts[text], middle), three=np.array([3]), **arrays)

    return made


@pytest.mark.parametrize("middle", [THREE_LAYERS, NORMED, SLICED], ids=["three layers", "norm", "slices"])
def test_experts_of_a_loop(deep, raise_and_compare, middle):
    report = Report()
    nodes = raise_and_compare(deep(middle), report, tokens=(0, 1, 7, 40))
    kinds = [node.op_type for node in nodes]
    assert kinds[:2] == ["Route", "Dispatch"], [remark.message for remark in report.remarks]
    assert kinds[-1] == "Combine"
    assert not report.remarks


@pytest.mark.parametrize("target, form", sampled(["cpu", "cuda"], ["norm", "simple"], 4))
def test_targets_compute_it(deep, form, target):
    """All tokens of one kind go to one expert, and others have none."""
    model = deep(NORMED) if form == "norm" else model_of(SIMPLE)
    x = np.random.default_rng(3).normal(size=(7, 6)).astype(np.float32)
    cases = [x[:0], x[:1], x, np.tile(x[:1], (9, 1))]
    expected = [interpreter.run(model, {"x": case})["y"] for case in cases]
    compiled = moec.compile(model, target=target, **({"emulate": True} if target == "cuda" else {}))
    for case, want in zip(cases, expected, strict=True):
        np.testing.assert_allclose(compiled.run({"x": case})["y"], want, rtol=1e-4, atol=1e-4)


def test_sibling_whose_rows_see_each_other_stays(deep, raise_and_compare):
    report = Report()
    middle = THREE_LAYERS.replace("Relu (m_{e})", "CumSum (m_{e}, scalar_zero)")
    assert raise_and_compare(deep(middle), report) == []
    assert "depends on other tokens (CumSum node" in report.remarks[0].message


def test_sibling_with_an_expert_of_another_kind_stays(deep, raise_and_compare):
    report = Report()
    model = deep(THREE_LAYERS)
    (node,) = [node for node in model.graph if node.outputs[0].name == "v_2"]
    node.op_type = "Sin"
    assert raise_and_compare(model, report) == []
    assert "its experts do not all consist of the same operators" in report.remarks[0].message

"""Models are split along their sequences only where rules prove that each is computed as if it were alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.specs import TensorSpec
from moec.compiling.sequences import Sequences, sequences_of
from moec.ir import interpreter
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.runtime.interface import Interface
from tests.passes.before_after import model_of

IDS = TensorSpec("input_ids", "int64", ("batch", "seq"))
LOGITS = TensorSpec("logits", "float32", ("batch", "seq", 6))
MASK = TensorSpec("attention_mask", "int64", ("rows", "seq"))
GRAPH = """(int64[batch,seq] input_ids) => (float[batch,seq,6] logits)
    <float[9,6] table, float[6,6] w, float[4,6,6] up, float[4,6,6] down, float[6,4] r, int64[1] i0 = {0},
     int64[1] i1 = {1}, int64[1] i2 = {2}, int64[1] last = {-1}, int64 n0 = {0}, int64 n1 = {1},
     int64[2] rows = {-1, 6}, float[6] six = {1, 2, 3, 4, 5, 6}, int64[1] many = {1000}, int64[4] heads = {0, 0, 2, 3},
     int64[3] joined = {0, 0, 6}, int64[6] before = {1, 0, 0, 0, 0, 0}, int64[6] earlier = {0, 1, 0, 0, 0, 0}>"""
SIZES = """b = Shape <start = 0, end = 1> (x) s = Shape <start = 1, end = 2> (x) bs = Squeeze (b) ss = Squeeze (s)
    count = Range (n0, bs, n1) time = Range (n0, ss, n1) z = Shape (x) """
COLUMN = (
    SIZES
    + """bo = Concat <axis = 0> (b, i1) c1 = Unsqueeze (count, i1) bt = Concat <axis = 0> (b, s)
    here = Expand (c1, bt) th = Expand (time, bt) hu = Unsqueeze (here, i2) tu = Unsqueeze (th, i2) """
)


def model_with(nodes: str) -> ir.Model:
    model = model_of(f"{GRAPH} {{ x = Gather (table, input_ids) {nodes} }}")
    pipeline.run(model, pipeline.parse("infer-shapes,fold-shapes,infer-shapes"), Report())
    return model


def found(
    nodes: str, inputs: tuple[TensorSpec, ...] = (IDS,), outputs: tuple[TensorSpec, ...] = (LOGITS,)
) -> Sequences:
    return sequences_of(model_with(nodes), Interface(inputs, outputs, (), {"input_ids": 9}, {}))


def differs(nodes: str) -> bool:
    """Whether some sequence gets other results beside others than alone."""
    compute = interpreter.runner(model_with(nodes))
    ids = np.random.default_rng(0).integers(0, 9, (3, 4))
    try:
        together = compute({"input_ids": ids})["logits"]
        alone = np.concatenate([compute({"input_ids": row[None]})["logits"] for row in ids])
    except interpreter.EvaluationError:  # a sequence is not found
        return True
    return together.shape != alone.shape or not np.allclose(together, alone, atol=1e-6)


ROWS = "f = Reshape (x, rows) z = Shape (x) "
FLAT = COLUMN + "f = Reshape (x, rows) "
ALONE = {
    "product": "logits = MatMul (x, w)",
    "softmax": "logits = Softmax (x)",
    "mean": "m = ReduceMean (x, i1) logits = Sub (x, m)",
    "mean without the axis": "m = ReduceMean <keepdims = 0> (x, i1) u = Unsqueeze (m, i1) logits = Sub (x, u)",
    "sums in time": "logits = CumSum (x, n1)",
    "rows": ROWS + "l = MatMul (f, w) logits = Reshape (l, z)",
    "experts": ROWS
    + """l = MatMul (f, r) y = moec.MoE <k = 2, gate_layout = "none"> (f, l, , up, down)
        logits = Reshape (y, z)""",
    "time first": "t = Transpose <perm = [1, 0, 2]> (x) m = MatMul (t, w) logits = Transpose <perm = [1, 0, 2]> (m)",
    "attention": "t = Transpose <perm = [0, 2, 1]> (x) p = MatMul (x, t) q = Softmax (p) logits = MatMul (q, x)",
    "heads": """h = Reshape (x, heads) t = Transpose <perm = [0, 2, 1, 3]> (h) u = Transpose <perm = [0, 1, 3, 2]> (h)
        q = Softmax (h) back = Reshape (q, joined) logits = Add (x, back)""",
    "last token": "t = Slice (x, last, many, i1) logits = Add (x, t)",
    "positions": SIZES + "p = Cast <to = 1> (time) q = Unsqueeze (p, i1) logits = Add (x, q)",
    "equal parts": SIZES + "e = Expand (six, z) logits = Mul (x, e)",
    "einsum": 'logits = Einsum <equation = "bsd,bse->bse"> (x, x)',
    "places": COLUMN + "p = Concat <axis = 2> (hu, tu) logits = GatherND (x, p)",
    "chosen rows": FLAT + "start = Mul (c1, s) p = Add (start, time) logits = Gather (f, p)",
    "chosen rows by a sum the other way": FLAT
    + "g = Unsqueeze (time, i0) start = Mul (ss, c1) p = Add (g, start) logits = Gather (f, p)",
    "scattered places": COLUMN + "p = Concat <axis = 2> (hu, tu) y = MatMul (x, w) logits = ScatterND (x, p, y)",
    "padding in time": "p = Pad (x, earlier) y = Slice (p, i0, last, i1) logits = Add (x, y)",
    "sort": "v, i = TopK <axis = -1> (x, i2) m = ReduceSum (v, last) logits = Add (x, m)",
}
COMBINED = {
    "softmax": "logits = Softmax <axis = 0> (x)",
    "mean": "m = ReduceMean (x, i0) logits = Sub (x, m)",
    "largest": "m = ReduceMax (x) logits = Sub (x, m)",
    "sums": "logits = CumSum (x, n0)",
    "sums of rows": ROWS + "c = CumSum (f, n0) logits = Reshape (c, z)",
    "sort": "v, i = TopK <axis = 0> (x, i1) logits = Add (x, v)",
    "normalized batch": """m = ReduceMean (x, i0) d = Sub (x, m) q = Mul (d, d) v = ReduceMean (q, i0) e = Sqrt (v)
        one = CastLike (n1, e) f = Add (e, one) logits = Div (d, f)""",
    "product over sequences": """t = Transpose <perm = [2, 1, 0]> (x) u = Transpose <perm = [1, 0, 2]> (x)
        v = Transpose <perm = [1, 2, 0]> (x) p = MatMul (v, u) q = MatMul (u, p)
        logits = Transpose <perm = [1, 0, 2]> (q)""",
    "einsum": 'a = Einsum <equation = "bsd,bse->sde"> (x, x) logits = Einsum <equation = "bsd,sde->bse"> (x, a)',
    "first sequence": "t = Slice (x, i0, i1, i0) logits = Add (x, t)",
    "chosen sequence": "t = Gather <axis = 0> (x, i0) logits = Add (x, t)",
    "reversed": "t = Slice (x, last, many, i0) u = Sub (x, t) logits = Add (x, u)",
    "other order": SIZES + """t = Transpose <perm = [1, 0, 2]> (x) f = Reshape (t, z) logits = Add (x, f)""",
    "rows in other order": SIZES
    + """t = Transpose <perm = [1, 0, 2]> (x) f = Reshape (t, rows) y = Reshape (f, z)
        logits = Add (x, y)""",
    "tokens become features": SIZES
    + """six1 = Constant <value_ints = [6]> () turn = Concat <axis = 0> (six1, s, b)
        g = Reshape (x, turn) h = ReduceSum (g, last) k = ReduceSum (h, i0) logits = Add (x, k)""",
    "number of sequences": SIZES + "f = CastLike (bs, x) logits = Div (x, f)",
    "number of the sequence": SIZES
    + """f = CastLike (count, x) g = Unsqueeze (f, i1) h = Unsqueeze (g, i2)
        logits = Add (x, h)""",
    "chosen rows of the next sequence": FLAT
    + """start = Mul (c1, s) later = Add (time, n1) l = Add (start, later) e = Mul (b, s) en = Sub (e, i1)
        p = Min (l, en) logits = Gather (f, p)""",
    "rows of a wrong length": FLAT + "p = Add (c1, time) logits = Gather (f, p)",
    "rows of a wrong order": FLAT
    + "start = Mul (time, b) turned = Unsqueeze (start, i0) p = Add (turned, c1) logits = Gather (f, p)",
    "rows of twice the length": FLAT
    + """w2 = Concat <axis = 0> (f, f) start = Mul (c1, s) twice = Add (start, start) p = Add (twice, time)
        logits = Gather (w2, p)""",
    "rows counted from one": FLAT
    + """end = Add (ss, n1) ones = Range (n1, end, n1) start = Mul (c1, s) p = Add (start, ones)
        longer = Concat <axis = 0> (f, f) logits = Gather (longer, p)""",
    "rows of a number that became a truth": FLAT
    + """t = Cast <to = 9> (c1) one = Cast <to = 7> (t) start = Mul (one, s) p = Add (start, time)
        logits = Gather (f, p)""",
    "places of numbers as times": COLUMN + "p = Concat <axis = 2> (tu, hu) logits = GatherND (x, p)",
    "shifted": "p = Pad (x, before) y = Slice (p, i0, last, i0) logits = Add (x, y)",
    "slice by the number": SIZES
    + """e = Sub (b, i1) o = Add (b, last) m = Min (o, i2) n = Add (m, i1)
        t = Slice (x, m, n, i1) u = ReduceSum (t, i1) logits = Add (x, u)""",
    "capacity": ROWS
    + """l = MatMul (f, r) y = moec.MoE <k = 1, capacity = 1, gate_layout = "none"> (f, l, , up, down)
        logits = Reshape (y, z)""",
    "one scale for all": """q, scale, zero = DynamicQuantizeLinear (x) y = DequantizeLinear (q, scale, zero)
        logits = MatMul (y, w)""",
    "nonzero": """k = Greater (x, x) nz = NonZero (x) n = Shape <start = 1, end = 2> (nz) f = CastLike (n, x)
        logits = Add (x, f)""",
}


@pytest.mark.parametrize("nodes", ALONE.values(), ids=ALONE)
def test_tokens_of_one_sequence_may_be_combined(nodes):
    assert found(nodes) == Sequences("batch")
    assert not differs(nodes)


@pytest.mark.parametrize("nodes", COMBINED.values(), ids=COMBINED)
def test_sequences_that_are_combined_are_not_split(nodes):
    assert found(nodes).size is None and "may combine them" in found(nodes).why
    assert differs(nodes)


@pytest.mark.parametrize(
    ("inputs", "outputs", "why"),
    [
        ((IDS, MASK), (LOGITS,), ""),
        ((IDS, TensorSpec("bias", "float32", ("rows", 6))), (LOGITS,), "bias does not have one part for each of them"),
        ((TensorSpec("input_ids", "int64", (2, "seq")),), (LOGITS,), "input_ids has 2 of them, not a named number"),
        ((IDS,), (LOGITS, TensorSpec("loss", "float32", ())), "loss does not have one part"),
        ((IDS,), (LOGITS, TensorSpec("router", "float32", ("batch*seq", 6))), "router does not have one part"),
        ((IDS,), (LOGITS, TensorSpec("pairs", "float32", ("batch", "batch"))), "pairs does not have one part"),
        ((TensorSpec("x", "float32", ("batch", 6)),), (LOGITS,), "has no inputs that could be token ids"),
    ],
)
def test_every_input_and_output_has_its_part_of_each_sequence(inputs, outputs, why):
    sequences = found("logits = MatMul (x, w)", inputs, outputs)
    assert sequences.size == (None if why else "batch") and why in sequences.why

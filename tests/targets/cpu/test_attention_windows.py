"""Windows of attention in whole models: sessions whose keys lie in pages, against the interpreter."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import moec
from moec.ir import interpreter
from moec.passes.pipeline import LEVELS

TEXT = """<ir_version: 10, opset_import: ["" : 24]>
g (int64[B,S] input_ids, float[B,2,P,8] past) => (float[B,S,16] logits, float[B,2,R,8] present)
<int64 zero = {0}, int64 one = {1}, int64 size = {SIZE}, int64[1] last = {1}, float shown = {0.0},
 float hidden = {-3.4028235e38}, int64[4] split = {0, -1, 2, 8}, int64[3] flat = {0, 0, 16}, float[50,16] table> {
    rows = Gather (table, input_ids) heads = Reshape (rows, split) k = Transpose <perm = [0, 2, 1, 3]> (heads)
    present = Concat <axis = 2> (past, k)
    before = Shape <start = 2, end = 3> (past) new = Shape <start = 1, end = 2> (input_ids)
    p = Squeeze (before) s = Squeeze (new) t = Add (p, s) columns = Range (zero, t, one) count = Range (zero, s, one)
    place = Add (count, p) row = Unsqueeze (place, last) far = Sub (row, size)
    up = LessOrEqual (columns, row) inside = Greater (columns, far) both = And (up, inside)
    mask = Where (both, shown, hidden) y = Attention (k, present, present, mask)
    joined = Transpose <perm = [0, 2, 1, 3]> (y) logits = Reshape (joined, flat)
}"""
IDS = np.random.default_rng(1).integers(0, 50, (2, 320))
CUTS = (0, 300, 301, 302, 306, 320)
"""A prompt, steps of one token, of a few and of many."""


def model_of(size: int) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(TEXT.replace("SIZE", str(size)))
    table = np.random.default_rng(0).standard_normal((50, 16), dtype=np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    del proto.graph.value_info[:]
    return proto


@pytest.mark.nightly
@pytest.mark.parametrize("size", [1, 5, 100, 1000])
def test_sessions_compute_what_the_graph_does(size):
    proto, logits = model_of(size), {}
    feeds = {"input_ids": IDS, "past": np.zeros((2, 2, 0, 8), np.float32)}
    expected = interpreter.run(ir.from_proto(proto), feeds)["logits"]
    for name, passes in (("window", LEVELS["O2"]), ("mask", LEVELS["O2"].replace("raise-masks,", ""))):
        model = moec.compile(proto, passes=passes)
        session = model.session(batch=2)
        steps = [session.run(IDS[:, start:end], last=end - start) for start, end in itertools.pairwise(CUTS)]
        logits[name] = np.concatenate(steps, axis=1)
    np.testing.assert_allclose(logits["window"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(logits["window"], logits["mask"])

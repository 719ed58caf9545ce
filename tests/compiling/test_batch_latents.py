"""Attention over expanded latents in the graph of a batch becomes one over the latents."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from moec.common.errors import UnsupportedError
from moec.common.specs import tensor_specs
from moec.compiling.batch_latents import absorb_latents
from moec.compiling.batches import batched_model
from moec.ir import interpreter
from moec.ir.batches import is_batched
from moec.ir.graphs import is_op
from moec.ir.states import states_of
from moec.passes import pipeline
from moec.runtime.interface import Interface

MODEL = """<ir_version: 10, opset_import: ["" : 24]>
g (int64[B,S] input_ids, float[B,1,P,6] latents, float[B,1,P,2] turned)
  => (float[B,S,12] logits, float[B,1,R,6] new_latents, float[B,1,R,2] new_turned)
<int64[2] by_head = {3, 9}, int64[4] as_heads = {0, 0, 3, 6}, int64[3] joined = {0, 0, 15}, int64[1] one = {1},
 int64[2] widths = {4, 5}, int64[2] key_widths = {5, 1}, int64[4] heads = {1, 3, 1, 1},
 int64[4,1] first = {0, 1, 2, 3}, int64[2,1] last = {4, 5}, int64[1] six = {6}, int64[1] three = {3}> {
    x = Gather (table, input_ids)
    q = MatMul (x, wq) qs = Reshape (q, as_heads) query = Transpose <perm = [0, 2, 1, 3]> (qs)
    low = MatMul (x, wl) low4 = Unsqueeze (low, one) new_latents = Concat <axis = -2> (latents, low4)
    turn = MatMul (x, wt) turn4 = Unsqueeze (turn, one) new_turned = Concat <axis = -2> (turned, turn4)
    both = MatMul (new_latents, expanding) batch = Shape <end = 1> (input_ids)
    past = Shape <start = 2, end = 3> (turned) new = Shape <start = 1> (input_ids) count = Add (past, new)
    shape = Concat <axis = 0> (batch, count, by_head) by = Reshape (both, shape)
    all = Transpose <perm = [0, 2, 1, 3]> (by)
    plain, value = Split <axis = 3> (all, widths)
    wide = Expand (new_turned, heads)
    KEY
    key5, rest = Split <axis = 3> (key, key_widths)
    lengths = Expand (count, batch) y = Attention <is_causal = 1> (query, key, value, , , , lengths)
    yt = Transpose <perm = [0, 2, 1, 3]> (y) rows = Reshape (yt, joined) logits = MatMul (rows, head)
}"""
CONCAT = "key = Concat <axis = -1> (plain, wide)"
SCATTERED = """
    sizes = Concat <axis = 0> (six, three, count, batch) empty = ConstantOfShape (sizes)
    p = Transpose <perm = [3, 1, 2, 0]> (plain) some = ScatterND (empty, first, p)
    t = Transpose <perm = [3, 1, 2, 0]> (wide) two = ScatterND (some, last, t)
    key = Transpose <perm = [3, 1, 2, 0]> (two)"""


def model_of(key: str, before: str = "", after: str = "") -> ir.Model:
    text = MODEL.replace("KEY", key)
    assert before in text
    text = text.replace(before, after) if before else text
    proto, random = onnx.parser.parse_model(text), np.random.default_rng(0)
    shapes = {"table": (12, 16), "wq": (16, 18), "wl": (16, 6), "wt": (16, 2), "expanding": (6, 27), "head": (15, 12)}
    for name, shape in shapes.items():
        array = random.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    for state in model.graph.outputs[1:]:
        state.shape = ir.Shape([*list(state.shape)[:2], "P + S", list(state.shape)[3]])
    pipeline.run(model, pipeline.parse("infer-shapes,hold-cache,remove-dead-nodes"))
    return model


def interface_of(model: ir.Model) -> Interface:
    inputs, outputs = (tensor_specs(values) for values in (model.graph.inputs, model.graph.outputs))
    return Interface(inputs, outputs, states_of(model))


@pytest.mark.parametrize("key", [CONCAT, SCATTERED])
@pytest.mark.parametrize(("past", "new"), [(0, 1), (0, 7), (5, 1), (9, 3)])
def test_attention_over_latents_computes_the_same(key, past, new):
    model, random = model_of(key), np.random.default_rng(past)
    ids, c, t = random.integers(0, 12, (2, new)), *(random.normal(size=(2, 1, past, n)).astype("f4") for n in (6, 2))
    expected = interpreter.runner(model)({"input_ids": ids, "latents": c, "turned": t})
    interface = absorb_latents(model, interface_of(model))
    assert [str(state.input) for state in interface.states] == ["latents"]
    assert [spec.shape[-1] for spec in (*interface.inputs, *interface.outputs)] == ["S", 8, 12, 8]
    actual = interpreter.runner(model)({"input_ids": ids, "latents": np.concatenate([c, t], axis=-1)})
    np.testing.assert_allclose(actual["logits"], expected["logits"], rtol=1e-4, atol=1e-5)
    whole = np.concatenate([expected["new_latents"], expected["new_turned"]], axis=-1)
    np.testing.assert_array_equal(actual["new_latents"], whole)


@pytest.mark.parametrize("key", [CONCAT, SCATTERED])
def test_the_graph_of_a_batch_expands_no_state(key):
    model = model_of(key)
    batched = batched_model(model, interface_of(model))
    assert is_batched(batched)
    (attention,) = [node for node in batched.graph if is_op(node, "Attention")]
    assert [list(value.shape)[-1] for value in attention.inputs[:3]] == [8, 8, 6]
    assert attention.attributes.get_float("scale") == pytest.approx(6**-0.5)
    assert {state.input for state in states_of(model)} == {"latents", "turned"}  # which keeps its own


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("(query, key, value,", "(query, key, key5,"),
        ("key = Concat <axis = -1> (plain, wide)", "key = Concat <axis = -1> (wide, plain)"),
        ("logits = MatMul (rows, head)", "m = ReduceMean (new_turned) r = MatMul (rows, head) logits = Add (r, m)"),
        ("Concat <axis = -2> (turned, turn4)", "Concat <axis = -2> (turn4, turned)"),
    ],
)
def test_anything_else_is_left_and_refused_by_its_name(before, after):
    model = model_of(CONCAT, before, after)
    texts, interface = [str(node) for node in model.graph], interface_of(model)
    assert absorb_latents(model, interface) is interface
    assert [str(node) for node in model.graph] == texts
    with pytest.raises(UnsupportedError, match=r"^no batches of sequences: "):
        batched_model(model, interface)

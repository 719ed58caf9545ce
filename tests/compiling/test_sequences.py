from __future__ import annotations

import pytest

from moec.common.specs import TensorSpec
from moec.compiling.sequences import sequences_of
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.runtime.interface import Interface
from tests.passes.before_after import model_of

IDS = TensorSpec("input_ids", "int64", ("batch", "seq"))
LOGITS = TensorSpec("logits", "float32", ("batch", "seq", 6))
MASK = TensorSpec("attention_mask", "int64", ("rows", "seq"))


def found(nodes: str, inputs: tuple[TensorSpec, ...] = (IDS,), outputs: tuple[TensorSpec, ...] = (LOGITS,)):
    graph = "(int64[batch,seq] input_ids) => (float[batch,seq,6] logits) <float[9,6] table, float[6,6] w>"
    model = model_of(f"{graph} {{ x = Gather (table, input_ids) {nodes} }}")
    pipeline.run(model, pipeline.parse("infer-shapes"), Report())
    return sequences_of(model, Interface(inputs, outputs, (), {"input_ids": 9}, {}))


@pytest.mark.parametrize(
    "nodes",
    [
        "logits = MatMul (x, w)",
        "logits = Softmax (x)",
        "a = Constant <value_ints = [1]> () m = ReduceMean (x, a) logits = Sub (x, m)",
        "a = Constant <value_ints = [1]> () logits = CumSum (x, a)",
    ],
)
def test_tokens_of_one_sequence_may_be_combined(nodes):
    assert found(nodes) == "batch"


@pytest.mark.parametrize(
    "nodes",
    [
        "logits = Softmax <axis = 0> (x)",
        "a = Constant <value_ints = [0]> () m = ReduceMean (x, a) logits = Sub (x, m)",
        "m = ReduceMax (x) logits = Sub (x, m)",
        "a = Constant <value_ints = [0]> () logits = CumSum (x, a)",
        "s = Constant <value_ints = [-1, 6]> () f = Reshape (x, s) a = Constant <value_ints = [0]> () "
        "c = CumSum (f, a) z = Shape (x) logits = Reshape (c, z)",
        "k = Constant <value_ints = [1]> () v, i = TopK <axis = 0> (x, k) logits = Add (x, v)",
        "logits = moec.MoE <k = 1, capacity = 2> (x, x, , w, w)",
    ],
)
def test_sequences_that_are_combined_are_not_split(nodes):
    assert found(nodes) is None


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ((IDS, MASK), (LOGITS,), "batch"),
        ((IDS, TensorSpec("bias", "float32", ("rows", 6))), (LOGITS,), None),
        ((TensorSpec("input_ids", "int64", (2, "seq")),), (LOGITS,), None),
        ((IDS,), (LOGITS, TensorSpec("loss", "float32", ())), None),
        ((IDS,), (LOGITS, TensorSpec("router", "float32", ("batch*seq", 6))), None),
        ((IDS,), (LOGITS, TensorSpec("pairs", "float32", ("batch", "batch"))), None),
    ],
)
def test_every_input_and_output_has_its_part_of_each_sequence(inputs, outputs, expected):
    assert found("logits = MatMul (x, w)", inputs, outputs) == expected

"""Recorded runs: of models with and without states."""

from __future__ import annotations

import types

import numpy as np
import onnx.parser
import pytest

import moec
from moec.common.errors import InputError, UnsupportedError
from moec.tools.tracing.recording import record_trace

RECURRENCE = """<ir_version: 10, opset_import: ["" : 24]>
graph (int64[B,S] ids, float[B,4] kept) => (float[B,S,4] logits, float[B,4] next)
  <float[5,4] table = {0,1,2,3,4,5,6,7,8,9,0,1,2,3,4,5,6,7,8,9}, int64[1] one = {1}> {
  logits = Gather (table, ids)
  sum = ReduceSum <keepdims = 0> (logits, one)
  next = Add (kept, sum)
}"""


@pytest.fixture(scope="module")
def summing():
    """A language model that keeps the sum of all rows."""
    return moec.compile(onnx.parser.parse_model(RECURRENCE))


def peaks(run):
    return {counter.name: max(size for _, size in counter.points) for counter in run.counters}


def test_a_language_model_runs_a_prompt_and_a_decode_step(summing):
    trace = record_trace(summing)
    assert [run.title for run in trace.runs] == ["Prompt of 256 tokens", "Decode step after 256 tokens"]
    assert (trace.artifact, trace.threads) == (summing.digest, summing.threads)
    for run in trace.runs:
        kernels = [call for call in run.calls if call.operator is not None]
        assert {call.kernel for call in kernels} == summing.kernels.keys()
        assert all(call.nodes and call.bytes for call in kernels)
        assert 0 < sum(call.duration for call in run.calls) <= run.duration
        ends = [call.start + call.duration for call in run.calls]
        assert all(end <= call.start for end, call in zip(ends, run.calls[1:], strict=False))
        for counter in run.counters:
            assert all(0 <= moment <= run.duration for moment, _ in counter.points)
    prompt, step = trace.runs
    assert (peaks(prompt)["Caches"], peaks(step)["Caches"]) == (16, 16)
    assert peaks(prompt)["Tensors"] > peaks(step)["Tensors"] > 0


def test_prompts_of_other_lengths_behind_other_tokens(summing):
    titles = [run.title for run in record_trace(summing, prompt=3, depth=2).runs]
    assert titles == ["Prompt of 3 tokens after 2 tokens", "Decode step after 5 tokens"]


def test_given_inputs_are_one_run(summing):
    inputs = {"ids": np.zeros((1, 5), np.int64), "kept": np.zeros((1, 4), np.float32)}
    (run,) = record_trace(summing, inputs=inputs).runs
    assert run.title == "ids 1 x 5, kept 1 x 4"
    assert "Caches" not in peaks(run)


def test_a_model_without_states_runs_its_least_and_largest_case():
    text = '<ir_version: 10, opset_import: ["" : 24]> graph (float[N,4] x) => (float[N,4] y) { y = Abs (x) }'
    model = moec.compile(onnx.parser.parse_model(text))
    least, largest = record_trace(model).runs
    assert (least.title, largest.title) == ("x 1 x 4", "x 128 x 4")
    with pytest.raises(InputError):  # no language model
        record_trace(model, prompt=3)


def test_an_emulated_gpu_is_refused():
    artifact = types.SimpleNamespace(where="model.moec")
    emulated = types.SimpleNamespace(gpu=None, target="cuda:sm_90a", artifact=artifact)
    with pytest.raises(UnsupportedError, match="an emulated GPU has no times to trace; run it on a GPU"):
        record_trace(emulated)

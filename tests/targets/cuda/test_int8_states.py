"""Caches in int8 that an emulated GPU holds: plain runs, sessions and batches, against a processor's."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

import moec
from moec.runtime.held import PAGE

from .test_batches import LENGTHS, alone, check, compiled, tokens

TABLE = ",".join(str(round(np.sin(3 * n), 3)) for n in range(160))
TEXT = f"""<ir_version: 10, opset_import: ["" : 24]>
g (int64[B,S] ids, float[B,2,P,16] k, float[B,2,P,16] v)
    => (float[B,S,64] logits, float[B,2,R,16] pk, float[B,2,R,16] pv)
    <float[5,32] table = {{{TABLE}}}, int64[4] heads = {{0, 0, 2, 16}}, int64[3] wide = {{0, 0, 64}}> {{
    e = Gather (table, ids)
    apart = Reshape (e, heads)
    x = Transpose <perm = [0, 2, 1, 3]> (apart)
    q = Concat <axis = 1> (x, x)
    y, pk, pv = Attention <is_causal = 1> (q, x, x, "", k, v)
    tokens = Transpose <perm = [0, 2, 1, 3]> (y)
    logits = Reshape (tokens, wide)
}}"""
INT8 = "O2,cast-states{dtype=int8}"
IDS = np.random.default_rng(0).integers(0, 5, (2, 3 * PAGE))


@pytest.fixture(scope="module")
def on_cuda() -> moec.CompiledModel:
    return compiled(onnx.parser.parse_model(TEXT), passes=INT8)


@pytest.fixture(scope="module")
def on_cpu() -> moec.CompiledModel:
    return moec.compile(onnx.parser.parse_model(TEXT), target="cpu:avx2", passes=INT8, batches=True)


def test_both_hold_the_same_bytes(on_cuda, on_cpu):
    assert [state.dtype for state in on_cuda._executor.held] == ["int8", "int8"]
    sessions = [model.session() for model in (on_cuda, on_cpu)]
    for session in sessions:
        session.run(IDS[0, :3])
    assert sessions[0].state_bytes == sessions[1].state_bytes


@pytest.mark.parametrize(("past", "new"), [(0, 1), (0, 3), (5, 3), (2, 17), (4, 0), (0, 0), (250, 7)])
def test_plain_runs_return_the_rounded_states(on_cuda, on_cpu, past, new):
    """Rows of the second head begin at an odd place where their number is no multiple of 8."""
    random = np.random.default_rng(past)
    values = {name: random.standard_normal((2, 2, past, 16), np.float32) for name in "kv"} | {"ids": IDS[:, :new]}
    actual, expected = on_cuda.run(values), on_cpu.run(values)
    for name in ("pk", "pv"):
        np.testing.assert_array_equal(actual[name], expected[name])
    np.testing.assert_allclose(actual["logits"], expected["logits"], rtol=1e-5, atol=1e-5)


def test_sessions_across_pages(on_cuda, on_cpu):
    sessions, start = [model.session(batch=2) for model in (on_cuda, on_cpu)], 0
    for new in (1, PAGE - 2, 1, 1, 17, PAGE):  # 1, 255, 256, 257 tokens in all, and more
        actual, expected = (session.run(IDS[:, start : start + new]) for session in sessions)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
        start += new
    forked, expected = (session.fork().run(IDS[:, :2]) for session in sessions)
    np.testing.assert_allclose(forked, expected, rtol=1e-5, atol=1e-5)
    for session in sessions:
        session.truncate(3)
    again, expected = (session.run(IDS[:, 5:6]) for session in sessions)
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", [(1, 30, PAGE + 1), pytest.param(LENGTHS, marks=pytest.mark.nightly)])
def test_sequences_leave_fork_and_step_back(on_cuda, on_cpu, lengths):
    batches, last = [model.batch(6, 16 * PAGE) for model in (on_cuda, on_cpu)], tokens(lengths[-1], 1)
    for batch in batches:
        numbers = [batch.add(tokens(count, count)) for count in lengths[:-1]] + [batch.add(last)]
    results = check(batches)
    np.testing.assert_array_equal(results[numbers[-1]], alone(on_cuda, last))
    for batch in batches:
        batch.remove(numbers[0])
        copy = batch.fork(numbers[-1])
        batch.truncate(numbers[-1], 20)
        for number in (*numbers[1:], copy):
            batch.extend(number, tokens(1 + number % 3, number))
    results = check(batches)
    for number, start in ((copy, len(last)), (numbers[-1], 20)):
        own = last[:start], tokens(1 + number % 3, number)
        np.testing.assert_array_equal(results[number], alone(on_cuda, *own))

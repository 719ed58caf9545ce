"""Batches on an emulated GPU with states that each run replaces, which stay in its memory."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

import moec
from moec.artifacts.loading import device_of
from moec.runtime.held import PAGE
from moec.runtime.model import CompiledModel

from ...runtime.emulated_gpu import Calls
from .test_batches import alone, check, compiled, finish, tokens
from .test_held_states import CAPTURING, TABLE

TAPS = ",".join(str(round(np.cos(5 * n), 3)) for n in range(32))
TEXT = f"""<ir_version: 10, opset_import: ["" : 27]>
g (int64[B,S] ids, float[B,8,3] conv, float[B,2,4,4] state)
    => (float[B,S,8] logits, float[B,8,3] new_conv, float[B,2,4,4] new_state)
    <float[5,8] table = {{{TABLE}}}, float[8,1,4] taps = {{{TAPS}}}, int64[1] first = {{-3}},
     int64[1] end = {{9223372036854775807}}, int64[1] channels = {{2}}> {{
    x = Gather (table, ids)
    inputs = Transpose <perm = [0, 2, 1]> (x)
    seen = Concat <axis = 2> (conv, inputs)
    new_conv = Slice (seen, first, end, channels)
    mixed = Conv <group = 8> (seen, taps)
    keys = Transpose <perm = [0, 2, 1]> (mixed)
    logits, new_state = LinearAttention <q_num_heads = 2, kv_num_heads = 2, scale = 0.1, update_rule = "linear">
        (keys, keys, x, state)
}}"""
"""A convolution, and a recurrence over what it returns."""


@pytest.fixture(scope="module")
def on_cuda() -> moec.CompiledModel:
    return compiled(onnx.parser.parse_model(TEXT))


@pytest.fixture(scope="module")
def on_cpu() -> moec.CompiledModel:
    return moec.compile(onnx.parser.parse_model(TEXT), batches=True)


def test_sequences_join_leave_fork_and_begin_again(on_cuda, on_cpu):
    batches, lengths = [model.batch(5, 16 * PAGE) for model in (on_cuda, on_cpu)], (1, PAGE, 2, PAGE + 1)
    for batch in batches:
        numbers = [batch.add(tokens(count, count)) for count in lengths]
    results = check(batches)
    for number, count in zip(numbers, lengths, strict=True):
        np.testing.assert_array_equal(results[number], alone(on_cuda, tokens(count, count)))
    for batch in batches:
        batch.remove(numbers[0])
        copies = [batch.fork(numbers[1]), batch.fork(numbers[3])]
        batch.truncate(numbers[2], 0)
        for number in (*numbers[1:], *copies):
            batch.extend(number, tokens(1 + number % 3, number))
    results = check(batches)
    for number, *parts in (
        (1, tokens(PAGE, PAGE)),
        (2,),
        (3, tokens(PAGE + 1, PAGE + 1)),
        (copies[0], tokens(PAGE, PAGE)),
    ):
        np.testing.assert_array_equal(results[number], alone(on_cuda, *parts, tokens(1 + number % 3, number)))
    assert batches[0].state_bytes == batches[1].state_bytes


def test_steps_copy_no_states(on_cuda):
    """A step reads its tokens and where they belong, in one copy, and returns logits alone, whether its sequences are
    those of the step before or not. A graph is launched for the same number of sequences, whichever they are."""
    model = CompiledModel(on_cuda.artifact, CAPTURING, device_of(on_cuda.artifact, CAPTURING))
    batch = model.batch(4, 4 * PAGE)
    numbers = [batch.add(tokens(3, seed)) for seed in range(3)]
    finish(batch)
    for stepping in ((0, 1), (1, 2), (2, 0), (0, 1)):
        if stepping == (2, 0):
            batch.fork(1)
        for place in stepping:
            batch.extend(numbers[place], tokens(1))
        with Calls() as calls:
            batch.step()
        assert calls["copy from host"] == calls["copy to host"] == 1
        assert calls["bytes of copy to host"] == 2 * 8 * 4
        assert calls["copy on device"] == calls["pageable copy from host"] == calls["pageable copy to host"] == 0
    assert calls["cuGraphLaunch"] == 1 and calls["launch"] == 0


def test_a_fork_goes_on_from_states_that_nobody_writes_to(on_cuda):
    batch = on_cuda.batch(2, 4 * PAGE)
    first = batch.add(tokens(7))
    finish(batch)
    second = batch.fork(first)
    for number, seed in ((first, 1), (second, 2)):
        batch.extend(number, tokens(2, seed))
        np.testing.assert_array_equal(batch.step()[number], alone(on_cuda, tokens(7), tokens(2, seed)))

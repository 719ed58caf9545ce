"""RNN, GRU and LSTM of the reference interpreter, where onnxruntime says nothing else.

tests/passes/test_decompose_recurrent.py compares them to onnxruntime's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moec.ir.recurrent import recurrent

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
WIDTH, HIDDEN, BATCH = 3, 2, 4


def arrays(operator: str, steps: int, directions: int = 1) -> list[Any]:
    """X, W, R, B, lengths that are not given, and states before the first step."""
    random, gates = np.random.default_rng(3), GATES[operator] * HIDDEN
    shapes = [(steps, BATCH, WIDTH), (directions, gates, WIDTH), (directions, gates, HIDDEN), (directions, 2 * gates)]
    states = [(directions, BATCH, HIDDEN)] * (2 if operator == "LSTM" else 1)
    x, w, r, b, *states = (random.normal(size=shape).astype(np.float32) for shape in (*shapes, *states))
    return [x, w, r, b, None, *states]


def with_lengths(inputs: list[Any], *lengths: int) -> list[Any]:
    return [*inputs[:4], np.array(lengths, np.int32), *inputs[5:]]


@pytest.mark.parametrize("operator", list(GATES))
def test_a_sequence_is_computed_as_if_it_were_alone(operator: str) -> None:
    inputs = arrays(operator, 5)
    y, *last = recurrent(operator, *with_lengths(inputs, 5, 3, 1, 0), direction="reverse")
    for place, length in enumerate((5, 3, 1, 0)):
        x, *others = inputs[0][:length, place : place + 1], *inputs[1:5], *(s[:, place : place + 1] for s in inputs[5:])
        alone, *states = recurrent(operator, x, *others, direction="reverse")
        np.testing.assert_allclose(y[:length, :, place : place + 1], alone, 1e-6, 1e-6)
        assert not y[length:, :, place].any()
        for state, expected in zip(last, states, strict=True):
            np.testing.assert_allclose(state[:, place : place + 1], expected, 1e-6, 1e-6)


@pytest.mark.parametrize("operator", list(GATES))
def test_lengths_of_all_steps_change_nothing(operator: str) -> None:
    inputs = arrays(operator, 3, 2)
    plain = recurrent(operator, *inputs, direction="bidirectional")
    for first, other in zip(
        plain, recurrent(operator, *with_lengths(inputs, 3, 3, 3, 3), direction="bidirectional"), strict=True
    ):
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("operator", list(GATES))
def test_without_a_step_states_are_what_they_were(operator: str) -> None:
    inputs = arrays(operator, 0, 2)
    y, *last = recurrent(operator, *inputs, direction="bidirectional")
    assert y.shape == (0, 2, BATCH, HIDDEN) and y.dtype == np.float32
    for state, initial in zip(last, inputs[5:], strict=True):
        np.testing.assert_array_equal(state, initial)


@pytest.mark.parametrize("operator", list(GATES))
def test_batch_first(operator: str) -> None:
    inputs = with_lengths(arrays(operator, 3, 2), 3, 2, 1, 3)
    turned = [inputs[0].swapaxes(0, 1), *inputs[1:5], *(state.swapaxes(0, 1) for state in inputs[5:])]
    y, *last = recurrent(operator, *inputs, direction="bidirectional")
    result = recurrent(operator, *turned, direction="bidirectional", layout=1)
    expected = [np.moveaxis(y, 2, 0), *(state.swapaxes(0, 1) for state in last)]
    for actual, other in zip(result, expected, strict=True):
        np.testing.assert_array_equal(actual, other)


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        ({"activations": ["Gelu"]}, "activation 'Gelu' is not known; expected one of Affine, Elu"),
        ({"activations": ["Affine"], "activation_alpha": [1.0]}, "activation Affine lacks its alpha or beta"),
        ({"activations": ["Tanh", "Relu"]}, "2 activations are given; expected 1"),
        ({"direction": "sideways"}, "direction is 'sideways'; expected one of forward, reverse, bidirectional"),
    ],
)
def test_what_onnx_does_not_name_is_an_error(attributes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        recurrent("RNN", *arrays("RNN", 2), **attributes)

"""RNN, GRU and LSTM for the reference interpreter, step by step as the ONNX specification has them.

``onnx.reference`` knows neither the lengths of sequences nor ``clip``, ``input_forget`` and activations that a node
names. Source: https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html and onnx__RNN.html; where these leave
something open, it is as in onnxruntime.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from moec.ir.semantics import sigmoid

Array = np.ndarray[Any, Any]
Function = Callable[[Array], Array]

_ACTIVATIONS: dict[str, tuple[tuple[float | None, ...], Callable[..., Array]]] = {
    "Affine": ((None, None), lambda x, alpha, beta: alpha * x + beta),
    "Elu": ((1.0,), lambda x, alpha: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)),
    "HardSigmoid": ((0.2, 0.5), lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1)),
    "LeakyRelu": ((0.01,), lambda x, alpha: np.where(x < 0, alpha * x, x)),
    "Relu": ((), lambda x: np.maximum(x, 0)),
    "ScaledTanh": ((None, None), lambda x, alpha, beta: alpha * np.tanh(beta * x)),
    "Sigmoid": ((), sigmoid),
    "Softplus": ((), lambda x: np.logaddexp(x, x.dtype.type(0))),
    "Softsign": ((), lambda x: x / (1 + np.abs(x))),
    "Tanh": ((), np.tanh),
    "ThresholdedRelu": ((1.0,), lambda x, alpha: np.where(x >= alpha, x, 0)),
}
"""Defaults of alpha and beta, None where the node has to give them, and the function, by name of the activation."""


@dataclasses.dataclass(frozen=True)
class _RecurrentCell:
    """One direction of a node: ``w`` [gates * hidden, width], ``r`` [gates * hidden, hidden], the halves of B, each
    [gates * hidden], and the peepholes [3 * hidden], which are 0 where the node has none."""

    w: Array
    r: Array
    input_bias: Array
    bias: Array
    peepholes: Array
    functions: Sequence[Function]
    linear_before_reset: bool
    input_forget: bool


Step = Callable[[_RecurrentCell, Array, Sequence[Array]], Sequence[Array]]
"""One step of a cell: from x [batch, width] and the states [batch, hidden] before it to the states after it. The first
state is the output of the step."""


def _rnn(cell: _RecurrentCell, x: Array, states: Sequence[Array]) -> Sequence[Array]:
    return [cell.functions[0](x @ cell.w.T + states[0] @ cell.r.T + cell.input_bias + cell.bias)]


def _gru(cell: _RecurrentCell, x: Array, states: Sequence[Array]) -> Sequence[Array]:
    (h,), (f, g) = states, cell.functions
    split = 2 * h.shape[-1]
    projected = x @ cell.w.T + cell.input_bias
    z, r = np.split(f(projected[:, :split] + h @ cell.r[:split].T + cell.bias[:split]), 2, axis=-1)
    if cell.linear_before_reset:
        recurrent = r * (h @ cell.r[split:].T + cell.bias[split:])
    else:
        recurrent = (r * h) @ cell.r[split:].T + cell.bias[split:]
    return [(1 - z) * g(projected[:, split:] + recurrent) + z * h]


def _lstm(cell: _RecurrentCell, x: Array, states: Sequence[Array]) -> Sequence[Array]:
    (h, c), (f, g, last) = states, cell.functions
    i, o, forget, new = np.split(x @ cell.w.T + h @ cell.r.T + cell.input_bias + cell.bias, 4, axis=-1)
    p_i, p_o, p_forget = np.split(cell.peepholes, 3)
    i = f(i + p_i * c)
    forget = 1 - i if cell.input_forget else f(forget + p_forget * c)
    c = forget * c + i * g(new)
    return [f(o + p_o * c) * last(c), c]


@dataclasses.dataclass(frozen=True)
class _RecurrentKind:
    """One of the three operators: its step, the number of gates, the default activations and the number of states."""

    step: Step
    gates: int
    activations: tuple[str, ...]
    states: int = 1


_KINDS = {
    "RNN": _RecurrentKind(_rnn, 1, ("Tanh",)),
    "GRU": _RecurrentKind(_gru, 3, ("Sigmoid", "Tanh")),
    "LSTM": _RecurrentKind(_lstm, 4, ("Sigmoid", "Tanh", "Tanh"), states=2),
}
_BEGINNINGS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
"""Whether each direction starts at the end of the sequence."""


def recurrent(operator: str, *inputs: Array | None, **attributes: Any) -> tuple[Array, ...]:
    """Y [steps, directions, batch, hidden] and the last states, each [directions, batch, hidden], of an RNN, GRU or
    LSTM; batch comes first with ``layout``. After the end of a sequence Y is 0 and the states do not change."""
    kind, (x, w, r, b, lengths, *optional) = _KINDS[operator], (*inputs, *[None] * (8 - len(inputs)))
    assert x is not None and w is not None and r is not None, "X, W and R are required"
    batch_first = bool(attributes.get("layout", 0))
    x = np.swapaxes(x, 0, 1) if batch_first else x
    (steps, batch), hidden = x.shape[:2], r.shape[-1]
    beginnings = _beginnings(attributes.get("direction", "forward"))
    functions = _functions(kind, len(beginnings), attributes)
    alive = np.arange(steps)[:, None, None] < (np.full(batch, steps) if lengths is None else lengths)[:, None]
    y = np.zeros((steps, len(beginnings), batch, hidden), x.dtype)
    last = [np.zeros((len(beginnings), batch, hidden), x.dtype) for _ in range(kind.states)]
    for state, first in zip(last, optional, strict=False):
        if first is not None:
            state[:] = np.swapaxes(first, 0, 1) if batch_first else first
    for at, is_backward in enumerate(beginnings):
        input_bias, bias = np.split(np.zeros(2 * len(r[at]), x.dtype) if b is None else b[at], 2)
        peepholes = np.zeros(3 * hidden, x.dtype) if optional[2] is None else optional[2][at]
        before_reset, forgets = bool(attributes.get("linear_before_reset")), bool(attributes.get("input_forget"))
        cell = _RecurrentCell(w[at], r[at], input_bias, bias, peepholes, functions[at], before_reset, forgets)
        for step in range(steps)[:: -1 if is_backward else 1]:
            states = [state[at] for state in last]
            new = kind.step(cell, x[step], states)
            y[step, at] = np.where(alive[step], new[0], 0)
            for state, before, after in zip(last, states, new, strict=True):
                state[at] = np.where(alive[step], after, before)
    if batch_first:
        return np.moveaxis(y, 2, 0), *(np.swapaxes(state, 0, 1) for state in last)
    return y, *last


def _beginnings(direction: str) -> tuple[bool, ...]:
    if direction not in _BEGINNINGS:
        raise ValueError(f"direction is {direction!r}; expected one of {', '.join(_BEGINNINGS)}")
    return _BEGINNINGS[direction]


def _functions(kind: _RecurrentKind, directions: int, attributes: dict[str, Any]) -> list[list[Function]]:
    """The activations of each direction. Those with alpha or beta take them in turn from the node's lists. All except
    that of an LSTM's cell state have their input clipped to ``clip``."""
    names, expected = (
        list(attributes.get("activations") or kind.activations * directions),
        len(kind.activations) * directions,
    )
    if names == ["Tanh", "Tanh"]:  # what ONNX's schema gives an RNN of any direction that names none
        names = names[:expected]
    if len(names) != expected:
        raise ValueError(f"{len(names)} activations are given; expected {expected}")
    coefficients = [iter(attributes.get(name, ())) for name in ("activation_alpha", "activation_beta")]
    size, clip = len(kind.activations), attributes.get("clip")
    functions = [_function(name, coefficients, None if at % size == 2 else clip) for at, name in enumerate(names)]
    return [functions[first : first + size] for first in range(0, len(functions), size)]


def _function(name: str, coefficients: Sequence[Iterator[float]], clip: float | None) -> Function:
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not known; expected one of {', '.join(_ACTIVATIONS)}")
    defaults, function = _ACTIVATIONS[name]
    numbers = [next(source, default) for source, default in zip(coefficients, defaults, strict=False)]
    if None in numbers:
        raise ValueError(f"activation {name} lacks its alpha or beta")
    return lambda x: function(x if clip is None else np.clip(x, -clip, clip), *numbers)

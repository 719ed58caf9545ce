"""The activations that recurrent operators name by strings.

Source: the operators RNN, GRU and LSTM of ONNX, https://onnx.ai/onnx/operators/onnx__LSTM.html.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.passes.graph.writer import NotDecomposableError, Writer

_DEFAULTS: dict[str, tuple[float | None, ...]] = {
    "Affine": (None, None),
    "Elu": (1.0,),
    "HardSigmoid": (0.2, 0.5),
    "LeakyRelu": (0.01,),
    "Relu": (),
    "ScaledTanh": (None, None),
    "Sigmoid": (),
    "Softplus": (),
    "Softsign": (),
    "Tanh": (),
    "ThresholdedRelu": (1.0,),
}
"""alpha and beta of those that have them; None where they have to be given."""


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation with its numbers, and the largest magnitude of its input (None: any)."""

    name: str
    numbers: tuple[float, ...]
    clip: float | None

    def of(self, write: Writer, x: ir.Value, kind: ir.DataType) -> ir.Value:
        """The activation of ``x``, of element type ``kind``."""

        def number(value: float) -> ir.Value:
            return write.constant(np.array(value, kind.numpy()), "number")

        if self.clip is not None:
            x = write.add("Clip", x, number(-self.clip), number(self.clip))
        if self.name == "Affine":
            return write.add("Add", write.add("Mul", x, number(self.numbers[0])), number(self.numbers[1]))
        if self.name == "ScaledTanh":
            inner = write.add("Tanh", write.add("Mul", x, number(self.numbers[1])))
            return write.add("Mul", inner, number(self.numbers[0]))
        if self.name == "ThresholdedRelu":
            return write.add("Where", write.add("GreaterOrEqual", x, number(self.numbers[0])), x, number(0))
        attributes: dict[str, Any] = dict(zip(("alpha", "beta"), self.numbers, strict=False))
        return write.add(self.name, x, **attributes)


def activations_of(write: Writer, defaults: tuple[str, ...], directions: int) -> list[list[Activation]]:
    """The activations of each direction. alpha and beta are lists that those which have them take from in turn.

    Raises NotDecomposableError for a wrong number of activations, an unknown one, or one that lacks its numbers.
    """
    names = list(write.attribute("activations", None) or defaults * directions)
    if len(names) != len(defaults) * directions:
        raise NotDecomposableError(f"{len(names)} activations are given; expected {len(defaults) * directions}")
    clip = write.attribute("clip", None)
    if clip is not None and not clip > 0:
        raise NotDecomposableError(f"clip is {clip}; expected a number above 0")
    takers: list[Callable[[], float | None]] = []
    for attribute in ("activation_alpha", "activation_beta"):
        numbers = iter(write.attribute(attribute, None) or ())
        takers.append(lambda numbers=numbers: next(numbers, None))
    activations = [_activation(name, takers, clip) for name in names]
    return [activations[start : start + len(defaults)] for start in range(0, len(activations), len(defaults))]


def _activation(name: str, takers: list[Callable[[], float | None]], clip: float | None) -> Activation:
    if name not in _DEFAULTS:
        raise NotDecomposableError(f"activation {name!r} is not known; expected one of {', '.join(_DEFAULTS)}")
    numbers = []
    for take, default in zip(takers, _DEFAULTS[name], strict=False):
        number = take()
        number = default if number is None else number
        if number is None:
            raise NotDecomposableError(f"activation {name} lacks its alpha or beta")
        numbers.append(number)
    return Activation(name, tuple(numbers), clip)

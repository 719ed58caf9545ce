"""Elementwise scores of routers, each written once for numpy, PyTorch and the kernels of every target.

A score is an expression over :class:`Primitives`, which the reference semantics, the fit of routers and each target
provide. A new one is a row of :data:`ELEMENTWISE` and a name in :data:`moec.ir.dialect.ScoreFunction`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

Function = Callable[[Any], Any]
AT_MOST_ONE = 1 + 2**-10
"""The largest sigmoid or softmax, whatever the rounding of a kernel."""


@dataclasses.dataclass(frozen=True)
class Primitives:
    """Elementwise functions of one kind of number: arrays, tensors or expressions of a kernel."""

    sigmoid: Function
    softplus: Function
    sqrt: Function
    relu: Function


@dataclasses.dataclass(frozen=True)
class ElementwiseScore:
    """A score of each logit by itself, and the bounds of its values for finite logits."""

    compute: Callable[[Primitives, Any], Any]
    least: float
    most: float


ELEMENTWISE = {
    "sigmoid": ElementwiseScore(lambda on, x: on.sigmoid(x), 0, AT_MOST_ONE),
    "sqrt_softplus": ElementwiseScore(lambda on, x: on.sqrt(on.softplus(x)), 0, math.inf),
    "softplus": ElementwiseScore(lambda on, x: on.softplus(x), 0, math.inf),
    "relu": ElementwiseScore(lambda on, x: on.relu(x), 0, math.inf),
}
LOGITS = ("identity", "softmax_topk", "sigmoid_topk")
"""Scores that are the logits. Those named ``_topk`` become the softmax or sigmoid of the selected logits."""


def elementwise_scores(primitives: Primitives) -> dict[str, Function]:
    """The elementwise scores by name, as functions of what ``primitives`` compute on."""
    return {name: lambda x, score=score: score.compute(primitives, x) for name, score in ELEMENTWISE.items()}

"""The registry of rewrites: ways to write a model differently without changing its function."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

Rewrite = Callable[[ir.Model, np.random.Generator], ir.Model | None]
"""Takes a model with types and shapes as ONNX infers them, which it may change in place, to one that computes the same
(apart from rounding); None where it finds nothing to do, and then the model is as it was. Names of inputs and outputs
stay. Where there are several places, some of them are rewritten: one, all, or any number in between."""

REWRITES: dict[str, Rewrite] = {}
"""The rewrites by name, in the order of the table."""
ROUNDS: set[str] = set()
"""Names of those that round to float16: results differ by about a thousandth, and tokens near a tie go elsewhere."""


def rewrite(function: Rewrite) -> Rewrite:
    """Enter a rewrite under the name of its function."""
    register(function.__name__.replace("_", " "), function)
    return function


def register(name: str, function: Rewrite) -> None:
    assert name not in REWRITES, name
    REWRITES[name] = function

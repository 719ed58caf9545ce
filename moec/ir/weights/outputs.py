"""What one expert makes of rows, from its weights in whatever format and layout they are stored."""

from __future__ import annotations

from typing import Any

import numpy as np

from moec.ir.semantics import activated, limited
from moec.ir.weights.experts import ExpertWeights

Array = np.ndarray[Any, Any]


def expert_output(
    weights: ExpertWeights, expert: int, rows: Array, parts: dict[str, Array] | None = None
) -> tuple[Array, Array]:
    """Hidden units [n,f] and output [n,width] of rows [n,d]; ``parts`` are used in the place of the expert's own."""

    def project(part: Any, inputs: Array) -> Array:
        given = (parts or {}).get(part)
        product = inputs @ (weights.decoded(part, expert) if given is None else given)
        bias = weights.bias(part)
        return product if bias is None else product + bias[expert].astype(np.float32)

    spec = weights.spec
    with np.errstate(all="ignore"):
        hidden = activated(spec, project("gate", rows) if spec.gated else None, project("up", rows))
        hidden[:, weights.sizes[expert] :] = 0
        return hidden, limited(spec, project("down", hidden))

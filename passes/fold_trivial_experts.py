"""Experts that contribute nothing."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from moec.passes.framework.base import Exactness, Report
from moec.passes.weights.expert_set import ExpertSet, share_weights


@dataclasses.dataclass(frozen=True)
class FoldTrivialExperts:
    """Removes experts of ``moec.Experts`` that return zero, and dispatches no token to them.

    1. An expert without hidden units, whose bias after ``down`` is zero, returns zero. ``drop-zero-neurons``, which
       belongs before this pass, removes the hidden units of experts that are zero in any other way.
    2. The router stays as it is, because no other experts must be selected instead: a table after it maps their ids to
       -1 (:mod:`moec.ir.expert_ids`). At least one expert is stored.
    3. Experts that are constant (no hidden unit, but a bias) stay: no form of a constant takes fewer numbers. So do
       experts whose weights make them return their input; only the author of a model declares ``identity_experts``.
    4. Applies only if nothing else uses the routing, and before ``fuse-route-dispatch``.

    On a processor this saves a token only the copies of a row and of a result, because ``drop-zero-neurons`` leaves
    nothing to multiply by. Elsewhere it also saves weights, which are stored for the units of the largest expert.

    A weight of a pair that is infinite or NaN times zero counts as zero, as in ``drop-zero-neurons``.

    ::

        (float[T,2] x, float[T,3] logits) => (float[T,2] y) <float[3,4,2] up, float[3,2,4] down> {
           w, e = moec.Route <k = 2> (logits)
           y = moec.Experts <activation = "relu", gate_layout = "none", hidden_sizes = [4, 0, 3]> (x, w, e, up, down)
        }
            ->
        (float[T,2] x, float[T,3] logits) => (float[T,2] y)
           <int32[4] e_table = {0, -1, 1, -1}, float[2,4,2] up_used, float[2,2,4] down_used> {
           w, e = moec.Route <k = 2> (logits)
           e_stored = Gather <axis = 0> (e_table, e)
           y = moec.Experts <activation = "relu", gate_layout = "none", hidden_sizes = [4, 3]>
              (x, w, e_stored, up_used, down_used)
        }
    """

    name: ClassVar[str] = "fold-trivial-experts"
    exactness: ClassVar[Exactness] = "exact"

    def apply(self, model: ir.Model, report: Report) -> bool:
        return share_weights(self.name, model.graph, report, _stored_as, "it is zero")


def _stored_as(experts: ExpertSet) -> list[int]:
    """Every stored expert, or -1 for one that is zero; the first of all is kept where all are."""
    sizes = np.array(experts.weights.sizes)
    bias = experts.weights.bias("down")
    zero = (sizes == 0) & (np.ones(len(sizes), bool) if bias is None else (bias == 0).all(axis=1))
    if zero.all():
        zero[0] = False
    return [-1 if is_zero else expert for expert, is_zero in enumerate(zero)]

"""Experts with equal weights."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from moec.common.mapped_files import release_pages
from moec.ir import dialect
from moec.ir.weights.lazy import LazyMatrix
from moec.ir.weights.stored import constant
from moec.passes.framework.base import Exactness, Report
from moec.passes.weights.expert_set import ExpertSet, share_weights

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class MergeEqualExperts:
    """Stores equal experts of ``moec.Experts`` once, such as experts that were copied from one network.

    1. Experts are equal if their weights are stored in the same formats and bit for bit equal, and so are their biases
       and numbers of hidden units.
    2. The router stays as it is, and so do the k pairs of a token: each has a weight of its own, and a selection among
       fewer experts would add others. A table after the router maps ids to stored experts (:mod:`moec.ir.expert_ids`).
    3. Applies only if nothing else uses the routing, and before ``fuse-route-dispatch``, which leaves such layers in
       two operators.

    First 64 weights of each expert are compared; only experts that agree there are read. The table costs about a
    microsecond per call. A few tokens then read a weight once that several of them need.

    ::

        (float[T,2] x, float[T,3] logits) => (float[T,2] y)
           <float[3,1,2] up = {1, 2, 3, 4, 1, 2}, float[3,2,1] down = {5, 6, 7, 8, 5, 6}> {
           w, e = moec.Route <k = 2> (logits)
           y = moec.Experts <activation = "relu", gate_layout = "none"> (x, w, e, up, down)
        }
            ->
        (float[T,2] x, float[T,3] logits) => (float[T,2] y)
           <int32[4] e_table = {0, 1, 0, -1}, float[2,1,2] up_used, float[2,2,1] down_used> {
           w, e = moec.Route <k = 2> (logits)
           e_stored = Gather <axis = 0> (e_table, e)
           y = moec.Experts <activation = "relu", gate_layout = "none"> (x, w, e_stored, up_used, down_used)
        }
    """

    name: ClassVar[str] = "merge-equal-experts"
    exactness: ClassVar[Exactness] = "exact"

    def apply(self, model: ir.Model, report: Report) -> bool:
        return share_weights(self.name, model.graph, report, _stored_as)


_LOOKED_AT = 64
"""Number of weights of every expert that are compared before all are read."""


def _stored_as(experts: ExpertSet) -> list[int]:
    """The first equal expert for every stored expert."""
    alike: dict[bytes, list[int]] = collections.defaultdict(list)
    for expert in range(experts.stored):
        alike[_digest(_beginning(experts, expert))].append(expert)
        release_pages()
    first = list(range(experts.stored))
    for candidates in alike.values():
        first_of: dict[bytes, int] = {}
        for expert in candidates if len(candidates) > 1 else ():
            first[expert] = first_of.setdefault(_digest(_everything(experts, expert)), expert)
            release_pages()
    return first


def _digest(parts: Iterator[Array]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part.dtype.name}{part.shape}".encode())
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.digest()


def _beginning(experts: ExpertSet, expert: int) -> Iterator[Array]:
    yield _matrix(experts, "down", expert).data[:1, :_LOOKED_AT]


def _everything(experts: ExpertSet, expert: int) -> Iterator[Array]:
    """All data that an expert consists of."""
    yield np.array(experts.weights.sizes[expert])
    for name, weight in experts.weights.operands.items():
        matrix = _matrix(experts, name, expert)
        yield np.frombuffer(str(weight.run_of(expert).format).encode(), np.uint8)
        yield from (
            table for table in (matrix.data, matrix.scale, matrix.zero_point, matrix.minimum) if table is not None
        )
    for bias in _biases(experts):
        yield bias[expert]


def _matrix(experts: ExpertSet, name: str, expert: int) -> LazyMatrix:
    return experts.weights.operands[name].run_of(expert).encoded(expert)


def _biases(experts: ExpertSet) -> Sequence[Array]:
    inputs = dialect.inputs_of(experts.node)
    tensors = [constant(inputs[name]) for name in ("up_bias", "gate_bias", "down_bias")]
    return [np.asarray(tensor.numpy()) for tensor in tensors if tensor is not None]

"""Experts without products: they return zeros, a vector, or a multiple of their token (MoE++, arXiv 2410.07348).

Their contribution to y is fitted: it is affine in the token, with known weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Protocol

import numpy as np
import onnx_ir as ir

from moec.ir import dialect
from moec.ir.expert_ids import table_node
from moec.passes.raising.block import Block
from moec.passes.raising.dataflow import Array
from moec.passes.raising.mixing import Mixing

TOLERANCE = 1e-8


class ExpertWriting(Protocol):
    """Destination of nodes and constants."""

    def add(self, node: ir.Node, dtype: ir.DataType | None, *outputs: str) -> tuple[ir.Value, ...]: ...

    def constant(self, array: Array, label: str) -> ir.Value: ...


@dataclasses.dataclass(frozen=True)
class SimpleExperts:
    """``stored``: the ids of experts with products. Each other expert adds its entry of ``copies`` [E] times the token,
    and its entry of ``vectors`` [E,d]."""

    stored: tuple[int, ...]
    copies: Array
    vectors: Array

    @staticmethod
    def of(
        block: Block, mixing: Mixing, results: Collection[ir.Value], stored: tuple[int, ...]
    ) -> SimpleExperts | None:
        """Fit the experts that are not ``stored``; ``results`` hold those of the stored ones. None if one is not
        simple."""
        simple = np.setdiff1d(np.arange(block.E), stored)
        random = np.random.default_rng(10)
        rows, rest = [], []
        for logits in mixing.logits:
            x = random.normal(size=(len(logits), block.d))
            arrays = block.evaluate(x, logits, list(results))
            zeros = {value: np.zeros_like(array) for value, array in zip(results, arrays, strict=True)}
            rows.append(x)
            rest.append(block.evaluate(x, logits, [block.y], zeros)[0].reshape(-1, block.d))
        fitted = _fitted(np.concatenate(rows), np.concatenate(rest), mixing.mixture[:, simple])
        if fitted is None:
            return None
        copies, vectors = np.zeros(block.E), np.zeros((block.E, block.d))
        copies[simple], vectors[simple] = fitted
        return SimpleExperts(stored, copies, vectors)

    @property
    def absent(self) -> list[int]:
        """The ids of simple experts that add nothing."""
        adds = (self.copies != 0) | self.vectors.any(axis=1)
        adds[list(self.stored)] = True
        return np.flatnonzero(~adds).tolist()

    @property
    def ids(self) -> tuple[int, ...] | None:
        """Ids of the stored experts for the ids of the router. Experts that return their token get ids from the number
        of stored experts on, those that return zeros -1. None if there are other simple experts."""
        copied = np.abs(self.copies - 1) <= TOLERANCE
        if self.vectors.any() or (self.copies[~copied] != 0).any():
            return None
        ids = np.full(len(self.copies), -1)
        ids[list(self.stored)] = np.arange(len(self.stored))
        ids[copied] = len(self.stored) + np.arange(np.count_nonzero(copied))
        return tuple(ids.tolist())

    def stored_ids(self, writing: ExpertWriting, ids: ir.Value) -> ir.Value:
        """Ids [T,k] among the stored experts, -1 for others."""
        table = np.full(len(self.copies) + 1, -1, np.int32)
        table[list(self.stored)] = np.arange(len(self.stored))
        node = table_node(ids, writing.constant(table, "stored"))
        return writing.add(node, ir.DataType.INT32, "stored_ids")[0]

    def add_to(
        self, writing: ExpertWriting, y: ir.Value, x: ir.Value, weights: ir.Value, ids: ir.Value, dtype: ir.DataType
    ) -> ir.Value:
        """Add the contributions of these experts to y [T,d]."""
        if self.copies.any():
            y = self._with_copies(writing, y, x, weights, ids, dtype)
        if self.vectors.any():
            y = self._with_vectors(writing, y, weights, ids, dtype)
        return y

    def _with_copies(
        self, writing: ExpertWriting, y: ir.Value, x: ir.Value, weights: ir.Value, ids: ir.Value, dtype: ir.DataType
    ) -> ir.Value:
        factors = writing.constant(np.append(self.copies, 0).astype(dtype.numpy()), "copies")
        axis = writing.constant(np.array([1], np.int64), "slots")
        (factor,) = writing.add(ir.node("Gather", [factors, ids], {"axis": 0}), dtype, "copied")
        (share,) = writing.add(ir.node("Mul", [weights, factor]), dtype, "copied_shares")
        (total,) = writing.add(ir.node("ReduceSum", [share, axis], {"keepdims": 1}), dtype, "copied_share")
        (copies,) = writing.add(ir.node("Mul", [x, total]), dtype, "copied_tokens")
        return writing.add(ir.node("Add", [y, copies]), dtype, "with_copies")[0]

    def _with_vectors(
        self, writing: ExpertWriting, y: ir.Value, weights: ir.Value, ids: ir.Value, dtype: ir.DataType
    ) -> ir.Value:
        """Add the vectors: each is a row that every token adds if it selected the expert."""
        experts = np.flatnonzero(self.vectors.any(axis=1))
        table = np.full(len(self.copies) + 1, -1, np.int32)
        table[experts] = np.arange(len(experts))
        (places,) = writing.add(table_node(ids, writing.constant(table, "vector_of")), ir.DataType.INT32, "vector_ids")
        rows = writing.constant(self.vectors[experts].astype(dtype.numpy()), "vectors")
        operands: dict[str, ir.Value | None] = {"rows": rows, "weights": weights, "positions": places}
        (sums,) = writing.add(dialect.make_node("Combine", operands), dtype, "vector_sums")
        return writing.add(ir.node("Add", [y, sums]), dtype, "with_vectors")[0]


def _fitted(x: Array, rest: Array, mixture: Array) -> tuple[Array, Array] | None:
    """Factors [m] and vectors [m,d] of experts with weights [n,m] that explain ``rest`` [n,d] for rows x [n,d]; None if
    there are none."""
    factors, vectors = [], []
    for column, target in zip(x.T, rest.T, strict=True):
        design = np.concatenate([mixture * column[:, None], mixture], axis=1)
        solution = np.linalg.lstsq(design, target, rcond=None)[0]
        if np.abs(design @ solution - target).max() > TOLERANCE * max(1.0, np.abs(rest).max()):
            return None
        factors.append(solution[: mixture.shape[1]])
        vectors.append(solution[mixture.shape[1] :])
    copies = np.mean(factors, axis=0)
    if np.abs(factors - copies).max() > TOLERANCE * max(1.0, np.abs(copies).max()):
        return None
    near = np.array(vectors).T
    return np.where(np.abs(copies) > TOLERANCE, copies, 0), np.where(np.abs(near) > TOLERANCE, near, 0)

"""Reference semantics of the operators over dispatched rows (:class:`~moec.ir.dialect.DispatchSpec`) and over rows on
several ranks (:class:`~moec.ir.dialect.RanksSpec`), in plain numpy.

Sizes: T tokens, k experts per token, E experts, R rows (T * k after ``moec.Dispatch``), K inputs, N outputs.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import DTypeLike

from moec.ir.dialect import DispatchSpec, ProductSpec
from moec.ir.semantics import Array, Stack, check_ids, compute_dtype, project, silently


def dispatch(spec: DispatchSpec, experts: Array) -> tuple[Array, Array, Array, Array]:
    """``moec.Dispatch``: experts [T,k] → offsets [E+1], positions [T,k], tokens [T*k], owners [T*k], all int32.

    Raises ValueError for an id that is neither -1 nor an expert.
    """
    E, (_, k) = spec.expert_count, experts.shape
    check_ids(experts, E)
    ids = np.where(experts < 0, E, experts).ravel()
    pairs = np.argsort(ids, kind="stable")
    positions = np.empty(len(pairs), np.int32)
    positions[pairs] = np.arange(len(pairs))
    offsets = np.searchsorted(ids[pairs], np.arange(E + 1))
    owners = np.minimum(ids[pairs], E - 1)
    results = offsets, np.where(ids < E, positions, -1).reshape(experts.shape), pairs // max(k, 1), owners
    return (
        results[0].astype(np.int32),
        results[1].astype(np.int32),
        results[2].astype(np.int32),
        results[3].astype(np.int32),
    )


@silently
def grouped_matmul(
    spec: ProductSpec,
    x: Array,
    weights: Stack,
    offsets: Array,
    bias: Array | None = None,
    *,
    dtype: DTypeLike | None = None,
) -> Array:
    """``moec.GroupedMatMul``: x [R,K], weights [E,K,N], offsets [E+1], bias [E,N] → y [R,N], zero from offsets[E] on.

    Raises ValueError for offsets that do not ascend from 0 to at most R.
    """
    result_dtype = np.dtype(dtype or x.dtype)
    x = x.astype(compute_dtype(result_dtype))
    bounds = offsets.tolist()
    if bounds[0] != 0 or sorted(bounds) != bounds or bounds[-1] > len(x):
        raise ValueError(f"offsets are {bounds}; expected numbers that ascend from 0 to at most {len(x)}")
    y = np.zeros((len(x), weights.shape[2]), x.dtype)
    for expert, (start, end) in enumerate(itertools.pairwise(bounds)):
        if start < end:
            own = None if bias is None else bias[expert]
            y[start:end] = project(spec, x[start:end], weights[expert], own, transposed=True)
    return y.astype(result_dtype)


@silently
def combine(rows: Array, weights: Array, positions: Array, *, dtype: DTypeLike | None = None) -> Array:
    """``moec.Combine``: rows [R,N], weights [T,k], positions [T,k] → y [T,N].

    Raises ValueError for a position that is neither -1 nor a row.
    """
    result_dtype = np.dtype(dtype or rows.dtype)
    compute = compute_dtype(result_dtype)
    if positions.size and not -1 <= positions.min() <= positions.max() < len(rows):
        actual = f"positions lie in [{positions.min()}, {positions.max()}]"
        raise ValueError(f"{actual}; expected -1 to {len(rows) - 1}")
    tokens, slots = np.nonzero(positions >= 0)
    pairs = np.zeros((*positions.shape, rows.shape[1]), compute)
    pairs[tokens, slots] = rows[positions[tokens, slots]].astype(compute) * weights[tokens, slots, None].astype(compute)
    return pairs.sum(axis=1).astype(result_dtype)


def receive_rows(x: Array, experts: Array, weights: Array | None = None) -> tuple[Array, Array, Array]:
    """``moec.ReceiveRows`` on one rank: x [T,d], experts [T,k], weights [T,k] → rows [P,d], owners [P,1], weights [P,1]
    of its own dispatched pairs, in their order."""
    tokens, slots = np.nonzero(experts >= 0)
    own = np.ones(len(tokens), np.float32) if weights is None else weights[tokens, slots]
    return x[tokens], experts[tokens, slots, None], own[:, None]


def return_rows(results: Array, experts: Array) -> tuple[Array, Array]:
    """``moec.ReturnRows`` on one rank: results [P,N], experts [T,k] → rows [T*k,N], positions [T,k] (int32).

    Raises ValueError for another number of results than of dispatched pairs."""
    dispatched = experts >= 0
    if len(results) != dispatched.sum():
        raise ValueError(f"there are {len(results)} results; expected one for each of {dispatched.sum()} pairs")
    rows = np.zeros((experts.size, results.shape[1]), results.dtype)
    rows[dispatched.ravel()] = results
    places = np.arange(experts.size, dtype=np.int32).reshape(experts.shape)
    return rows, np.where(dispatched, places, np.int32(-1))

"""Attention without the matrix of scores: ``y = softmax(q @ k^T * scale + mask) @ v``, over blocks of keys.

The method is that of FlashAttention (Dao et al., 2022; arXiv 2205.14135): per block of keys compute the scores, keep
per query the largest score so far and the sum of exponentials relative to it, and rescale what was accumulated
whenever a larger score appears. Memory is a few small blocks per task, whatever the number of keys.

The query heads that share a head of keys and values (grouped-query attention) are worked on together: a *row* is one
query of one head, row r being query ``r // heads_per_group`` of head ``r % heads_per_group`` of the group. With many
rows the tasks are blocks of rows (:mod:`.attention_many`), with few, as in decoding, blocks of keys
(:mod:`.attention_few`). Neither depends on the number of threads, so neither do the results.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.hardware.machine import Machine, tile_of
from moec.targets.cpu.kernels.attention_few import attend_with_few_rows
from moec.targets.cpu.kernels.attention_many import attend_with_many_rows
from moec.targets.cpu.kernels.attention_problem import FEW_QUERIES, AttentionBuffers, attention_parameters
from moec.targets.cpu.kernels.emit import emit_kernel
from moec.targets.tvm.heavy.attention import AttentionProblem
from moec.targets.tvm.kernels.kernel import STORAGE_TYPES, Kernel, in_storage, why_not_stored


@functools.cache
def attention(problem: AttentionProblem, machine: Machine, dtype: str = "float32") -> tirx.PrimFunc:
    """The kernel ``(query[B, H, S, D], key[B, G, P, D], value[B, G, P, Dv] (, mask[B|1, H|1, S|1, L]) (, lengths[B])
    (, sinks[H]), result[B, H, S, Dv])``, or, for N sequences of different lengths, ``(query[1, H, S, D], key, value,
    lengths[N], spans[N, 2], table[N, M] (, sinks[H]), result[1, H, S, Dv])``.

    Where keys and values lie in pages, they are [pages, B, G, page, D] of the type in which they are stored (int8:
    [pages, B, G, bytes of a page], see :mod:`moec.targets.tvm.kernels.int8_rows`), and a page holds a multiple of
    ``KEYS_PER_TASK`` keys unless there is only one. H is ``heads_per_group`` times G, and L at
    least the number of keys in use. B, G, S (queries), P (keys) and pages are dynamic and may be 0; ``dtype`` is how
    all but mask and lengths are stored, arithmetic is float32. A query that sees no key gives zeros.
    With ``values_in_keys``, ``value`` is the tensor of keys once more, of which the first Dv columns are read.
    Sinks are scores beside those of keys, whose weights go to no value.

    Of sequences, number n has ``spans[n, 1]`` of the S queries, from ``spans[n, 0]`` on, and ``lengths[n]`` keys, of
    which page i is the page ``table[n, i]`` of ``key`` and ``value``.
    """

    def body(**buffers: Any) -> None:
        operands = AttentionBuffers(problem, **buffers)
        if problem.sequences:  # each sequence takes the way that it takes alone, so it has the same bits
            if operands.few_rows:
                attend_with_few_rows(operands, machine)
            attend_with_many_rows(operands, machine)
            return
        rows = operands.rows(T.int64(0))
        if not operands.few_rows:
            with T.If(rows > 0), T.Then():
                attend_with_many_rows(operands, machine)
            return
        with T.If(rows <= operands.few_rows):
            with T.Then():
                attend_with_few_rows(operands, machine)
            with T.Else():
                attend_with_many_rows(operands, machine)

    return emit_kernel(attention_parameters(problem, dtype), body)


def _how(problem: AttentionProblem, dtype: str, machine: Machine) -> str:
    heads = f"{problem.heads_per_group} heads of {problem.head_size} and {problem.value_size} per head of keys"
    tasks = f"up to {FEW_QUERIES} queries share out the keys, more the rows"
    return in_storage(f"{heads}; {tasks}; no matrix of scores; {tile_of(machine)}", dtype)


def _why_not(problem: AttentionProblem, dtype: str) -> str | None:
    if problem.mask not in ("", *STORAGE_TYPES, "bool"):
        return f"mask of type {problem.mask}; the kernel takes bool or a float type"
    return why_not_stored(dtype)


ATTENTION = Kernel(
    "attention",
    "y = softmax(q @ k^T * scale + mask) @ v, per head",
    attention,
    how=lambda launch, machine: _how(launch[0], launch[1], machine),
    why_not=lambda launch, _: _why_not(*launch),
)

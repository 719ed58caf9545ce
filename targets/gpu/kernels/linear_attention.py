"""Linear attention, a recurrence over tokens: each token decays a head's state (a matrix), adds to it and reads it.

Columns of a state are independent. Each thread has one column and processes the tokens one after another; keys, queries
and gates are the same for all threads of a block.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels.launch import ATTRIBUTES, WARP
from moec.targets.tvm.heavy.linear_attention import FORMULA, LinearAttentionProblem
from moec.targets.tvm.kernels.kernel import Kernel

_MOST_THREADS = 128


def _threads(problem: LinearAttentionProblem) -> int:
    return min(_MOST_THREADS, -(-problem.value_size // WARP) * WARP)


@T.inline
def _decayed(problem, after, decay, place, head, token, k, column):
    if problem.decay == "head":
        after[place, head, k, column] = after[place, head, k, column] * T.exp(decay[place, token, head])
    if problem.decay == "channel":
        kept: T.let = T.exp(decay[place, token, head * problem.key_size + k])
        after[place, head, k, column] = after[place, head, k, column] * kept


@T.inline
def _step(problem, query, key, value, decay, beta, y, after, place, head, token, column, added, result):
    K, V, group = T.meta_var((problem.key_size, problem.value_size, problem.group))
    added[0] = T.float32(0)
    for k in T.serial(K):
        _decayed(problem, after, decay, place, head, token, k, column)
        if problem.delta:
            added[0] = added[0] + key[place, token, head * K + k] * after[place, head, k, column]
    added[0] = value[place, token, head * V + column] - added[0]
    if problem.delta:
        added[0] = added[0] * beta[place, token, 0 if problem.shared_beta else head]
    for member in T.unroll(group):
        result[0] = T.float32(0)
        for k in T.serial(K):
            if member == 0:
                after[place, head, k, column] = (
                    after[place, head, k, column] + key[place, token, head * K + k] * added[0]
                )
            result[0] = result[0] + query[place, token, (head * group + member) * K + k] * after[place, head, k, column]
        y[place, token, (head * group + member) * V + column] = result[0] * T.float32(problem.scale)


def linear_attention(problem: LinearAttentionProblem, machine: str) -> tirx.PrimFunc:
    """The kernel ``(query[B, T, H * group * K], key[B, T, H * K], value[B, T, H * V], state[B, H, K, V],
    decay[B, T, H or H * K], beta[B, T, H or 1], y[B, T, H * group * V], after[B, H, K, V])``, all float32. ``after``:
    the state after the last token."""
    threads, heads, K, V = _threads(problem), problem.heads, problem.key_size, problem.value_size
    blocks, shapes = -(-V // threads), {name: shape[2:] for name, shape in problem.parameters}
    decays, delta = problem.decay != "", problem.delta

    @T.prim_func
    def kernel(
        query_handle: T.handle,
        key_handle: T.handle,
        value_handle: T.handle,
        state_handle: T.handle,
        decay_handle: T.handle,
        beta_handle: T.handle,
        y_handle: T.handle,
        after_handle: T.handle,
    ):
        T.func_attr(ATTRIBUTES)
        batch = T.int32()
        tokens = T.int32()
        query = T.match_buffer(query_handle, (batch, tokens, *shapes["query"]), "float32")
        key = T.match_buffer(key_handle, (batch, tokens, *shapes["key"]), "float32")
        value = T.match_buffer(value_handle, (batch, tokens, *shapes["value"]), "float32")
        state = T.match_buffer(state_handle, (batch, heads, K, V), "float32")
        decay = T.match_buffer(decay_handle, (batch, tokens, *shapes["decay"]) if decays else (1,), "float32")
        beta = T.match_buffer(beta_handle, (batch, tokens, *shapes["beta"]) if delta else (1,), "float32")
        y = T.match_buffer(y_handle, (batch, tokens, *shapes["y"]), "float32")
        after = T.match_buffer(after_handle, (batch, heads, K, V), "float32")
        T.device_entry()
        index = T.cta_id([T.max(batch, 1) * (heads * blocks)])
        thread = T.thread_id([threads])
        sequence: T.let = index // (heads * blocks)
        place: T.let = T.cast(sequence, "int64")  # makes offsets into tensors 64 bits wide
        head: T.let = index // blocks % heads
        column: T.let = index % blocks * threads + thread
        added = T.alloc_local((1,), "float32")
        result = T.alloc_local((1,), "float32")
        if T.And(sequence < batch, column < V):
            for k in T.serial(K):
                after[place, head, k, column] = state[place, head, k, column]
            for token in T.serial(tokens):
                _step(problem, query, key, value, decay, beta, y, after, place, head, token, column, added, result)

    return kernel


LINEAR_ATTENTION = Kernel(
    "linear_attention",
    FORMULA,
    linear_attention,
    how=lambda problem, _: f"token by token, one thread for each of {problem.value_size} columns of a head",
)

"""Linear attention, a recurrence over tokens: each token decays a head's state (a matrix), adds to it and reads it.

Columns of a state are independent. Each thread has one column and processes the tokens one after another; keys, queries
and gates are the same for all threads of a block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels.launch import ATTRIBUTES, WARP
from moec.targets.tvm.heavy.linear_attention import FORMULA, LinearAttentionProblem
from moec.targets.tvm.kernels.kernel import Kernel

_MOST_THREADS = 128


def _blocks(problem: LinearAttentionProblem) -> int:
    """Blocks of threads of a head's state."""
    return -(-problem.value_size // _threads(problem))


def _threads(problem: LinearAttentionProblem) -> int:
    return min(_MOST_THREADS, -(-problem.value_size // WARP) * WARP)


@dataclasses.dataclass(frozen=True)
class _Column:
    """A thread's column of a state, and where its tokens and state lie. ``entry``: of the batch, for tokens; ``place``:
    the first indices of the state, which differ where an entry holds the tokens of several sequences."""

    problem: LinearAttentionProblem
    tensors: Sequence[Any]
    entry: Any
    place: Any
    head: Any
    column: Any


@dataclasses.dataclass(frozen=True)
class _StateTensors:
    """States ``before`` and ``after`` the tokens, and functions that give the first indices of a sequence's by its
    number, and whether they are there."""

    before: Any
    after: Any
    before_of: Callable[[Any], tuple[Any, ...]] = lambda place: (place,)
    after_of: Callable[[Any], tuple[Any, ...]] = lambda place: (place,)
    are_there: Callable[[Any], Any] = lambda _: True

    @staticmethod
    def in_entries(states: Any, before: Any, after: Any) -> _StateTensors:
        """``states``: [entries, 1, H, K, V]; ``before``, ``after``: numbers of entries of each sequence."""

        def are_there(place: Any) -> Any:
            count = T.cast(states.shape[0], "int64")
            first, second = (T.And(number >= 0, number < count) for number in (before[place], after[place]))
            return T.And(first, second)

        return _StateTensors(
            states, states, lambda place: (before[place], 0), lambda place: (after[place], 0), are_there
        )


def _tokens_of(spans: Any) -> Callable[[Any, Any], tuple[Any, Any]]:
    """First token and number of tokens of a sequence by its number."""
    return lambda place, _: (spans[place, 0], spans[place, 1])


@T.inline
def _decayed(own, after, decay, token, k):
    problem, entry, head = T.meta_var((own.problem, own.entry, own.head))
    at = T.meta_var((*own.place, head, k, own.column))
    if problem.decay == "head":
        after[at] = after[at] * T.exp(decay[entry, token, head])
    if problem.decay == "channel":
        kept: T.let = T.exp(decay[entry, token, head * problem.key_size + k])
        after[at] = after[at] * kept


@T.inline
def _step(own, token, added, result):
    problem, entry, head, column = T.meta_var((own.problem, own.entry, own.head, own.column))
    state_of = T.meta_var(lambda k: (*own.place, head, k, column))
    query, key, value, decay, beta, y, after = T.meta_var(own.tensors)
    K, V, group = T.meta_var((problem.key_size, problem.value_size, problem.group))
    added[0] = T.float32(0)
    for k in T.serial(K):
        _decayed(own, after, decay, token, k)
        if problem.delta:
            added[0] = added[0] + key[entry, token, head * K + k] * after[state_of(k)]
    added[0] = value[entry, token, head * V + column] - added[0]
    if problem.delta:
        added[0] = added[0] * beta[entry, token, 0 if problem.shared_beta else head]
    for member in T.unroll(group):
        result[0] = T.float32(0)
        for k in T.serial(K):
            if member == 0:
                after[state_of(k)] = after[state_of(k)] + key[entry, token, head * K + k] * added[0]
            result[0] = result[0] + query[entry, token, (head * group + member) * K + k] * after[state_of(k)]
        y[entry, token, (head * group + member) * V + column] = result[0] * T.float32(problem.scale)


def linear_attention(problem: LinearAttentionProblem, machine: str) -> tirx.PrimFunc:
    """The kernel ``(query[B, T, H * group * K], key[B, T, H * K], value[B, T, H * V], state[B, H, K, V],
    decay[B, T, H or H * K], beta[B, T, H or 1], y[B, T, H * group * V], after[B, H, K, V])``, all float32. ``after``:
    the state after the last token. For a batch of sequences it takes ``spans[N, 2]`` before ``y``, B is 1, and states
    are [N, H, K, V]. In entries: :attr:`LinearAttentionProblem.parameters`; none is written where there is none of that
    number."""
    heads, K, V = problem.heads, problem.key_size, problem.value_size
    shapes = {name: shape[2:] for name, shape in problem.parameters}
    decays, delta = problem.decay != "", problem.delta

    @T.inline
    def run(handles, y_handle, entries, count, tokens_of, states):
        tokens = T.int32()
        query = T.match_buffer(handles[0], (entries, tokens, *shapes["query"]), "float32")
        key = T.match_buffer(handles[1], (entries, tokens, *shapes["key"]), "float32")
        value = T.match_buffer(handles[2], (entries, tokens, *shapes["value"]), "float32")
        decay = T.match_buffer(handles[3], (entries, tokens, *shapes["decay"]) if decays else (1,), "float32")
        beta = T.match_buffer(handles[4], (entries, tokens, *shapes["beta"]) if delta else (1,), "float32")
        y = T.match_buffer(y_handle, (entries, tokens, *shapes["y"]), "float32")
        T.device_entry()
        index = T.cta_id([T.max(count, 1) * (heads * _blocks(problem))])
        thread = T.thread_id([_threads(problem)])
        sequence: T.let = index // (heads * _blocks(problem))
        place: T.let = T.cast(sequence, "int64")  # makes offsets into tensors 64 bits wide
        head: T.let = index // _blocks(problem) % heads
        column: T.let = index % _blocks(problem) * _threads(problem) + thread
        added = T.alloc_local((1,), "float32")
        result = T.alloc_local((1,), "float32")
        if T.And(T.And(sequence < count, column < V), states.are_there(place)):
            before, written = T.meta_var((states.before_of(place), states.after_of(place)))
            for k in T.serial(K):
                states.after[(*written, head, k, column)] = states.before[(*before, head, k, column)]
            first, length = T.meta_var(tokens_of(place, tokens))
            entry = T.meta_var(T.int64(0) if problem.sequences else place)
            tensors = T.meta_var((query, key, value, decay, beta, y, states.after))
            own = T.meta_var(_Column(problem, tensors, entry, written, head, column))
            for token in T.serial(length):
                _step(own, first + token, added, result)

    if problem.in_entries:

        @T.prim_func
        def of_entries(
            query: T.handle,
            key: T.handle,
            value: T.handle,
            decay: T.handle,
            beta: T.handle,
            spans_handle: T.handle,
            before_handle: T.handle,
            after_handle: T.handle,
            states_handle: T.handle,
            y: T.handle,
        ):
            T.func_attr(ATTRIBUTES)
            count, there = T.int32(), T.int32()
            spans = T.match_buffer(spans_handle, (count, 2), "int64")
            before = T.match_buffer(before_handle, (count,), "int64")
            after = T.match_buffer(after_handle, (count,), "int64")
            states = T.match_buffer(states_handle, (there, 1, heads, K, V), "float32")
            own = T.meta_var(_StateTensors.in_entries(states, before, after))
            run((query, key, value, decay, beta), y, 1, count, _tokens_of(spans), own)

        return of_entries

    if problem.sequences:

        @T.prim_func
        def of_sequences(
            query: T.handle,
            key: T.handle,
            value: T.handle,
            state_handle: T.handle,
            decay: T.handle,
            beta: T.handle,
            spans_handle: T.handle,
            y: T.handle,
            after_handle: T.handle,
        ):
            T.func_attr(ATTRIBUTES)
            count = T.int32()
            spans = T.match_buffer(spans_handle, (count, 2), "int64")
            state = T.match_buffer(state_handle, (count, heads, K, V), "float32")
            after = T.match_buffer(after_handle, (count, heads, K, V), "float32")
            run((query, key, value, decay, beta), y, 1, count, _tokens_of(spans), _StateTensors(state, after))

        return of_sequences

    @T.prim_func
    def kernel(
        query: T.handle,
        key: T.handle,
        value: T.handle,
        state_handle: T.handle,
        decay: T.handle,
        beta: T.handle,
        y: T.handle,
        after_handle: T.handle,
    ):
        T.func_attr(ATTRIBUTES)
        batch = T.int32()
        state = T.match_buffer(state_handle, (batch, heads, K, V), "float32")
        after = T.match_buffer(after_handle, (batch, heads, K, V), "float32")
        all_tokens = T.meta_var(lambda _, tokens: (0, tokens))
        run((query, key, value, decay, beta), y, batch, batch, all_tokens, _StateTensors(state, after))

    return kernel


LINEAR_ATTENTION = Kernel(
    "linear_attention",
    FORMULA,
    linear_attention,
    how=lambda problem, _: f"token by token, one thread for each of {problem.value_size} columns of a head",
)

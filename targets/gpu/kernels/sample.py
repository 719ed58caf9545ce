"""Sample: one block of threads per sequence selects the next token by its logits, as :mod:`moec.runtime.sampling` does.

Logits are compared as integer keys of the same order. The least key that top-k or top-p keeps is found digit by digit:
it is the largest one such that the keys from it on are as many, or have weights that add up to as much, as are kept.
Weights are whole numbers (:mod:`moec.runtime.token_weights`), so the order in which threads add them does not matter.
Of the tokens with the least key the first ones are kept, and the draw falls on a cumulative sum in the order of ids.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.runtime.sampling import NOT_NUMBERS, Option
from moec.runtime.token_weights import (
    BOTTOM,
    COEFFICIENTS,
    FRACTION_BITS,
    MOST_TOKENS,
    POLYNOMIAL_BITS,
    WHOLE_BITS,
)
from moec.targets.gpu.kernels.instructions import sync_block
from moec.targets.gpu.kernels.launch import ATTRIBUTES, WARP
from moec.targets.tvm.kernels.kernel import Kernel, why_not_stored
from moec.targets.tvm.text.steps import begin_step

_MOST_THREADS = 1024
_KEY_BITS, _DIGIT_BITS = 32, 2
_DIGITS = (1 << _DIGIT_BITS) - 1
"""Digits except 0."""
_NAN = 1 << 62
"""A number above every pair of a key and an id."""
_INFINITY = 0x7F800000


@dataclasses.dataclass(frozen=True)
class SampleProblem:
    """The selection by logits of ``dtype`` for each token of a ``vocabulary``."""

    vocabulary: int
    dtype: str

    @property
    def threads(self) -> int:
        """The threads of a sequence: a power of two."""
        return min(_MOST_THREADS, max(WARP, 1 << (self.vocabulary - 1).bit_length()))


@dataclasses.dataclass(frozen=True)
class _LogitsRow:
    """The logits of one sequence as a thread of its block sees them. ``logits`` [B, S, V], ``seen`` [B, V], ``options``
    [B, ...] and ``weights`` [B, V] are those of the kernel; ``shared`` [threads] is for partial results, int64."""

    problem: SampleProblem
    index: Any
    position: Any
    thread: Any
    logits: Any
    seen: Any
    options: Any
    weights: Any
    shared: Any

    @property
    def steps(self) -> int:
        return -(-self.problem.vocabulary // self.problem.threads)

    def column(self, step: Any) -> Any:
        """The token that this thread looks at in a step; neighbouring threads look at neighbours."""
        return step * self.problem.threads + self.thread

    def own(self, step: Any) -> Any:
        """The token that this thread looks at in a step, if threads look at parts in the order of ids."""
        return self.thread * self.steps + step

    def option(self, option: Option) -> Any:
        return self.options[self.index, int(option)]

    def weight(self, column: Any) -> Any:
        return self.weights[self.index, column]


def _number_of(key: Any) -> Any:
    """The logit of a key."""
    bits = T.cast(key - T.int64(1 << 31), "int32")
    return T.reinterpret("float32", bits ^ ((bits >> 31) & 0x7FFFFFFF))


def _power_of(fraction: Any) -> Any:
    """``2 ** -fraction`` in fixed point."""
    step = lambda power, coefficient: T.int64(coefficient) - ((power * fraction) >> FRACTION_BITS)  # noqa: E731
    return functools.reduce(step, COEFFICIENTS[-2::-1], T.int64(COEFFICIENTS[-1]))


@T.inline
def _read_key(row, column, key):
    """Set ``key[0]`` (int64, from 0) to a key of the token's logit, after the penalty."""
    logit: T.let = T.cast(row.logits[row.index, row.position, column], "float32")
    penalty: T.let = T.cast(row.option(Option.PENALTY), "float32")
    less: T.let = T.Select(logit > T.float32(0), logit / penalty, T.call_extern("float32", "__fmul_rn", logit, penalty))
    number: T.let = T.Select(row.seen[row.index, column] != T.uint8(0), less, logit)
    bits: T.let = T.Select(number == T.float32(0), T.int32(0), T.reinterpret("int32", number))
    key[0] = T.cast(bits ^ ((bits >> 31) & 0x7FFFFFFF), "int64") + T.int64(1 << 31)


@T.inline
def _set_weight(row, key, top, weight):
    """Set ``weight[0]`` to the weight of a logit's key, where ``top`` is the largest key."""
    distance: T.let = T.cast(_number_of(top), "float64") - T.cast(_number_of(key), "float64")
    scaled: T.let = T.Select(key == top, T.float64(0), distance * row.option(Option.SCALE))
    x: T.let = T.min(scaled, T.float64(BOTTOM << FRACTION_BITS))
    fixed: T.let = T.cast(x, "int64")
    fraction: T.let = fixed & T.int64((1 << FRACTION_BITS) - 1)
    power: T.let = _power_of(fraction)
    weight[0] = (power << (WHOLE_BITS - POLYNOMIAL_BITS)) >> (fixed >> FRACTION_BITS)


@T.inline
def _join(row, value, combine):
    """Set ``value[0]`` (int64) in all threads to the combination of those of all threads."""
    sync_block()
    row.shared[row.thread] = value[0]
    sync_block()
    for level in T.unroll(row.problem.threads.bit_length() - 1):
        half: T.let = row.problem.threads >> (level + 1)
        if row.thread < half:
            row.shared[row.thread] = combine(row.shared[row.thread], row.shared[row.thread + half])
        sync_block()
    value[0] = row.shared[0]


@T.inline
def _add_up(row, value):
    _join(row, value, lambda one, other: one + other)


@T.inline
def _add_up_to(row, value, before, total):
    """Set ``before[0]`` to the sum of the values of earlier threads, and ``total[0]`` to that of all."""
    lower = T.alloc_local((1,), "int64")
    sync_block()
    row.shared[row.thread] = value[0]
    sync_block()
    for level in T.unroll(row.problem.threads.bit_length() - 1):
        lower[0] = T.int64(0)
        if row.thread >= (1 << level):
            lower[0] = row.shared[row.thread - (1 << level)]
        sync_block()
        row.shared[row.thread] = row.shared[row.thread] + lower[0]
        sync_block()
    before[0] = row.shared[row.thread] - value[0]
    total[0] = row.shared[row.problem.threads - 1]


@T.inline
def _find_best(row, best):
    """Set ``best[0]`` to the pair of the largest key and the first token that has it, or to :data:`_NAN`."""
    key = T.alloc_local((1,), "int64")
    best[0] = T.int64(-1)
    for step in T.serial(row.steps):
        if row.column(step) < row.problem.vocabulary:
            logit: T.let = T.cast(row.logits[row.index, row.position, row.column(step)], "float32")
            _read_key(row, row.column(step), key)
            id_behind: T.let = T.cast(MOST_TOKENS - 1 - row.column(step), "int64")
            best[0] = T.max(best[0], key[0] * T.int64(MOST_TOKENS) + id_behind)
            if (T.reinterpret("int32", logit) & 0x7FFFFFFF) > _INFINITY:
                best[0] = T.int64(_NAN)
    _join(row, best, T.max)


@T.inline
def _find_least(row, limit, measure, least):
    """Set ``least[0]`` to the largest key such that the measures of the tokens with keys from it on add up to ``limit``
    or more."""
    sums = T.alloc_local((_DIGITS,), "int64")
    sum_of_all = T.alloc_local((1,), "int64")
    key = T.alloc_local((1,), "int64")
    digit = T.alloc_local((1,), "int64")
    least[0] = T.int64(0)
    for place in T.serial(_KEY_BITS // _DIGIT_BITS):
        unit: T.let = T.int64(1) << T.cast(_KEY_BITS - _DIGIT_BITS * (place + 1), "int64")
        for d in T.unroll(_DIGITS):
            sums[d] = T.int64(0)
        for step in T.serial(row.steps):
            if row.column(step) < row.problem.vocabulary:
                _read_key(row, row.column(step), key)
                for d in T.unroll(_DIGITS):
                    if key[0] >= least[0] + unit * (d + 1):
                        sums[d] = sums[d] + measure(row.column(step))
        digit[0] = T.int64(0)
        for d in T.unroll(_DIGITS):
            sum_of_all[0] = sums[d]
            _add_up(row, sum_of_all)
            if sum_of_all[0] >= limit:
                digit[0] = T.int64(1) * (d + 1)
        least[0] = least[0] + unit * digit[0]


@T.inline
def _measure_above(row, measure, least, above):
    """Set ``above[0]`` to the sum of the measures of the tokens with larger keys than ``least[0]``."""
    key = T.alloc_local((1,), "int64")
    above[0] = T.int64(0)
    for step in T.serial(row.steps):
        if row.column(step) < row.problem.vocabulary:
            _read_key(row, row.column(step), key)
            if key[0] > least[0]:
                above[0] = above[0] + measure(row.column(step))
    _add_up(row, above)


@T.inline
def _keep_some(row, top, kept):
    """Find what top-k and top-p keep, and write the weights of tokens."""
    above = T.alloc_local((1,), "int64")
    key = T.alloc_local((1,), "int64")
    weight = T.alloc_local((1,), "int64")
    kept.least[0] = T.int64(-1)
    kept.ties[0] = T.int64(0)
    kept.weight[0] = T.int64(0)
    most: T.let = T.cast(row.option(Option.TOP_K), "int64")
    if T.And(most > T.int64(0), most < T.int64(row.problem.vocabulary)):
        begin_step("top-k: the least key that is kept, and how many tokens with it")
        _find_least(row, most, lambda column: T.int64(1), kept.least)
        _measure_above(row, lambda column: T.int64(1), kept.least, above)
        kept.ties[0] = most - above[0]
        _set_weight(row, kept.least[0], top, kept.weight)
    begin_step("weights, 0 behind the top k")
    for step in T.serial(row.steps):
        if row.column(step) < row.problem.vocabulary:
            _read_key(row, row.column(step), key)
            weight[0] = T.int64(0)
            if key[0] >= kept.least[0]:
                _set_weight(row, key[0], top, weight)
            row.weights[row.index, row.column(step)] = weight[0]
    if row.option(Option.TOP_P) < T.float64(1):
        begin_step("top-p: the least key that is kept, and how many tokens with it")
        _measure_above(row, row.weight, kept.least, above)
        whole: T.let = T.cast(above[0] + kept.ties[0] * kept.weight[0], "float64")
        limit: T.let = T.max(T.int64(1), T.cast(whole * row.option(Option.TOP_P), "int64"))
        _find_least(row, limit, row.weight, kept.least)
        _measure_above(row, row.weight, kept.least, above)
        _set_weight(row, kept.least[0], top, kept.weight)
        kept.ties[0] = (limit - above[0] + kept.weight[0] - T.int64(1)) // kept.weight[0]


@T.inline
def _draw(row, kept, tokens):
    """Draw one of the tokens that are kept and likely enough."""
    count = T.alloc_local((1,), "int64")
    likely = T.alloc_local((1,), "int64")
    before = T.alloc_local((1,), "int64")
    total = T.alloc_local((1,), "int64")
    key = T.alloc_local((1,), "int64")
    least_weight: T.let = row.option(Option.LEAST_WEIGHT)
    if T.cast(kept.weight[0], "float64") < least_weight:
        kept.ties[0] = T.int64(0)
    count[0] = T.int64(0)
    likely[0] = T.int64(0)
    sync_block()
    for step in T.serial(row.steps):
        if row.own(step) < row.problem.vocabulary:
            _read_key(row, row.own(step), key)
            if key[0] == kept.least[0]:
                count[0] = count[0] + T.int64(1)
            if T.And(key[0] > kept.least[0], T.cast(row.weight(row.own(step)), "float64") >= least_weight):
                likely[0] = likely[0] + row.weight(row.own(step))
    _add_up_to(row, count, before, total)
    count[0] = T.max(T.int64(0), T.min(count[0], kept.ties[0] - before[0]))
    likely[0] = likely[0] + count[0] * kept.weight[0]
    _add_up_to(row, likely, before, total)
    drawn: T.let = T.cast(T.cast(total[0], "float64") * row.option(Option.NUMBER), "int64")
    target: T.let = T.min(drawn, total[0] - T.int64(1))
    if T.And(before[0] <= target, target < before[0] + likely[0]):
        for step in T.serial(row.steps):
            if T.And(row.own(step) < row.problem.vocabulary, before[0] <= target):
                _read_key(row, row.own(step), key)
                likely[0] = T.int64(0)
                if T.And(key[0] > kept.least[0], T.cast(row.weight(row.own(step)), "float64") >= least_weight):
                    likely[0] = row.weight(row.own(step))
                if T.And(key[0] == kept.least[0], count[0] > T.int64(0)):
                    likely[0] = kept.weight[0]
                    count[0] = count[0] - T.int64(1)
                before[0] = before[0] + likely[0]
                if before[0] > target:
                    tokens[row.index] = T.cast(row.own(step), "int64")
                    row.seen[row.index, row.own(step)] = T.uint8(1)


@dataclasses.dataclass(frozen=True)
class _KeptTokens:
    """Tokens that are kept of a row: all with keys above ``least``, and the first ``ties`` of those with this key, of
    which each has ``weight``. int64 [1] each."""

    least: Any
    ties: Any
    weight: Any


@T.inline
def _select(row, tokens):
    best = T.alloc_local((1,), "int64")
    least = T.alloc_local((1,), "int64")
    ties = T.alloc_local((1,), "int64")
    weight = T.alloc_local((1,), "int64")
    kept = T.meta_var(_KeptTokens(least, ties, weight))
    begin_step("the largest key, and the first token that has it")
    _find_best(row, best)
    first: T.let = T.int64(MOST_TOKENS - 1) - (best[0] & T.int64(MOST_TOKENS - 1))
    if T.Or(best[0] == T.int64(_NAN), row.option(Option.SCALE) == T.float64(0)):
        if row.thread == 0:
            if best[0] == T.int64(_NAN):
                tokens[row.index] = T.int64(NOT_NUMBERS)
            else:
                tokens[row.index] = first
                row.seen[row.index, first] = T.uint8(1)
    else:
        _keep_some(row, best[0] // T.int64(MOST_TOKENS), kept)
        begin_step("the draw")
        _draw(row, kept, tokens)


def sample(problem: SampleProblem) -> tirx.PrimFunc:
    """The kernel ``(logits[B, S, V], options[B, N], seen[B, V], weights[B, V], tokens[B])``.

    For each sequence that is active it writes the token that follows the last position to ``tokens`` (int64), or
    :data:`~moec.runtime.sampling.NOT_NUMBERS` where a logit is NaN, and marks it in ``seen`` (uint8). ``options``
    (float64): a row of :class:`~moec.runtime.sampling.Option`. ``weights`` (int64) is memory for intermediate
    numbers. B and S may be 0.
    """
    vocabulary, threads = problem.vocabulary, problem.threads

    @T.prim_func
    def kernel(
        logits_handle: T.handle,
        options_handle: T.handle,
        seen_handle: T.handle,
        weights_handle: T.handle,
        tokens_handle: T.handle,
    ):
        T.func_attr(ATTRIBUTES)
        B = T.int32()
        S = T.int32()
        logits = T.match_buffer(logits_handle, (B, S, vocabulary), problem.dtype)
        options = T.match_buffer(options_handle, (B, len(Option)), "float64")
        seen = T.match_buffer(seen_handle, (B, vocabulary), "uint8")
        weights = T.match_buffer(weights_handle, (B, vocabulary), "int64")
        tokens = T.match_buffer(tokens_handle, (B,), "int64")
        T.device_entry()
        block = T.cta_id([T.max(B, 1)])
        thread = T.thread_id([threads])
        shared = T.alloc_shared((threads,), "int64")
        if T.And(S > 0, block < B):  # apart, because options are read for sequences that there are  # noqa: SIM102
            if options[block, int(Option.IS_ACTIVE)] != T.float64(0):
                row = T.meta_var(
                    _LogitsRow(problem, T.cast(block, "int64"), S - 1, thread, logits, seen, options, weights, shared)
                )
                _select(row, tokens)

    return kernel


def _why_not(problem: SampleProblem, _machine: Any) -> str | None:
    if problem.vocabulary > MOST_TOKENS:
        return f"{problem.vocabulary} tokens; this kernel adds weights of at most {MOST_TOKENS}"
    return why_not_stored(problem.dtype)


SAMPLE = Kernel(
    "sample",
    "tokens[B] = the next tokens by logits[B, S, V]",
    sample,
    how=lambda problem, _: f"{problem.threads} threads per sequence",
    why_not=_why_not,
)
"""Kernel that a program's runtime calls behind the program."""

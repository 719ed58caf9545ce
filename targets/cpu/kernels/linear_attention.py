"""Linear attention, a recurrence over tokens: the state of a head is a matrix that decays, is added to and is read.

The columns of a state are independent, so threads take blocks of columns of all heads, and a block stays in the
first-level cache from token to token. A token passes over the block twice: first the state decays and is read for the
key, then it is updated and read for the query. Sums over the channels of a key are in the order of the channels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels.elementary import exponential
from moec.targets.cpu.kernels.emit import Parameter, emit_kernel, loop, named, parallel_rows
from moec.targets.tvm.heavy.linear_attention import FORMULA, NUMBERS, LinearAttentionProblem
from moec.targets.tvm.kernels.kernel import Kernel

_COLUMNS = 32
"""Columns of a block at most: with keys of 128 channels it takes 16 KiB."""


def linear_attention(problem: LinearAttentionProblem, machine: Machine) -> tirx.PrimFunc:
    """``(query[B, T, H * group * K], key[B, T, H * K], value[B, T, H * V], state[B, H, K, V], decay[B, T, H or H * K],
    beta[B, T, H or 1], y[B, T, H * group * V], after[B, H, K, V])``, all float32. Of a batch of sequences B is 1,
    states are [N, H, K, V], and ``spans`` int64[N, 2], the first token of each sequence and their number, follows
    ``beta``. In entries: :attr:`LinearAttentionProblem.parameters`; no number of an entry leads outside of them."""
    parameters = [
        Parameter(name, shape, "int64" if name in NUMBERS else "float32") for name, shape in problem.parameters
    ]
    columns = math.gcd(problem.value_size, _COLUMNS)
    blocks = problem.value_size // columns
    lanes = min(columns, machine.lanes)

    def body(**tensors: Any) -> None:
        owners = tensors["spans" if problem.sequences else "state"].shape[0]
        tasks = parallel_rows(owners * problem.heads * blocks, 4 * problem.key_size * columns)
        with loop("task", tasks) as task:
            head = named("head", T.bind(task // blocks % problem.heads))
            owner = named("owner", T.bind(task // (blocks * problem.heads)))
            first = named("first", T.bind(task % blocks * columns))
            place, start, tokens = owner, T.int64(0), tensors["query"].shape[1]
            if problem.sequences:
                place, start, tokens = T.int64(0), tensors["spans"][owner, 0], tensors["spans"][owner, 1]
            before = after = (owner,)
            if problem.in_entries:
                before, after = ((_entry(tensors, name, owner), 0) for name in ("entries_before", "entries_after"))
            block = _StateColumns(problem, columns, lanes, tensors, before, after, place, head, first)
            block.begin()
            with loop("number", T.serial(tokens)) as number:
                block.step(named("token", T.bind(start + number)))

    return emit_kernel(parameters, body)


@dataclasses.dataclass(frozen=True)
class _StateColumns:
    """Code for ``columns`` columns, from ``first`` on, of the state of a ``head`` of a sequence. Its tokens are in one
    ``place`` of the batch, and its state has the first indices ``before`` and ``after``."""

    problem: LinearAttentionProblem
    columns: int
    lanes: int
    tensors: dict[str, Any]
    before: tuple[Any, ...]
    after: tuple[Any, ...]
    place: Any
    head: Any
    first: Any

    def begin(self) -> None:
        """Emit the state before the first token."""
        state = self.tensors["states" if self.problem.in_entries else "state"]
        with loop("k", T.serial(self.problem.key_size)) as k:
            self._each(lambda j: self._store(k, j, state[(*self.before, self.head, k, self.first + j)]))

    def step(self, token: Any) -> None:
        problem = self.problem
        keep, rate = self._gates(token)
        update, result = (named(name, self._vector()) for name in ("given", "result"))
        self._each(lambda j: T.buffer_store(update, T.float32(0), [j]))
        if problem.decay or problem.delta:
            with loop("k", T.serial(problem.key_size)) as k:
                if problem.decay:
                    kept = named("kept", T.bind(keep(k)))
                    self._each(lambda j: self._store(k, j, self._state(k, j) * kept))
                if problem.delta:
                    key = named("key_k", T.bind(self._key(token, k)))
                    self._each(lambda j: T.buffer_store(update, update[j] + key * self._state(k, j), [j]))
        value = self.tensors["value"]
        at = self.head * problem.value_size + self.first
        self._each(
            lambda j: T.buffer_store(update, rate * (value[self.place, token, at + j] - update[j]), [j])
        )  # from here on, the update of the state
        for member in range(problem.group):
            self._each(lambda j: T.buffer_store(result, T.float32(0), [j]))
            self._read(token, member, update, result)

    def _read(self, token: Any, member: int, added: Any, result: Any) -> None:
        """Emit the result of the ``member``-th query of the head; for the first one, update the state on the way."""
        problem = self.problem
        query_head = self.head * problem.group + member
        with loop("k", T.serial(problem.key_size)) as k:
            if member == 0:
                key = named("key_k", T.bind(self._key(token, k)))
                self._each(lambda j: self._store(k, j, self._state(k, j) + key * added[j]))
            query = named(
                "query_k", T.bind(self.tensors["query"][self.place, token, query_head * problem.key_size + k])
            )
            self._each(lambda j: T.buffer_store(result, result[j] + query * self._state(k, j), [j]))
        at, y, scale = query_head * problem.value_size + self.first, self.tensors["y"], T.float32(problem.scale)
        self._each(lambda j: T.buffer_store(y, result[j] * scale, [self.place, token, at + j]))

    def _gates(self, token: Any) -> tuple[Callable[[Any], Any], Any]:
        """Factor by which a channel of the state decays, as a function of the channel, and the rate of its update."""
        problem, tensors, rate = self.problem, self.tensors, T.float32(1)
        if problem.delta:
            rate = named("rate", T.bind(tensors["beta"][self.place, token, 0 if problem.shared_beta else self.head]))
        if problem.decay == "channel":
            kept = named("kept_channels", T.alloc_buffer((problem.key_size,), "float32"))
            with loop("k", T.serial(problem.key_size)) as k:
                decay = tensors["decay"][self.place, token, self.head * problem.key_size + k]
                T.buffer_store(kept, exponential(decay), [k])
            return lambda k: kept[k], rate
        if problem.decay == "head":
            of_head = named("kept_head", T.bind(exponential(tensors["decay"][self.place, token, self.head])))
            return lambda _: of_head, rate
        return lambda _: T.float32(1), rate

    def _key(self, token: Any, k: Any) -> Any:
        return self.tensors["key"][self.place, token, self.head * self.problem.key_size + k]

    def _state(self, k: Any, j: Any) -> Any:
        return self._states[(*self.after, self.head, k, self.first + j)]

    def _store(self, k: Any, j: Any, value: Any) -> None:
        T.buffer_store(self._states, value, [*self.after, self.head, k, self.first + j])

    @property
    def _states(self) -> Any:
        return self.tensors["states" if self.problem.in_entries else "after"]

    def _vector(self) -> Any:
        return T.alloc_buffer((self.columns,), "float32", scope="local")

    def _each(self, of_column: Callable[[Any], None]) -> None:
        for vector in range(0, self.columns, self.lanes):
            with loop("lane", T.vectorized(self.lanes)) as lane:
                of_column(vector + lane)


def _entry(tensors: dict[str, Any], name: str, owner: Any) -> Any:
    """The number of an entry of a sequence, the first or last one where there is none of that number."""
    last = tensors["states"].shape[0] - 1
    return named(name, T.bind(T.max(T.min(tensors[name][owner], T.cast(last, "int64")), T.int64(0))))


LINEAR_ATTENTION = Kernel(
    "linear_attention",
    FORMULA,
    linear_attention,
    how=lambda problem, _: (
        f"token by token, {math.gcd(problem.value_size, _COLUMNS)} of {problem.value_size} columns of a head at a time"
    ),
)

"""Drawing random graphs: operators are proposed freely, and onnxruntime says which of them can be computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .graphs import Constant, Graph, Operation, Value, model_of
from .outcomes import Array

LARGEST = 1e4
"""Numbers stay below, such that what is computed from multiples of a half stays exact in float32."""
_MOST_ELEMENTS = 4096
_SPECIAL = np.array([np.nan, np.inf, -np.inf])


@dataclasses.dataclass
class Proposal:
    """An operator and its inputs. ``exact``: of exact inputs it makes exact outputs.

    ``steps``: it jumps, so that inputs must be exact for results to be comparable.
    """

    op_type: str
    inputs: Sequence[Value | None]
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    outputs: int = 1
    exact: bool = True
    steps: bool = False


class Impossible(Exception):  # noqa: N818 - nothing went wrong
    """No value at hand is what a proposal needs."""


class Draft:
    """A graph that grows. ``sizes``: the symbols N and M in each run; ``prefix`` begins all names."""

    def __init__(self, generator: np.random.Generator, sizes: Sequence[tuple[int, int]], prefix: str) -> None:
        self.generator, self.runs = generator, len(sizes)
        self._symbols = {"N": tuple(n for n, _ in sizes), "M": tuple(m for _, m in sizes)}
        self._names = {found: name for name, found in self._symbols.items()}
        self._prefix, self._count = prefix, 0
        self.values: list[Value] = []
        self._operations: list[Operation] = []

    def name(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count}"

    def one_of(self, *choices: Any) -> Any:
        return choices[self.generator.integers(len(choices))]

    def chance(self, share: float) -> bool:
        return bool(self.generator.random() < share)

    def pick(self, kinds: str = "fiub", rank: int = 0, like: Value | None = None) -> Value:
        """A value of one of the kinds of element types, or of the type of another, of at least that rank."""
        results = [
            value
            for value in self.values
            if value.rank >= rank and (value.dtype.kind in kinds if like is None else value.dtype == like.dtype)
        ]
        if not results:
            raise Impossible
        recent = results[-4:] if self.chance(0.5) else results
        return recent[self.generator.integers(len(recent))]

    def axis(self, value: Value) -> int:
        """An axis, counted from either end."""
        if not value.rank:
            raise Impossible
        return int(self.generator.integers(-value.rank, value.rank))

    def constant(self, data: Any, dtype: Any = np.int64) -> Constant:
        array = np.array(data).astype(dtype)  # negative numbers become unsigned ones
        return Constant(self.name(), [array] * self.runs, array.shape)

    def fed(self, make: Callable[[int], Any], dtype: Any = np.int64) -> Value:
        """An input whose contents in a run are ``make(run)``."""
        return self._value([np.asarray(make(run), dtype) for run in range(self.runs)], exact=True)

    def input(self, dtype: str, dims: Sequence[int | str]) -> Value:
        """An input of multiples of a half, infinities and what is not a number among them now and then."""
        special = np.dtype(dtype).kind == "f" and self.chance(0.15)

        def make(run: int) -> Array:
            shape = [self._symbols[size][run] if isinstance(size, str) else size for size in dims]
            numbers = self.generator.integers(-8, 9, shape) / (2 if np.dtype(dtype).kind == "f" else 1)
            if special:
                chosen = self.generator.random(shape) < 0.2
                numbers = np.where(chosen, self.generator.choice(_SPECIAL, shape), numbers)
            if np.dtype(dtype).kind == "b":
                numbers = numbers > 0
            return np.abs(numbers) if np.dtype(dtype).kind == "u" else numbers

        value = self.fed(make, dtype)
        self.values.append(value)
        return value

    def apply(self, proposal: Proposal) -> bool:
        """Add what is proposed; False where it cannot be computed, or not compared."""
        given = [value for value in proposal.inputs if value is not None]
        exact = all(value.exact for value in given)
        if proposal.steps and not exact:
            return False
        results = self._computed(proposal)
        if results is None or not all(_is_moderate(array) for run in results for array in run):
            return False
        if any(array.ndim != first.ndim for run in results for array, first in zip(run, results[0], strict=True)):
            return False
        is_wide = all(value.dtype.kind != "f" or value.dtype.itemsize > 2 for value in given)
        outputs = [
            self._value([run[position] for run in results], exact and proposal.exact and is_wide)
            for position in range(proposal.outputs)
        ]
        self._operations.append(Operation(proposal.op_type, proposal.inputs, outputs, proposal.attributes))
        self.values += outputs
        return True

    def finished(self) -> Graph:
        """All that nothing else uses is an output, and some of the rest."""
        used = {value for operation in self._operations for value in operation.inputs}
        computed = [value for operation in self._operations for value in operation.outputs]
        outputs = [value for value in computed if value not in used or self.chance(0.2)]
        return Graph(self._operations, outputs, range(self.runs))

    def _value(self, arrays: list[Array], exact: bool) -> Value:
        shape = [self._size(tuple(array.shape[axis] for array in arrays)) for axis in range(arrays[0].ndim)]
        return Value(self.name(), arrays, shape, exact)

    def _size(self, sizes: tuple[int, ...]) -> int | str:
        """A symbol, a number where all runs agree, or a name that tells the sizes."""
        if sizes in self._names:
            return self._names[sizes]
        return sizes[0] if len(set(sizes)) == 1 else "s" + "_".join(map(str, sizes))

    def _computed(self, proposal: Proposal) -> list[list[Array]] | None:
        """The outputs of each run; None where onnxruntime refuses."""
        import onnxruntime

        given = dict.fromkeys(value for value in proposal.inputs if value is not None)
        unnamed = [Value(value.name, value.arrays, [None] * value.rank) for value in given]  # type: ignore[list-item]
        outputs = [Value(f"out_{position}", [np.zeros(0, np.float32)], []) for position in range(proposal.outputs)]
        operation = Operation(proposal.op_type, proposal.inputs, outputs, proposal.attributes)
        model = model_of([operation], unnamed, [])
        del model.graph.initializer[:]
        model.graph.output.extend(type(model.graph.input[0])(name=value.name) for value in outputs)
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            return [session.run(None, {value.name: value.arrays[run] for value in given}) for run in range(self.runs)]
        except Exception:  # they have no common base
            return None


def _is_moderate(array: Array) -> bool:
    if array.size > _MOST_ELEMENTS or array.dtype.kind not in "fiub":
        return False
    return array.dtype.kind == "b" or bool(np.all(~np.isfinite(array) | (np.abs(array.astype(np.float64)) < LARGEST)))

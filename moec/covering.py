"""Inputs for a whole model that show as many sides of its decisions as can be found (:mod:`moec.ir.watch`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moec.runtime.manifest import TensorSpec
from moec.sampling import input_limits, random_inputs, size_cases

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.ir.watch import Watch

Inputs = dict[str, np.ndarray]
MOST_WORK = 1 << 34
"""Weights times tokens of one run: what the interpreter does in a few seconds."""
MOST_NUMBERS = 1 << 12
"""Constants of more elements are weights, and not looked into."""
TOKENS = (17, 65, 257, 1025)
MOST_TOKENS = 4096


@dataclasses.dataclass(frozen=True)
class Covering:
    """``inputs`` to run a model on. ``sides``: how many the model's decisions have; ``unseen`` names, node by node, those
    that no inputs took. ``note``: why it was not watched, if it was not; then nothing is known about its sides."""

    inputs: list[Inputs]
    sides: int
    unseen: list[str]
    note: str | None = None

    @property
    def share(self) -> float:
        """The share of sides that were seen, 1 where there are none."""
        return 1.0 if self.sides == 0 else 1 - len(self.unseen) / self.sides


def cover(
    model: ir.Model,
    specs: Sequence[TensorSpec],
    base: Sequence[Inputs],
    dependent: Mapping[str, str] | None = None,
    accepts: Callable[[Inputs], bool] = lambda inputs: True,
) -> Covering:
    """``base``, and what takes further sides: floats of other magnitudes, other indices, more tokens than the numbers in
    the graph. ``specs`` are those of the model's inputs, ``dependent`` sizes follow from others
    (:func:`moec.input_sizes.input_sizes`), and only what ``accepts`` says yes to is added."""
    from moec.ir.interpreter import EvaluationError, Evaluator
    from moec.ir.intervals import intervals
    from moec.ir.watch import Watch

    nodes, weights = list(model.graph), _weights(model)
    if any(weights * _tokens(inputs) > MOST_WORK for inputs in base):
        return Covering(list(base), 0, [], "the model is too large to watch its decisions in the interpreter")
    fed = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    try:
        evaluator = Evaluator(nodes, fed, list(model.graph.outputs), model.opset_imports, model.functions.values())
    except (ValueError, TypeError) as error:
        return Covering(list(base), 0, [], f"the interpreter cannot watch its decisions: {error}")
    watch = Watch(nodes, intervals(nodes, {}, _numbers))

    def seen_by(inputs: Inputs) -> Watch | None:
        """The watch after a run; None where the interpreter cannot run it."""
        after = watch.fork()
        try:
            evaluator.run({value: inputs[value.name or ""] for value in fed}, after)
        except (EvaluationError, MemoryError):
            return None
        return after

    for inputs in base:
        watch = seen_by(inputs) or watch
    chosen = list(base)
    for inputs in _further(model, specs, dependent or {}):
        if not watch.unseen():
            break
        if weights * _tokens(inputs) > MOST_WORK or not accepts(inputs):
            continue
        after = seen_by(inputs)
        if after is not None and len(after.unseen()) < len(watch.unseen()):
            watch = after
            chosen.append(inputs)
    return Covering(chosen, watch.sides, [str(one) for one in watch.unseen()])


def _further(model: ir.Model, specs: Sequence[TensorSpec], dependent: Mapping[str, str]) -> Iterator[Inputs]:
    limits = input_limits(model)

    def of(tokens: int, sequences: int, seed: int) -> Inputs:
        (sizes,) = size_cases(specs, (tokens,), (sequences,), dependent)
        return random_inputs(specs, sizes, limits, seed)

    for factor in (1e-3, 30.0, 1e3, -1.0, 0.0):
        if any(np.dtype(spec.dtype).kind == "f" for spec in specs if spec.dtype != "bfloat16"):
            yield {name: _scaled(array, factor) for name, array in of(7, 2, 11).items()}
    for place in (0, -1):
        yield {name: _constant(array, place % limits[name]) if name in limits else array for name, array in of(7, 2, 12).items()}
    for tokens in _token_counts(model):
        yield of(tokens, 1, 13)
        yield of(3, tokens, 14)


def _scaled(array: np.ndarray, factor: float) -> np.ndarray:
    return array if array.dtype.kind in "iub" else (array * array.dtype.type(factor)).astype(array.dtype)


def _constant(array: np.ndarray, number: int) -> np.ndarray:
    return np.full_like(array, number)


def _token_counts(model: ir.Model) -> list[int]:
    """Usual ones, and one beyond every number that stands in the graph."""
    arrays = (_numbers(value) for value in {v for node in model.graph for v in node.inputs if v is not None})
    numbers = [float(n) for array in arrays if array is not None and array.dtype.kind in "iuf" for n in array.ravel()]
    beyond = int(max((n for n in numbers if n <= MOST_TOKENS), default=0)) + 1
    return sorted({*TOKENS, beyond})


def _numbers(value: ir.Value) -> np.ndarray | None:
    constant = value.const_value
    return None if constant is None or constant.size > MOST_NUMBERS else constant.numpy()


def _weights(model: ir.Model) -> int:
    """Elements of all constants."""
    constants = (value.const_value for value in model.graph.initializers.values())
    return sum(constant.size for constant in constants if constant is not None)


def _tokens(inputs: Inputs) -> int:
    """Rows of the largest input, or its elements where it is a matrix of indices."""
    return max((array.size if array.dtype.kind in "iub" else array.size // max(array.shape[-1], 1) for array in inputs.values() if array.ndim), default=1)

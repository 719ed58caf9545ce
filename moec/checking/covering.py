"""Inputs for a whole model that take as many sides of its decisions as can be found (:mod:`moec.ir.watch`).

``moec verify`` compares an artifact on them, and ``--verify-each`` the graph after every pass
(:mod:`moec.checking.pass_check`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moec.checking.samples import Samples
from moec.checking.sampling import random_inputs, size_cases
from moec.common.specs import TensorSpec
from moec.passes.shapes.input_limits import input_limits

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.ir.watch import Watch

Inputs = dict[str, np.ndarray]
MOST_WORK = 1 << 34
"""Weights times tokens of the largest run that is watched: a few seconds in the interpreter."""
MOST_NUMBERS = 1 << 12
"""Size of the largest constants that are searched for numbers; larger ones are weights."""
TOKENS = (17, 65, 257, 1025)
MOST_TOKENS = 4096
LARGEST_NUMBER = 1 << 20
SCANNED_NUMBERS = 4
"""Numbers of a graph around which sizes are tried: the largest up to :data:`LARGEST_NUMBER`."""
SCANNED_BYTES = 1 << 20
"""Bytes of the largest value that is examined."""


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Decisions of a model that inputs covered.

    ``sides``: number of sides of all decisions. ``unseen``: sides that no inputs took, by node. ``note``: reason why
    the model was not watched, in which case nothing is known of its sides. ``sizes``: the largest that were compared.
    ``beyond``: values, computed from sizes, that differ at sizes that were not compared.
    """

    sides: int
    unseen: list[str]
    note: str | None = None
    sizes: dict[str, int] = dataclasses.field(default_factory=dict, compare=False)
    beyond: list[str] = dataclasses.field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of sides that were taken, 1 where there are none."""
        return 1.0 if self.sides == 0 else 1 - len(self.unseen) / self.sides

    def lines(self) -> Iterator[str]:
        """Describe the decisions that a comparison on these inputs covers, and those that it does not."""
        if self.note is not None:
            yield f"decisions not watched: {self.note}"
            return
        yield f"decisions: {self.sides - len(self.unseen)} of {self.sides} sides were taken ({self.share:.0%})"
        yield from (f"  never taken: {side}" for side in self.unseen)
        if self.sizes:
            yield f"sizes: up to {', '.join(f'{name} = {size}' for name, size in self.sizes.items())} were compared"
        yield from (f"  never compared: {value}" for value in self.beyond)


@dataclasses.dataclass(frozen=True)
class Covering:
    """``inputs`` to run a model on, and their coverage of its decisions."""

    inputs: list[Inputs]
    coverage: Coverage


def covering_inputs(
    model: ir.Model,
    specs: Sequence[TensorSpec],
    dependent: Mapping[str, str],
    guards: Sequence[str],
    accepts: Callable[[Inputs], bool],
) -> Covering:
    """Make random inputs of several sizes within ``guards``, and add inputs that take further sides: see :func:`cover`.

    Models with a cache get one token after others, for one sequence and for several, then several tokens after others,
    and prompts. Several tokens after others come for one sequence only, because onnxruntime's attention takes no more.
    Raises MoecError where no sizes are found.
    """
    limits = input_limits(model)
    if dependent:
        sizes = size_cases(specs, (1, 1, 3, 16), (1, 3, 1, 2), dependent, guards)
    else:
        sizes = size_cases(specs, guards=guards)
    base = [random_inputs(specs, case, limits, seed) for seed, case in enumerate(sizes)]
    return cover(model, base, specs, dependent, accepts, guards)


def cover(
    model: ir.Model,
    base: Sequence[Inputs],
    specs: Sequence[TensorSpec] = (),
    dependent: Mapping[str, str] | None = None,
    accepts: Callable[[Inputs], bool] = lambda inputs: True,
    guards: Sequence[str] = (),
) -> Covering:
    """Extend ``base`` by inputs that take further sides of the model's decisions.

    Added are three or more of everything; sizes at which a value computed from sizes becomes another number
    (:mod:`moec.passes.raising.size_scan`); and, where they take further sides, floats of other magnitudes, other
    indices, and more tokens than the numbers in the graph. ``specs`` are those of the model's inputs, without which
    nothing is added. ``dependent`` sizes follow from others (:func:`moec.passes.shapes.input_sizes.input_sizes`). Only
    inputs that ``accepts`` and ``guards`` allow are added.
    """
    from moec.ir.interpreter import EvaluationError

    weights = _weights(model)
    if any(weights * _tokens(inputs) > MOST_WORK for inputs in base):
        return _unwatched(base, "the model is too large to watch its decisions in the interpreter")
    try:
        runs = _Runs.of(model)
    except (ValueError, EvaluationError) as error:
        return _unwatched(base, f"the interpreter cannot watch its decisions: {error}")
    for inputs in base:
        runs.watch = runs.after(inputs) or runs.watch
    chosen = _CoveringInputs(
        runs, list(base), lambda inputs: weights * _tokens(inputs) <= MOST_WORK and accepts(inputs)
    )
    if not specs:
        return Covering(chosen.inputs, Coverage(runs.watch.sides, chosen.unseen()))
    samples = Samples(specs, input_limits(model), dependent or {}, guards)
    for inputs in samples.usual():
        chosen.add(inputs, always=True)
    beyond = _compare_sizes(model, samples, chosen, MOST_WORK // max(weights, 1))
    for inputs in samples.further(_token_counts(model)):
        if not runs.watch.unseen():
            break
        chosen.add(inputs)
    compared = [samples.sizes_of(feeds) for feeds in chosen.inputs]
    largest = {name: max(sizes[name] for sizes in compared) for name in samples.free}
    return Covering(chosen.inputs, Coverage(runs.watch.sides, chosen.unseen(), None, largest, beyond))


def _compare_sizes(model: ir.Model, samples: Samples, chosen: _CoveringInputs, most_rows: int) -> list[str]:
    """Add inputs of sizes at which a value computed from sizes is a number not seen yet. Returns descriptions of the
    values that would need inputs of more than ``most_rows`` rows."""
    from moec.passes.raising.dataflow import DataFlow
    from moec.passes.raising.size_scan import SizedGraph, SizeScan

    most = min(most_rows, MOST_TOKENS)
    numbers = sorted(number for number in _small_numbers(model) if 1 < number <= LARGEST_NUMBER)[-SCANNED_NUMBERS:]
    graph = SizedGraph(
        list(model.graph),
        samples.free,
        DataFlow(model.graph),
        lambda: numbers,
        samples.complete,
        samples.allows,
        SCANNED_BYTES,
    )
    scan = SizeScan.of(graph)
    seen = [samples.sizes_of(feeds) for feeds in chosen.inputs]
    return [
        str(scan.unseen(node, sizes))
        for node, sizes in list(scan.differing(seen, lambda sizes: samples.rows_at(sizes) <= most))
        if samples.rows_at(sizes) > most or not chosen.add(samples.at(sizes, 15), always=True)
    ]


@dataclasses.dataclass
class _CoveringInputs:
    """Selected inputs, all of which ``accepts`` allows, and the watch over their runs."""

    runs: _Runs
    inputs: list[Inputs]
    accepts: Callable[[Inputs], bool]

    def add(self, inputs: Inputs, *, always: bool = False) -> bool:
        """Select inputs that the interpreter can run and that take further sides, or any such with ``always``."""
        after = self.runs.after(inputs) if self.accepts(inputs) else None
        if after is None or not (always or len(after.unseen()) < len(self.runs.watch.unseen())):
            return False
        self.runs.watch = after
        self.inputs.append(inputs)
        return True

    def unseen(self) -> list[str]:
        return [str(side) for side in self.runs.watch.unseen()]


def _unwatched(base: Sequence[Inputs], why: str) -> Covering:
    return Covering(list(base), Coverage(0, [], why))


@dataclasses.dataclass
class _Runs:
    """A model in the interpreter, and the watch over its runs so far."""

    run: Callable[..., Inputs]
    watch: Watch

    @staticmethod
    def of(model: ir.Model) -> _Runs:
        """Prepare a model. Raises ValueError or EvaluationError for one that the interpreter cannot run."""
        from moec.ir.facts import facts_of
        from moec.ir.interpreter import runner
        from moec.ir.watch import Watch

        nodes = list(model.graph)
        return _Runs(runner(model), Watch(nodes, facts_of(nodes, _SmallConstants.of(nodes))))

    def after(self, inputs: Inputs) -> Watch | None:
        """Return the watch after one more run, or None where the interpreter cannot run these inputs."""
        from moec.ir.interpreter import EvaluationError

        watch = self.watch.fork()
        try:
            self.run(inputs, watch)
        except (ValueError, EvaluationError, MemoryError):
            return None
        return watch


def _token_counts(model: ir.Model) -> list[int]:
    """List numbers of tokens to try: usual ones, and one beyond every number in the graph."""
    beyond = int(max((n for n in _small_numbers(model) if n <= MOST_TOKENS), default=0)) + 1
    return sorted({*TOKENS, beyond})


def _small_numbers(model: ir.Model) -> set[float]:
    """Collect the numbers in constants that are not weights."""
    arrays = (_numbers(value) for value in {v for node in model.graph for v in node.inputs if v is not None})
    return {float(n) for array in arrays if array is not None and array.dtype.kind in "iuf" for n in array.ravel()}


def _numbers(value: ir.Value) -> np.ndarray | None:
    constant = value.const_value
    return None if constant is None or constant.size > MOST_NUMBERS else constant.numpy()


@dataclasses.dataclass(frozen=True)
class _SmallConstants:
    """Constants of a model except weights, which are those that are large or added to a product."""

    biases: frozenset[ir.Value]

    @staticmethod
    def of(nodes: Sequence[ir.Node]) -> _SmallConstants:
        products = {"Conv", "Einsum", "Gemm", "MatMul"}
        added = (node for node in nodes if node.op_type == "Add")
        makers = {node: [value.producer() for value in node.inputs if value is not None] for node in added}
        behind = [
            node
            for node, producers in makers.items()
            if any(producer and producer.op_type in products for producer in producers)
        ]
        gemms = [node for node in nodes if node.op_type in ("Conv", "Gemm")]
        return _SmallConstants(
            frozenset(value for node in (*behind, *gemms) for value in node.inputs if value is not None)
        )

    def has(self, value: ir.Value) -> bool:
        return value.const_value is not None and value not in self.biases

    def array(self, value: ir.Value, most: int) -> np.ndarray | None:
        return _numbers(value) if self.has(value) else None


def _weights(model: ir.Model) -> int:
    """Count the elements of all constants."""
    constants = (value.const_value for value in model.graph.initializers.values())
    return sum(constant.size for constant in constants if constant is not None)


def _tokens(inputs: Inputs) -> int:
    """Count the rows of the largest input, or its elements where it is a matrix of indices."""
    shaped = [array for array in inputs.values() if array.ndim]
    return max((a.size if a.dtype.kind in "iub" else a.size // max(a.shape[-1], 1) for a in shaped), default=1)

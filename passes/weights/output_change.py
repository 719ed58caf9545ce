"""Change of a model's outputs on data after its weights have changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.divergence import total_divergence
from moec.ir.interpreter import Change, Watcher, runner
from moec.ir.states import states_of

Array = np.ndarray[Any, Any]
Batch = Mapping[str, Array]


class OutputChange:
    """The outputs that a model gives for batches of its inputs, run by the interpreter, to compare variants of it with.

    ``output``: the name of the output that is looked at, [..., classes]. Inputs that the batches lack are states, which
    begin empty. Raises ValueError for batches of other inputs, for a model without such an output, and for one whose
    output holds a NaN; EvaluationError for a node that cannot be computed.
    """

    def __init__(
        self, model: ir.Model, batches: Sequence[Batch], output: str, watch: Callable[[int], Watcher] | None = None
    ) -> None:
        self._output = output
        self._batches = [_complete(model, batch) for batch in batches]
        self._run = runner(model)
        self._expected = [
            self._given(self._run, batch, None if watch is None else watch(at))
            for at, batch in enumerate(self._batches)
        ]
        if not all(np.isfinite(expected).all() for expected in self._expected):
            raise ValueError(f"the output {output!r} holds numbers that are not finite")

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._batches)

    def of(self, variant: ir.Model) -> float:
        """The mean Kullback-Leibler divergence, in nats per position, of the outputs of a variant of the model."""
        run = runner(variant)
        return self._divergence(lambda at: self._given(run, self._batches[at]))

    def with_errors(self, node: ir.Node, errors: Sequence[Array]) -> float:
        """The divergence of the model itself with ``errors``, one array for each batch, added to a node's output."""
        return self._divergence(lambda at: self._given(self._run, self._batches[at], None, _adding(node, errors[at])))

    def _divergence(self, outputs_at: Callable[[int], Array]) -> float:
        total, count = 0.0, 0
        for at, expected in enumerate(self._expected):
            divergence, positions = total_divergence(outputs_at(at), expected)
            total, count = total + divergence, count + positions
        return total / max(1, count)

    def _given(
        self,
        run: Callable[..., dict[str, Array]],
        batch: Batch,
        watch: Watcher | None = None,
        change: Change | None = None,
    ) -> Array:
        outputs = run(batch, watch, change)
        if self._output not in outputs:
            raise ValueError(f"there is no output {self._output!r}; the outputs are {sorted(outputs)}")
        return outputs[self._output]


def _adding(node: ir.Node, error: Array) -> Change:
    def change(computed: ir.Node, outputs: Sequence[Array]) -> Sequence[Array]:
        if computed is not node:
            return outputs
        return [(outputs[0] + error.reshape(outputs[0].shape)).astype(outputs[0].dtype), *outputs[1:]]

    return change


def _complete(model: ir.Model, batch: Batch) -> dict[str, Array]:
    """A batch with empty states for those inputs that it lacks."""
    states = {state.input for state in states_of(model)}
    rows = next((len(array) for array in batch.values() if array.ndim), 1)
    complete = dict(batch)
    for value in model.graph.inputs:
        if value.name in states and value.name not in complete and value.shape is not None and value.dtype is not None:
            sizes = [size if isinstance(size, int) else 0 for size in value.shape]
            if sizes and not isinstance(value.shape[0], int):
                sizes[0] = rows
            complete[str(value.name)] = np.zeros(sizes, value.dtype.numpy())
    return complete

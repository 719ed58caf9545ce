"""Many small models as one: a compilation for each would be most of the time of tests that compute a few numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnx.parser

import moec

HEADER = '<ir_version: 10, opset_import: ["" : 24]>\n'
SHARED_SIZE = "T"


def parse_graph(inputs: str, outputs: str, body: str) -> onnx.ModelProto:
    """The model of a graph whose parts are ONNX text."""
    return onnx.parser.parse_model(f"{HEADER}agraph ({inputs}) => ({outputs}) {{\n {body}\n}}")


def side_by_side(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """The graphs of models of the same opsets in one graph. The names of the model at index 3 begin with ``m3_``; all
    have the size ``T`` in common."""
    joined = onnx.compose.add_prefix(models[0], _prefix(0))
    del joined.graph.node[:], joined.graph.input[:], joined.graph.output[:], joined.graph.value_info[:]
    for index, model in enumerate(models):
        graph = onnx.compose.add_prefix(model, _prefix(index)).graph
        for value in (*graph.input, *graph.output):
            for size in value.type.tensor_type.shape.dim:
                if size.dim_param not in ("", SHARED_SIZE):
                    size.dim_param = _prefix(index) + size.dim_param
        joined.graph.node.extend(graph.node)
        joined.graph.input.extend(graph.input)
        joined.graph.output.extend(graph.output)
    return joined


def results_side_by_side(
    cases: Mapping[str, tuple[str, str, str]],
    sizes: Iterable[int],
    feeds_of: Callable[[str, int], Mapping[str, np.ndarray]],
    **options: Any,
) -> dict[int, dict[str, np.ndarray]]:
    """By value of ``T`` and by case, the output ``y`` of one program of all cases.

    ``cases``: inputs, outputs and body of each in ONNX text. ``feeds_of``: the arrays for the inputs of a case and a
    value of ``T``. ``options``: those of ``moec.compile``.
    """
    program = moec.compile(side_by_side([parse_graph(*case) for case in cases.values()]), threads=1, **options)
    results = {}
    for size in sizes:
        feeds = {
            _prefix(index) + name: array
            for index, (inputs, _, _) in enumerate(cases.values())
            for name, array in feeds_of(inputs, size).items()
        }
        outputs = program.run(feeds)
        results[size] = {case: outputs[f"{_prefix(index)}y"] for index, case in enumerate(cases)}
    return results


def _prefix(index: int) -> str:
    return f"m{index}_"

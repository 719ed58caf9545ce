"""What ``moec inspect`` shows of an artifact, printed."""

from __future__ import annotations

import io

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper
from rich.console import Console

import moec
from moec.inspect.tables import artifact_tables

GROWS = """<ir_version: 10, opset_import: ["" : 24]>
graph (int64[B,S] ids, float[B,P,4] past) => (float[B,S,4] logits, float[B,R,4] present) {
    x = Gather (table, ids) present = Concat <axis = 1> (past, x) sum = ReduceSum (present, one)
    logits = Add (x, sum) }"""
IS_REPLACED = """<ir_version: 10, opset_import: ["" : 24]>
graph (int64[B,S] ids, float[B,1,4] past) => (float[B,S,4] logits, float[B,1,4] next) {
    x = Gather (table, ids) sum = ReduceSum (x, one) next = Add (past, sum) logits = Add (x, next) }"""


def printed(text: str) -> str:
    model = onnx.parser.parse_model(text)
    arrays = {"table": np.ones((5, 4), np.float32), "one": np.array([1])}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    console = Console(file=io.StringIO(), width=200)
    console.print(*artifact_tables(moec.compile(model, passes="O1,hold-cache").describe()))
    return console.file.getvalue()


@pytest.mark.parametrize(("text", "row"), [(GROWS, "past present 1"), (IS_REPLACED, "past next the whole")])
def test_states_are_listed(text, row):
    shown = [" ".join(line.split()) for line in printed(text).splitlines()]
    assert "States" in shown and row in shown
    assert "input ids int64 [B, S]" in shown

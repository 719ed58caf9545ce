"""Storing weights expert by expert: nothing is read before it must be, and never more than one expert."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import MoecError
from moec.ir.dialect import ExpertsSpec
from moec.ir.weight_operands import stored_weights, weight_inputs
from moec.ir.weights.encode import Encoded, decode, encode
from moec.ir.weights.format import WeightFormat
from moec.ir.weights.stacks import ExpertStack
from moec.ir.weights.stored import weight_runs
from moec.passes.weights.store import store

from ..stored_weights import E, expert_arrays, experts_model

INT4, INT8, FLOAT = WeightFormat("int4", 32), WeightFormat("int8", 32), WeightFormat("float32")


def counted_model() -> tuple[ir.Model, np.ndarray, list[int]]:
    """A layer whose ``up`` says which experts were read."""
    model, array = experts_model(ExpertsSpec()), expert_arrays(ExpertsSpec())["up"]
    read: list[int] = []

    def load(expert: int) -> np.ndarray:
        read.append(expert)
        return array[expert]

    model.graph.initializers["up"].const_value = ExpertStack("up", ir.DataType.FLOAT, array.shape, load)
    return model, array, read


@pytest.mark.parametrize(
    "form", [INT4, INT8, WeightFormat("int4", 32, zero_points=True), WeightFormat("bfloat16")], ids=str
)
def test_experts_are_encoded_when_they_are_read(form: WeightFormat) -> None:
    model, array, read = counted_model()
    node = model.graph.node(0)
    assert store(node, "up", [form] * E) and not read
    (run,) = weight_runs(weight_inputs(node)["up"])
    np.testing.assert_array_equal(run.decoded(4), decode(encode(array[4], form), form))
    assert set(read) == {4}


def test_runs_are_formed_by_what_experts_become() -> None:
    model, array, read = counted_model()
    node = model.graph.node(0)
    store(node, "up", [INT4, INT4, FLOAT, INT8, INT4, INT4])
    store(node, "up", [INT4, INT4, INT4, INT8, INT8, INT4])
    assert not read
    runs = weight_runs(weight_inputs(node)["up"])
    assert [(run.first, run.count, run.format) for run in runs] == [
        (0, 2, INT4),
        (2, 1, INT4),
        (3, 1, INT8),
        (4, 1, INT8),
        (5, 1, INT4),
    ]
    assert stored_weights(node)["up"].formats == [INT4, INT4, INT4, INT8, INT8, INT4]
    twice = decode(encode(array[4], INT4), INT4)
    np.testing.assert_array_equal(runs[3].decoded(4), decode(encode(twice, INT8), INT8))


def test_nothing_changes_when_formats_are_those_it_has() -> None:
    model, _, read = counted_model()
    node = model.graph.node(0)
    assert not store(node, "up", [FLOAT] * E) and not read
    assert [value.name for value in node.inputs if value is not None][2] == "up"


def test_a_number_that_a_format_cannot_hold_is_named_when_it_is_read() -> None:
    model, array, _ = counted_model()
    array[1, 2, 3] = np.nan
    node = model.graph.node(0)
    store(node, "up", [INT4] * E)
    (run,) = weight_runs(weight_inputs(node)["up"])
    run.decoded(0)
    with pytest.raises(MoecError, match="node layer: weight up of expert 1: it holds an infinity or a NaN"):
        run.decoded(1)


@pytest.mark.parametrize("form", [INT8, WeightFormat("int4", 4, True)], ids=str)
def test_experts_are_encoded_once_by_who_reads_table_by_table(form) -> None:
    model, array, read = counted_model()
    node, experts = model.graph.node(0), range(len(array))
    store(node, "up", [form] * len(array))
    (run,) = stored_weights(node)["up"].runs
    tables = Encoded._fields if form.zero_points else ("data", "scale")
    results = [[run.encoded(expert).read(table) for expert in experts] for table in tables]
    assert read == list(experts)
    for expert in experts:
        for table, arrays in zip(tables, results, strict=True):
            expected = getattr(encode(array[expert], form), table)
            np.testing.assert_array_equal(arrays[expert], expected)
            np.testing.assert_array_equal(run.encoded(expert).read(table), expected)  # whoever asks again gets the same

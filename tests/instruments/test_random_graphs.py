"""Random graphs: a sample always, 1,000 nightly. How to repeat and read a failure: random_graphs.py."""

from __future__ import annotations

import numpy as np
import pytest

from ..isolated import Worker
from .graphs import Constant, Graph, Operation, Value, case_of, shrunk
from .outcomes import table
from .random_graphs import PER_MODEL, drawn, program, smallest, sweep


def assert_right_or_refused(count: int, seed: int, worker: Worker) -> None:
    results = list(sweep(count, seed, worker))
    failures = [program(smallest(graph, outcome, worker), worker) for graph, outcome in results if outcome.failed]
    report = table(("random graphs", outcome) for _, outcome in results)
    print(report)
    assert not failures, "\n\n".join([*failures, report])
    assert any(outcome.status == "pass" for _, outcome in results)


def test_a_sample(worker: Worker) -> None:
    assert_right_or_refused(PER_MODEL, 3, worker)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1000, 2000, 50))
def test_1000_graphs(worker: Worker, seed: int) -> None:
    assert_right_or_refused(50, seed, worker)


def test_a_seed_draws_the_same_graphs():
    first, again = ([case_of(graph).model.SerializeToString() for graph in drawn(3) if graph.outputs] for _ in range(2))
    assert first == again


def chain() -> Graph:
    """y = Neg (Abs (x)), and z = Add (x, one) beside it; x has N elements."""
    arrays = [np.zeros(size, np.float32) for size in (2, 0)]
    x, middle, y, z = (Value(name, arrays, ["N"]) for name in ("x", "middle", "y", "z"))
    one = Constant("one", [np.ones(1, np.float32)] * 2, [1])
    operations = [
        Operation("Abs", [x], [middle], {}),
        Operation("Neg", [middle], [y], {}),
        Operation("Add", [x, one], [z], {}),
    ]
    return Graph(operations, [y, z], range(2))


def test_a_graph_as_a_model():
    model = case_of(chain()).model
    assert [value.name for value in model.graph.input] == ["x"]
    assert [size.dim_param for size in model.graph.input[0].type.tensor_type.shape.dim] == ["N"]
    assert [tensor.name for tensor in model.graph.initializer] == ["one"]


@pytest.mark.parametrize("op_type", ["Abs", "Neg", "Add"])
def test_shrinking_leaves_one_node_and_one_run(op_type: str):
    def fails(graph: Graph) -> bool:
        return 1 in graph.runs and any(operation.op_type == op_type for operation in graph.operations)

    actual = shrunk(chain(), fails)
    assert [operation.op_type for operation in actual.operations] == [op_type] and list(actual.runs) == [1]
    assert len(actual.inputs()) == 1 and len(actual.outputs) == 1

"""Malformed models are refused in one line, or run as onnxruntime runs them: a sample, and thousands in the nightly."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from ..isolated import Worker
from .judge import Verdict, judge, work
from .mutant import make
from .seeds import MODEL, own_seeds
from .shrink import shrunk
from .sweep import sweep


def test_a_sample() -> None:
    counts, failures = sweep(range(10), seed=7, with_node_tests=False)
    assert not failures
    assert counts["match"] and counts["refused"]


@pytest.mark.nightly
@pytest.mark.parametrize("first", range(0, 5000, 500))
def test_many(first: int) -> None:
    _, failures = sweep(range(first, first + 500), seed=1)
    assert not failures


@pytest.mark.nightly
def test_seeds_are_well_formed() -> None:
    """Unmutated models match, or are refused as unsupported."""
    worker = Worker(work)
    verdicts = {name: judge(files, worker) for name, files in own_seeds().items()}
    worker.close()
    assert {name: verdict for name, verdict in verdicts.items() if verdict.status not in ("match", "refused")} == {}
    assert sum(verdict.status == "match" for verdict in verdicts.values()) > len(verdicts) / 2


def test_a_mutant_follows_from_its_seed() -> None:
    assert make(3, 5, with_node_tests=False) == make(3, 5, with_node_tests=False)
    assert make(3, 5, with_node_tests=False) != make(3, 6, with_node_tests=False)


def test_a_failure_is_shrunk_to_what_fails() -> None:
    model = ModelProto.FromString(own_seeds()["dense_layers"][MODEL])
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "unused"))

    def fails_on_erf(files: dict[str, bytes]) -> Verdict:
        nodes = ModelProto.FromString(files[MODEL]).graph.node
        return Verdict("wrong" if any(node.op_type == "Erf" for node in nodes) else "match")

    smaller = shrunk({MODEL: model.SerializeToString()}, Verdict("wrong"), fails_on_erf)
    graph = ModelProto.FromString(smaller[MODEL]).graph
    assert [node.op_type for node in graph.node] == ["Erf"]
    assert not graph.initializer


def test_what_is_wrong_is_seen() -> None:
    """A model judged by the outputs of another one is wrong."""
    files = own_seeds()["elementwise"]
    worker = Worker(work)
    runs = worker.do((files, None))
    other = ModelProto.FromString(files[MODEL])
    other.graph.node[-1].CopyFrom(helper.make_node("Sub", ["e", "two"], ["y"]))
    verdict = worker.do(({MODEL: other.SerializeToString()}, runs))
    worker.close()
    assert verdict.status == "wrong" and "y: " in verdict.message

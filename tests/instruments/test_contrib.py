"""Random configurations of onnxruntime's own operators: a sample always, 500 nightly. How to repeat: contrib.py."""

from __future__ import annotations

import pytest

from ..isolated import Worker
from .contrib import OPERATORS, smallest, sweep
from .outcomes import table

ALL = tuple(OPERATORS)


def assert_right_or_refused(count: int, seed: int, worker: Worker, operators: tuple[str, ...] = ALL) -> None:
    results = list(sweep(count, seed, worker, list(operators)))
    failures = [smallest(*result, worker) for result in results if result[2].failed]
    report = table((name, outcome) for name, _, outcome in results)
    print(report)
    assert not failures, "\n".join([*failures, report])
    assert any(outcome.status == "pass" for _, _, outcome in results)


def test_a_sample(worker: Worker) -> None:
    """Every second operator is sampled; tests/passes/contrib compares all of them with onnxruntime."""
    assert_right_or_refused(len(ALL) // 2, 1, worker, ALL[1::2])


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(2, 12))
def test_500_configurations(worker: Worker, seed: int) -> None:
    assert_right_or_refused(50, seed, worker)

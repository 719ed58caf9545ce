"""MoE blocks written otherwise: one of each formulation always, 60 nightly. How to repeat: rewritten_blocks.py."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ..isolated import Worker
from .outcomes import run_onnxruntime, started_worker, unequal
from .rewrites import REWRITES
from .rewritten_blocks import FORMULATIONS, case_of, smallest, sweep


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = started_worker()
    yield worker
    worker.close()


def assert_right(count: int, seed: int, worker: Worker) -> None:
    results = list(sweep(count, seed, worker))
    failures = [smallest(*result, worker) for result in results if result[2].status != "pass"]
    assert not failures, "\n".join(failures)


def test_a_sample(worker: Worker) -> None:
    assert_right(len(FORMULATIONS), 1, worker)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(2, 6))
def test_60_blocks(worker: Worker, seed: int) -> None:
    assert_right(15, seed, worker)


@pytest.mark.parametrize("name", FORMULATIONS)
@pytest.mark.parametrize("rewrite", range(len(REWRITES)), ids=[rewrite.__name__ for rewrite in REWRITES])
def test_a_rewrite_changes_nothing_to_onnxruntime(name: str, rewrite: int):
    """Twice at different places, so that names do not clash."""
    expected = run_onnxruntime(case_of(name, []))
    found = run_onnxruntime(case_of(name, [(rewrite, 1), (rewrite, 2)]))
    assert isinstance(expected, list) and isinstance(found, list), found
    for (right,), (array,) in zip(expected, found, strict=True):
        assert unequal(array, right, 1e-5) is None


@pytest.mark.parametrize("rewrite", REWRITES)
def test_every_rewrite_finds_its_place_in_some_block(rewrite):
    from .rewritten_blocks import block

    assert any(rewrite(block(name).graph, np.random.default_rng(0)) for name in FORMULATIONS)

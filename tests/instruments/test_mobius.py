"""Models of mobius-onnx against onnxruntime, each night where the package is there. How to repeat: mobius.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..isolated import Lost, Worker
from .mobius import Row, check_item
from .mobius_models import MODELS

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    pytest.importorskip("mobius", reason="mobius-onnx is not installed (docs/testing.md)")
    worker = Worker(check_item, seconds=240, gigabytes=12)
    yield worker
    worker.close()


@pytest.mark.parametrize("name", MODELS)
def test_dense_models_match_and_are_raised(worker: Worker, name: str) -> None:
    row: Row | Lost = worker.do((name, "dense", None))
    assert isinstance(row, Row) and row.status == "pass", row
    assert row.blocks == MODELS[name].blocks, row.remarks

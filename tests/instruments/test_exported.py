"""Exports for onnxruntime, each night where mobius-onnx or a folder of models is there. How to repeat: exported.py."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

from ..isolated import Worker
from .exported import Row, compare_folder, compare_item, judged
from .mobius_models import MODELS

ZOO = os.environ.get("MOEC_ZOO", "")
FOLDERS = sorted(str(meta.parent) for meta in pathlib.Path(ZOO).glob("*/meta.json")) if ZOO else []


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker(compare_item, seconds=240, gigabytes=12)
    yield worker
    worker.close()


def test_an_example_is_equal() -> None:
    row = compare_folder("examples/char_lm")
    assert (row.status, row.written, row.graphs) == ("pass", ("com.microsoft.MoE",) * 2, ())
    assert row.difference < 1e-6


def test_other_results_are_wrong() -> None:
    right, other = np.array([1.0, 2], np.float32), np.array([1.0, 2.1], np.float32)
    assert judged(Row("pass"), ["y"], [[right]], [[right]], None).status == "pass"
    assert judged(Row("pass"), ["y"], [[right]], [[other]], None).status == "wrong"
    assert judged(Row("pass"), ["y"], [[right]], [[right[:1]]], None).status == "wrong"
    assert judged(Row("pass"), ["y"], [[right]], [[np.float32([np.nan, 2])]], None).status == "wrong"


@pytest.mark.nightly
@pytest.mark.parametrize("name", MODELS)
def test_mobius(worker: Worker, name: str) -> None:
    pytest.importorskip("mobius", reason="mobius-onnx is not installed (docs/testing.md)")
    row = worker.do((name, "dense"))
    assert isinstance(row, Row) and row.status in ("pass", "skipped"), row


@pytest.mark.nightly
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: pathlib.Path(folder).name)
def test_zoo(worker: Worker, folder: str) -> None:
    row = worker.do((folder,))
    assert isinstance(row, Row) and row.status in ("pass", "skipped"), row

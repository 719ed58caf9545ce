"""Exported models from a folder outside the repository, compiled for CUDA and emulated: ``moec verify`` has to accept
each of them on the inputs stored with it.

It is an extra to ``tests/test_zoo.py``, on the same folder, in nightly runs.
"""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

import moec
from moec.tools.verify import verify

from ...test_zoo import MODELS

pytestmark = pytest.mark.nightly


@pytest.mark.skipif(bool(MODELS), reason="there is a zoo")
def test_there_is_a_zoo() -> None:
    pytest.skip("exported models were not compiled for CUDA: set MOEC_ZOO to a folder of models to do so")


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_model(folder: pathlib.Path) -> None:
    source = folder / "model.onnx"
    model = moec.compile(source, target="cuda", emulate=True)
    for path in sorted(folder.glob("inputs*.npz")):
        verification = verify(source, model, dict(np.load(path)))
        differences = [difference for case in verification.cases for difference in case.differences]
        assert differences and not verification.failures
        assert verification.matches, [difference for difference in differences if not difference.matches]

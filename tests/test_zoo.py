"""Every exported model of a folder outside the repository: compiles, matches its stored outputs, is raised as known.

An extra: it runs where ``MOEC_ZOO`` names a folder of models. Each model is a folder with ``model.onnx``, pairs of
``inputs*.npz`` and ``expected*.npz``, and ``meta.json`` with the tolerance ``tol`` (never taken smaller than that of
the model's narrowest float) and, where known, ``truth`` (``blocks``, ``E``, ``k``). ``MOEC_ZOO_ONLY`` restricts it to
names containing a text.
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import moec
from moec.checking.comparison import tolerance_of

ZOO = os.environ.get("MOEC_ZOO", "")
ONLY = os.environ.get("MOEC_ZOO_ONLY", "")
MODELS = (
    sorted(meta.parent for meta in pathlib.Path(ZOO).glob("*/meta.json") if ONLY in meta.parent.name) if ZOO else []
)

pytestmark = pytest.mark.slow


@pytest.mark.skipif(bool(MODELS), reason="there is a zoo")
def test_there_is_a_zoo() -> None:
    pytest.skip("the sweep over exported models was skipped: set MOEC_ZOO to a folder of models to run it")


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_model(folder: pathlib.Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    tolerance = max(meta["tol"], tolerance_of(ir.load(folder / "model.onnx")))
    model = moec.compile(str(folder / "model.onnx"))
    for path in sorted(folder.glob("inputs*.npz")):
        outputs = model.run(dict(np.load(path)))
        for name, expected in np.load(path.with_name(path.name.replace("inputs", "expected"))).items():
            assert outputs[name].shape == expected.shape
            expected_result = expected.astype(np.float64)
            bound = tolerance * max(1.0, np.abs(expected_result).max(initial=0.0))
            np.testing.assert_allclose(outputs[name].astype(np.float64), expected_result, rtol=0, atol=bound)
    if truth := meta.get("truth"):
        blocks = model.describe()["moe_blocks"]
        assert [block["num_experts"] + _removed(block) for block in blocks] == [truth["E"]] * truth["blocks"]
        chosen = {block["top_k"] for block in blocks if (block["routing"] or {}).get("selection") != "all"}
        assert chosen <= {truth["k"]}, "unless its router stays as it is, a block chooses as many experts as the model"


def _removed(block: dict[str, Any]) -> int:
    """Experts that no token is ever given to go."""
    return len((block["origins"] or {}).get("removed", ()))

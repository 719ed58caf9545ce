"""Folders of the families of MoE language models, some each night: transformers reads what was pruned and computes what
moec does, or the export is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import UnsupportedError
from moec.exporting.driver import export
from moec.frontend import huggingface
from moec.frontend.huggingface.folder import import_folder
from moec.ir.interpreter import run

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import model_families
import tiny_families

EACH_NIGHT = 12
"""About 20 seconds each: all of them in a week."""
RELOADED_DIFFERENTLY = "zaya"
"""Family of which transformers 5.24 reads another model than it saved."""
PRUNING = "O2,prune-experts{keep=0.75,method=random}"


@pytest.mark.nightly
def test_families_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    graphs: list[ir.Model] = []

    def importing(*arguments: Any, **options: Any) -> ir.Model:
        graphs.append(import_folder(*arguments, **options))
        return graphs[-1]

    monkeypatch.setattr(huggingface, "import_folder", importing)
    ids = np.random.default_rng(0).integers(3, 90, (2, 11))
    names = sorted(model_families.known_rows().keys() - {RELOADED_DIFFERENTLY})
    for family in model_families.sample(names, EACH_NIGHT):
        source, place = tmp_path / family, tmp_path / f"{family}-pruned"
        tiny_families.random_model(family).save_pretrained(source)
        try:
            result = export(source, place, passes=PRUNING)
        except UnsupportedError:
            assert not place.exists()
            continue
        _, kind = tiny_families.families()[family]
        module: Any = kind
        reloaded = module.from_pretrained(result.path, dtype=torch.float32).eval()
        with torch.no_grad():
            actual = tiny_families.speaking_part(reloaded)(
                input_ids=torch.from_numpy(ids), use_cache=False
            ).logits.numpy()
        expected = run(graphs[-1], {"input_ids": ids})["logits"]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=family)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("family", "message"),
    [
        (
            "jetmoe",
            r"'model\.layers\.0\.self_attention\.experts\..*: has matrices of as many experts as the layer in the",
        ),
        ("inkling_text", "the logits of its experts depend on each other, so that a file with fewer of them"),
        (RELOADED_DIFFERENTLY, "the passes change none of its weights"),
    ],
)
def test_a_folder_that_would_be_another_model_is_refused(family: str, message: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    tiny_families.random_model(family).save_pretrained(tmp_path / "model")
    with pytest.raises(UnsupportedError, match=message):
        export(tmp_path / "model", tmp_path / "out", passes=PRUNING)
    assert not (tmp_path / "out").exists()

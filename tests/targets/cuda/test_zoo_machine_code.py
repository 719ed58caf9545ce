"""What nvcc makes of every kernel of a folder of exported models: nothing is spilled, nothing advised against.

An extra: it runs where ``MOEC_ZOO`` names a folder of models, as for ``tests/test_zoo.py``, and takes a minute or more
for each model and architecture. ``MOEC_ZOO_ONLY`` restricts it to names containing a text.
"""

from __future__ import annotations

import os
import pathlib

import pytest

from moec import compiler
from moec.runtime.artifact import open_artifact
from moec.runtime.model import kernels_of
from moec.targets.cuda.architectures import LIMITS
from moec.targets.cuda.nvcc import find_tool

pytestmark = pytest.mark.nightly

ZOO, ONLY = os.environ.get("MOEC_ZOO", ""), os.environ.get("MOEC_ZOO_ONLY", "")
FOUND = sorted(pathlib.Path(ZOO).glob("*/model.onnx")) if ZOO else []
MODELS = [path.parent for path in FOUND if ONLY in path.parent.name]
SILENT = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"


@pytest.mark.skipif(bool(MODELS) and find_tool("nvcc") is not None, reason="there is a zoo, and nvcc")
def test_there_is_a_zoo() -> None:
    pytest.skip("nvcc's advice on exported models was not read: set MOEC_ZOO to a folder of models, and install nvcc")


@pytest.mark.skipif(find_tool("nvcc") is None, reason="there is no nvcc")
@pytest.mark.parametrize("architecture", LIMITS)
@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_nothing_is_spilled_or_advised_against(folder: pathlib.Path, architecture: str, tmp_path: pathlib.Path) -> None:
    compiler.write(str(folder / "model.onnx"), tmp_path / "model.moec", target=f"cuda:{architecture}")
    artifact = open_artifact(tmp_path / "model.moec")
    assert not [one for one in artifact.manifest.remarks if one["message"].startswith("nvcc")]
    for kernel in kernels_of(artifact, artifact.program()).values():
        stacks = [line for line in kernel.source("resources").splitlines() if "stack frame" in line and line[0] != "/"]
        assert stacks and set(stacks) == {SILENT}, f"{kernel.name}: {stacks}"

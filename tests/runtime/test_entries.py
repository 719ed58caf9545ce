"""Records that describe an artifact to people: a field that is used but missing, or of another type, is refused when
the manifest is read."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any

import pytest

from moec.common.errors import ArtifactError
from moec.runtime.artifact import open_artifact
from moec.runtime.manifest import MANIFEST

from .forged_manifests import signed


def changed(path: pathlib.Path, place: tuple[Any, ...], value: Any) -> pathlib.Path:
    """Set a place of the manifest to a value, or remove it where that is ``...``, and sign it again."""
    content = json.loads((path / MANIFEST).read_text())
    *above, last = place
    record: Any = content
    for key in above:
        record = record[key]
    if value is ...:
        del record[last]
    else:
        record[last] = value
    (path / MANIFEST).write_text(signed(content))
    return path


KERNEL = ("programs", 0, "kernels", 0)
BLOCK = ("moe_blocks", 0)
EVIDENCE = ("raised", 0, "evidence")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ((*KERNEL, "crossovers"), ...),
        ((*KERNEL, "crossovers"), [1]),
        ((*KERNEL, "candidates", 0, "chosen"), ...),
        ((*KERNEL, "candidates", 0, "reason"), None),
        (("remarks", 0, "severity"), ...),
        (("remarks", 0, "message"), {}),
        ((*BLOCK, "formats"), ...),
        ((*BLOCK, "formats"), {"up": [1]}),
        ((*BLOCK, "num_experts"), "8"),
        ((*BLOCK, "gate_layout"), ...),
        ((*BLOCK, "experts"), {"arithmetic": "float32", "activation_group": 0}),
        ((*BLOCK, "products"), [{"name": "up"}]),
        ((*BLOCK, "row_bytes"), {"out": 8}),
        ((*BLOCK, "block"), 1),
        (("raised", 0, "evidence"), None),
        ((*EVIDENCE, "trials", 0, "tokens"), "4"),
        ((*EVIDENCE, "decisions", 0, "sides", 0, "seen"), ...),
        (("unraised", 0, "attempts", 0, "reason"), []),
    ],
)
def test_what_is_missing_or_of_another_type(artifact_path: Any, tmp_path: pathlib.Path, place: Any, value: Any) -> None:
    shutil.copytree(artifact_path, tmp_path / "a")
    with pytest.raises(
        ArtifactError,
        match=r"json: (programs|remarks|moe_blocks|(un)?raised)\[0\]\..* is .*expected .*; compile the model again$",
    ):
        open_artifact(changed(tmp_path / "a", place, value))


def test_records_that_are_right(artifact_path: Any, tmp_path: pathlib.Path) -> None:
    """Unknown sizes are null; blocks over dispatched rows have products instead of experts."""
    shutil.copytree(artifact_path, tmp_path / "a")
    changed(tmp_path / "a", (*BLOCK, "top_k"), None)
    changed(tmp_path / "a", (*BLOCK, "products"), [{"name": "up", "inputs": 3, "outputs": None}])
    changed(tmp_path / "a", (*BLOCK, "row_bytes"), {"out": 24, "back": 16})
    experts = {"arithmetic": "int8", "activation_group": 32, "hidden_sizes": [1, 2]}
    assert open_artifact(changed(tmp_path / "a", (*BLOCK, "experts"), experts)).manifest.moe_blocks[0]["top_k"] is None


def test_what_is_no_file_is_refused(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe.zip")
    for path in (tmp_path / "pipe.zip", pathlib.Path("/dev/zero")):
        with pytest.raises(ArtifactError, match="is neither a folder nor a plain file"):
            open_artifact(path)

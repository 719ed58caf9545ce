"""Every exported model of a folder outside the repository: is profiled, specialised by that profile in every way, and
computes what the reference interpreter says that the specialised graph does.

An extra beside ``test_zoo.py``, of the same folder, in nightly runs. ``MOEC_ZOO_TABLE`` names a file that gets a line
for each model and pass: ok, or why it was refused. A refusal is a ``MoecError``, and no defect.
"""

from __future__ import annotations

import os
import pathlib

import numpy as np
import pytest

import moec
from moec.checking.comparison import compare, tolerance_of
from moec.common.errors import DefectError, MoecError, VerificationError
from moec.compiling import compiler
from moec.ir import interpreter
from moec.passes import pipeline
from moec.tools.profiling import profile
from moec.tools.verify import ROUNDED_TOLERANCES

from .test_zoo import MODELS

TABLE = os.environ.get("MOEC_ZOO_TABLE", "")
PASSES = {
    "assign-bits": "assign-bits{avg=3.5,profile=PROFILE}",
    "gptq": "quantize-experts{format=int4,method=gptq,profile=PROFILE}",
    "gptq of linears": "quantize-linears{format=int8,method=gptq,profile=PROFILE}",
    "prune-experts": "prune-experts{keep=0.5,method=reap,profile=PROFILE}",
    "merge-experts": "merge-experts{keep=0.5,profile=PROFILE}",
    "prune-hidden-units": "prune-hidden-units{keep=0.75,profile=PROFILE}",
    "skip-experts": "skip-experts{keep=0.8,profile=PROFILE}",
}

pytestmark = [pytest.mark.slow, pytest.mark.nightly]


@pytest.mark.skipif(bool(MODELS), reason="there is a zoo")
def test_there_is_a_zoo() -> None:
    pytest.skip("specialising exported models was skipped: set MOEC_ZOO to a folder of models to run it")


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("profiles")


def profile_of(folder: pathlib.Path, profiles: pathlib.Path) -> pathlib.Path:
    """Raises MoecError for a model without anything to measure."""
    built = profiles / f"{folder.name}.moeprof"
    if not built.exists():
        profile(folder / "model.onnx", inputs_of(folder), built)
    return built


def inputs_of(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.glob("inputs*.npz"))


def note(folder: pathlib.Path, name: str, outcome: str) -> None:
    if TABLE:
        with pathlib.Path(TABLE).open("a") as table:
            table.write(f"{folder.name}\t{name}\t{outcome}\n")


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_specialised(folder: pathlib.Path, name: str, profiles: pathlib.Path) -> None:
    source = str(folder / "model.onnx")
    try:
        passes = f"O2,{PASSES[name].replace('PROFILE', str(profile_of(folder, profiles)))}"
        model = moec.compile(source, passes=passes)
    except MoecError as error:
        note(folder, name, f"{type(error).__name__}: {error}")
        assert not isinstance(error, (DefectError, VerificationError))
        return
    graph = compiler.import_model(source)
    arithmetics = [ROUNDED_TOLERANCES[loss["arithmetic"]] for loss in model.describe()["losses"]]
    tolerance = max(tolerance_of(graph), *arithmetics, 0.0)
    pipeline.run(graph, pipeline.parse(passes))
    for path in inputs_of(folder):
        feeds = dict(np.load(path))
        result, expected = model.run(feeds), interpreter.run(graph, feeds)
        for output, expected_output in expected.items():
            difference = compare(output, result[output], expected_output, tolerance)
            if not difference.matches:
                note(folder, name, f"DIFFERS: {path.name} {difference}")
            assert difference.matches
    note(folder, name, "ok")

"""Sessions on a GPU, emulated: their memory, and what they copy."""

from __future__ import annotations

import shutil

import numpy as np
import onnx.parser
import pytest

import moec
from moec.runtime.held import PAGE
from moec.runtime.model import CompiledModel
from moec.simulators.cuda.driver import emulated_driver
from moec.targets.cuda import nvcc

from .emulated_gpu import Calls

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="emulation needs g++")

VOCABULARY = 37
HIDDEN = 14 * VOCABULARY
TABLE = ",".join(str(round(np.sin(3 * n), 3)) for n in range(VOCABULARY * 8))
TEXT = f"""<ir_version: 10, opset_import: ["" : 24]>
g (int64[B,S] ids, float[B,1,P,8] k, float[B,1,P,8] v)
    => (float[B,S,{VOCABULARY}] logits, float[B,1,R,8] pk, float[B,1,R,8] pv)
    <float[{VOCABULARY},8] table = {{{TABLE}}}, int64[1] one = {{1}}> {{
    e = Gather (table, ids)
    x = Unsqueeze (e, one)
    y, pk, pv = Attention <is_causal = 1> (x, x, x, "", k, v)
    z = Squeeze (y, one)
    across = Transpose <perm = [1, 0]> (table)
    wide = Concat <axis = 1> ({", ".join(["across"] * 14)})
    tall = Concat <axis = 0> ({", ".join(["table"] * 14)})
    hidden = MatMul (z, wide)
    positive = Relu (hidden)
    joined = MatMul (positive, tall)
    logits = MatMul (joined, across)
}}"""
IDS = np.random.default_rng(0).integers(0, VOCABULARY, (1, 600))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    path = tmp_path_factory.mktemp("sessions") / "art"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvcc, "find_tool", lambda _name: None)
        moec.compile(onnx.parser.parse_model(TEXT), target="cuda", output=path, emulate=True)
    return path


@pytest.fixture(scope="module")
def model(artifact) -> CompiledModel:
    return moec.load(artifact, emulate=True)


def test_prompts_of_many_lengths_share_memory(model):
    """The pool keeps blocks of few sizes, so that it stops to grow, and no run allocates when all sizes have come."""

    def allocated_by(lengths: range) -> int:
        with Calls() as calls:
            for length in lengths:
                session = model.session(max_tokens=PAGE)
                session.run(IDS[:, :length], last=None)
        return calls["cudaMalloc"] - len(lengths) * len(model.states)

    before = emulated_driver().free_memory()
    assert 0 < allocated_by(range(50, 1, -2)) < 25
    assert before - emulated_driver().free_memory() < 4 * 2 * 50 * HIDDEN * 4
    assert allocated_by(range(51, 2, -2)) == 0, "other lengths of the same powers of two"

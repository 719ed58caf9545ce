"""Generated C++ compiles without a warning: what a compiler finds doubtful is a fault, or hides one."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess

import numpy as np
import pytest

from moec.simulators.hls.build import ap_types
from moec.targets.hls.model.design import model_design
from moec.targets.hls.model.project import model_files

from . import model_layers

FLAGS = ("-std=c++14", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-label", "-fsyntax-only")
"""Pragmas and labels of loops are for synthesis."""


def vision(**sizes):
    plan = model_layers.plan(**sizes)
    image = np.random.default_rng(0).uniform(-1, 1, plan.patches.shape)
    return plan, plan.input_steps(image)


def decoder(width):
    plan = model_layers.decoder_plan(classes=40, width=width)
    return plan, plan.token_rows[:12]


CASES = {
    "vision": (vision, {}, {}),
    "groups": (vision, {"last": [model_layers.gated_block(32, group=32)], "tokens": 9}, {"hidden_tile": 32}),
    "decoder": (decoder, {"width": 24}, {}),
    "stripes": (decoder, {"width": 64}, {"lanes": 32, "hidden_tile": 64, "attention_lanes": 32, "masters": (4, 2)}),
}


@pytest.mark.nightly
@pytest.mark.skipif(
    shutil.which("g++") is None or importlib.util.find_spec("hls4ml") is None, reason="g++ or hls4ml is not installed"
)
@pytest.mark.parametrize("case", CASES)
def test_sources_compile_without_warnings(case, tmp_path):
    made, sizes, numbers = CASES[case]
    plan, steps = made(**sizes)
    design = model_design(plan, **{"lanes": 8, "hidden_tile": 16, "router_lanes": 4, "attention_lanes": 8, **numbers})
    assert design.why_not() is None
    for path, content in model_files(design, plan, steps, device="xcu55c-fsvh2892-2L-e", clock=300).items():
        if path.startswith(("src/", "sim/")):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(content)
    headers = [f"-I{tmp_path / 'sim'}", "-isystem", str(ap_types())]
    for source in ("model.cpp", "testbench.cpp"):
        command = ["g++", *FLAGS, *headers, str(tmp_path / "src" / source)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

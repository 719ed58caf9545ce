"""Generated C++ compiles without warnings, since doubtful code is a fault or hides one."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess

import numpy as np
import pytest

from moec.simulators.hls.build import ap_types
from moec.targets.hls.attention.quantize import quantize_attention
from moec.targets.hls.model.design import model_design
from moec.targets.hls.model.project import model_files

from . import model_layers
from .test_attention import files_of, tokens_for
from .test_latents import FORMS, with_latents

FLAGS = ("-std=c++14", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-label", "-fsyntax-only")
"""Compiler options; pragmas and labels of loops are for synthesis, so unknown and unused ones are fine."""


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


NEEDS_COMPILER = pytest.mark.skipif(
    shutil.which("g++") is None or importlib.util.find_spec("hls4ml") is None, reason="g++ or hls4ml is not installed"
)


@pytest.mark.nightly
@NEEDS_COMPILER
@pytest.mark.parametrize("case", CASES)
def test_sources_compile_without_warnings(case, tmp_path):
    make, sizes, numbers = CASES[case]
    plan, steps = make(**sizes)
    design = model_design(plan, **{"lanes": 8, "hidden_tile": 16, "router_lanes": 4, "attention_lanes": 8, **numbers})
    assert design.why_not() is None
    files = model_files(design, plan, steps, device="xcu55c-fsvh2892-2L-e", clock=300)
    expect_no_warnings(files, ("model.cpp", "testbench.cpp"), tmp_path)


@pytest.mark.nightly
@NEEDS_COMPILER
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_latents_compile_without_warnings(form, tmp_path):
    block = with_latents(**form)
    integers = quantize_attention(block, tokens_for(block, 1, 20), most_tokens=8, cached=20)
    files = files_of(integers, integers.quantized(tokens_for(block, 1, 3)[0]), lanes=8)
    expect_no_warnings(files, ("model.cpp", "testbench.cpp"), tmp_path)


def expect_no_warnings(files, sources, folder):
    for path, content in files.items():
        if path.startswith(("src/", "sim/")):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
    headers = [f"-I{folder / 'sim'}", "-isystem", str(ap_types())]
    for source in sources:
        command = ["g++", *FLAGS, *headers, str(folder / "src" / source)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

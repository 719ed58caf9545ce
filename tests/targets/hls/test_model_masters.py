"""Weights of whole models, striped over AXI masters."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil

import numpy as np
import pytest

from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.simulators.hls.simulator import simulate_timed
from moec.targets.hls.attention.quantize import QuantizedAttention, quantize_attention
from moec.targets.hls.hardware.parts import find_part
from moec.targets.hls.hardware.ports import model_ports
from moec.targets.hls.model.design import model_design
from moec.targets.hls.model.estimate import estimate_model, loads_of
from moec.targets.hls.model.masters import with_masters
from moec.targets.hls.model.project import model_files
from moec.targets.hls.model.quantize import planned
from moec.targets.hls.moe.exploration import Constraints
from moec.targets.hls.moe.quantize import quantize

from . import model_layers
from .layers import float_block
from .lint.linter import lint
from .test_attention import decoder

WIDTH, CACHED = 256, 4


@pytest.fixture(scope="module")
def plan():
    """A plan of a layer of attention and a layer of 4 experts, all of which every token uses; tokens come one by
    one."""
    stream = np.random.default_rng(3).normal(0, 1, (1, CACHED, WIDTH)).astype(np.float32)
    scale = model_layers.STREAM_SCALE
    attention = quantize_attention(decoder(64, width=WIDTH), stream, most_tokens=1, cached=CACHED, stream_scale=scale)
    experts = float_block(RouteSpec(4, normalize=True), ExpertsSpec("silu", "gate_up"), 4, WIDTH, 256)
    experts = dataclasses.replace(experts, norm=dataclasses.replace(model_layers.norm(WIDTH), kind="rms"))
    layer = quantize(experts, stream.reshape(-1, WIDTH), most_tokens=1, stream_scale=scale)
    return planned("decoder", 1, scale, None, None, [attention, layer], [])


def files_of(plan, masters):
    steps = np.random.default_rng(0).integers(-4000, 4000, (CACHED, plan.width)).astype(np.int16)
    design = model_design(plan, 16, 64, 8, masters=masters)
    return design, model_files(design, plan, steps, device=find_part("u55c").device, clock=300)


def counted(data):
    """The number of occurrences of each byte value, except zeros, which pad."""
    return np.bincount(np.frombuffer(data, np.uint8), minlength=256)[1:]


def test_stripes_are_at_one_place_and_attention_comes_behind_them(plan):
    _, plain = files_of(plan, (1, 1))
    design, files = files_of(plan, (8, 4))
    assert lint(files) == []
    records = np.frombuffer(files["data/layers.bin"], "<i4").reshape(-1, 2, 32)[0]
    up_at, down_at = 16, 17
    (attention,) = [place for place, item in enumerate(plan.layers) if isinstance(item, QuantizedAttention)]
    for matrix, count, at in (("up", 8, up_at), ("down", 4, down_at)):
        stripes = [files[f"data/{matrix}_{place}.bin"] for place in range(count)]
        assert f"data/{matrix}.bin" not in files
        begin = 64 * int(records[attention, at])
        assert records[1 - attention, at] == 0
        assert {len(item) for item in stripes[1:]} == {begin}
        assert plain[f"data/{matrix}.bin"].endswith(stripes[0][begin:])  # the weights of attention
        assert np.array_equal(counted(b"".join(stripes)), counted(plain[f"data/{matrix}.bin"]))
    assert "gmem_down_3:HBM[11]" in files["link.cfg"].decode()
    assert design.why_not() is None


def test_as_many_masters_as_single_tokens_gain_from(plan):
    steps = np.zeros((1, plan.width), np.int16)
    chosen = {}
    for name in ("u55c", "zcu102"):
        part, loads = find_part(name), loads_of(plan, steps)
        plain = estimate_model(model_design(plan, 16, 64, 8), plan, loads, part, 300)
        actual = with_masters(plain, plan, loads, part, Constraints())
        chosen[name] = (actual.design.experts.masters_up, actual.design.experts.masters_down)
        assert actual.cycles.total <= plain.cycles.total
    assert chosen == {"u55c": (8, 4), "zcu102": (1, 1)}


def test_masters_of_a_model_have_ports_of_their_own(plan):
    design = model_design(plan, 16, 64, 8, masters=(8, 4))
    ports = model_ports(find_part("u55c").memory, design.attention.shape, design.experts)
    weights = [port for master, port in ports.items() if master.startswith(("gmem_up", "gmem_down"))]
    others = {port for master, port in ports.items() if not master.startswith(("gmem_up", "gmem_down"))}
    assert len(set(weights)) == 12 and not others & set(weights)


@pytest.mark.nightly
@pytest.mark.skipif(
    shutil.which("g++") is None or importlib.util.find_spec("hls4ml") is None, reason="g++ or hls4ml is not installed"
)
def test_striped_weights_give_the_same_tokens_faster(plan):
    cycles = []
    for masters in ((1, 1), (8, 4)):
        _, files = files_of(plan, masters)
        timed = simulate_timed(files, memory_share=0.75, pipeline_depth=20)
        assert "PASS: 2 layers" in timed.output
        cycles.append(timed.cycles)
    assert cycles[1] < 0.5 * cycles[0]

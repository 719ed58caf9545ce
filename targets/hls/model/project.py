"""The files of a generated project: a whole model, or a block, which is a model of one layer.

| path | contents |
|---|---|
| ``src/model.cpp``, ``src/model_*.h`` | generated: the top function with its kernels, constants and tables |
| ``src/moec/`` | the header library of processes, the same for all models |
| ``src/testbench.cpp``, ``data/`` | weights, inputs, the output of every layer: :mod:`moec.targets.hls.model.packing` |
| ``data/embedding.bin`` | for a decoder that takes token ids: the row of the stream of each, int16 [V, width] |
| ``sim/hls_stream.h`` | a model of the vendor's streams, for C simulation with any compiler |
| ``Makefile``, ``hls_config.cfg``, ``run_hls.tcl`` | C simulation anywhere; synthesis where Vitis is |
| ``link.cfg`` | the memory port of each AXI master |
| ``host.py`` | of a block, floats to its tokens and back; of a model, loads the binary, checks it, and runs it |
| ``compare_report.py`` | compares ``estimate.json`` with a synthesis report |
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

from moec.targets.base import Project
from moec.targets.hls.attention.channels import attention_channels
from moec.targets.hls.attention.quantize import QuantizedAttention
from moec.targets.hls.attention.resources import attention_memories, power_copies
from moec.targets.hls.design.channels import channels_of
from moec.targets.hls.design.normalization import inverse_roots
from moec.targets.hls.design.numbers import BEAT_BYTES, FRACTION_BITS
from moec.targets.hls.hardware.configuration import LEAST_VERSION
from moec.targets.hls.hardware.memories import Memory, memories_of
from moec.targets.hls.hardware.parts import find_part
from moec.targets.hls.hardware.ports import attention_masters, masters_of, model_ports, port_names
from moec.targets.hls.model import packing
from moec.targets.hls.model.design import ModelDesign, attention_widths, experts_widths
from moec.targets.hls.model.files import CLOCK_UNCERTAINTY, bound_channels, library_files, listed, render, repeated
from moec.targets.hls.model.plan import ModelPlan
from moec.targets.hls.moe.quantize import power_table, sigmoid_table

Array = np.ndarray[Any, Any]

TOP = "model"
_TEMPLATES = {
    "model_config.h.j2": "src/model_config.h",
    "model_tables.h.j2": "src/model_tables.h",
    "model.cpp.j2": "src/model.cpp",
    "testbench.cpp.j2": "src/testbench.cpp",
    "README.md.j2": "README.md",
    "hls_config.cfg.j2": "hls_config.cfg",
    "link.cfg.j2": "link.cfg",
    "run_hls.tcl.j2": "run_hls.tcl",
    "Makefile.j2": "Makefile",
}


def model_files(
    design: ModelDesign,
    plan: ModelPlan,
    steps: Array,
    *,
    device: str,
    clock: float,
    top: str = TOP,
    routing: str = "",
    experts: str = "of all layers",
) -> dict[str, bytes]:
    """The contents of a project's files by path. ``steps``: the inputs of one image, from
    :meth:`ModelPlan.input_steps`, which the testbench runs; ``clock``: in MHz; ``top``: the name of the
    kernel; ``routing``, ``experts``: words for comments."""
    data = packing.pack_model(design, plan, steps)
    context = {
        **_context(design, plan, data),
        **_experts_context(design, plan, routing, experts),
        **_attention_context(design, plan),
        "ports": _ports(design, device),
        "top": top,
        "device": device,
        "clock": clock,
    }
    files = {path: render(template, context) for template, path in _TEMPLATES.items()}
    if plan.patches is not None:
        data["patches.bin"] = plan.patches.places.astype("<i4").tobytes()
    if plan.token_rows is not None:
        data["embedding.bin"] = plan.token_rows.astype("<i2").tobytes()
    if not design.is_block:
        data["layout.json"] = json.dumps(_layout(design, plan), indent=1).encode()
    return {
        **files,
        "host.py": render(_host(design), context),
        **library_files(_memories(design)),
        **{f"data/{name}": content for name, content in data.items()},
    }


def estimated_project(name: str, files: dict[str, bytes], estimate: dict[str, Any], report: dict[str, Any]) -> Project:
    """The project with its estimate added to the files and to the ``report``, which names the node."""
    files = {**files, "estimate.json": json.dumps(estimate, indent=1).encode()}
    return Project(name, files, {**report, "estimate": estimate})


def _host(design: ModelDesign) -> str:
    if design.is_block:
        return "block_host.py.j2"
    return "decoder_host.py.j2" if design.is_decoder else "model_host.py.j2"


def _memories(design: ModelDesign) -> list[Memory]:
    """The memories to bind. Processes of both kernels are bound once, to the storage of the kernel of experts."""
    experts = [] if design.moe is None else memories_of(design.moe)
    attention = [] if design.attention is None else attention_memories(design.attention)
    bound = {memory.process for memory in experts}
    return [*experts, *(memory for memory in attention if memory.process not in bound)]


def _ports(design: ModelDesign, device: str) -> dict[str, str]:
    """The memory port of each master. The streams of a block are buffers of their own, so their masters need not share
    a port."""
    memory, attention = find_part(device).memory, design.attention
    if not design.is_block:
        return model_ports(memory, None if attention is None else attention.shape, design.experts)
    return port_names(memory, masters_of(design.experts) if attention is None else attention_masters(attention.shape))


def _context(design: ModelDesign, plan: ModelPlan, data: dict[str, bytes]) -> dict[str, Any]:
    """The variables of templates that all kinds of projects have."""
    places, (up, down) = packing.stream_places(design, plan), packing.stripes(design)
    numbers = packing.layer_numbers(design, plan, plan.layers[0]) if design.is_block else {}
    calls = ("kind", "tokens", "streamed", "rows")
    return {
        "name": plan.name,
        "summary": summary(plan),
        "plan": plan,
        "shifts": plan.shifts,
        "model": design,
        "constants": {name: int(value) for name, value in numbers.items() if name not in calls},
        "depth": {
            **{name.removesuffix(".bin"): max(1, len(content) // BEAT_BYTES) for name, content in data.items()},
            "stream": places.size,
            "cache": _cache_beats(design, plan),
        },
        "places": places,
        "data": "data",
        "fraction_bits": FRACTION_BITS,
        "least_version": LEAST_VERSION,
        "clock_uncertainty": CLOCK_UNCERTAINTY,
        "stripes": [*up, *down],
        "behind": 7 + len(up) + len(down),  # the argument
        "up_ports": [f"{name}_weights" for name in up],
        "down_ports": [f"{name}_weights" for name in down],
        "powers": power_table(),
        "sigmoids": sigmoid_table(),
        "inverse_roots": inverse_roots(),
        "listed": listed,
        "repeated": repeated,
    }


def _experts_context(design: ModelDesign, plan: ModelPlan, routing: str, experts: str) -> dict[str, Any]:
    """The variables of templates about the kernel of experts and linear layers, which an attention block lacks."""
    if design.moe is None:
        return {"design": None, "shape": None}
    shape = design.moe.shape
    return {
        "design": design.moe,
        "shape": shape,
        "widths": experts_widths(plan),
        "patch_beats": max(1, design.patch_beats),
        "channels_moe": channels_of(design.moe),
        "bound_moe": bound_channels(channels_of(design.moe)),
        "routing": routing or f"{shape.scoring} of {shape.experts}, {shape.slots} per token",
        "experts": experts,
        "score_copies": -(-(shape.slots + 1) // 2),
    }


def _attention_context(design: ModelDesign, plan: ModelPlan) -> dict[str, Any]:
    """The variables of templates about the kernel of attention, which a model may lack."""
    attention = design.attention
    channels = [] if attention is None else attention_channels(attention)
    return {
        "attention": attention,
        "attention_widths": attention_widths(plan),
        "attention_copies": 0 if attention is None else power_copies(attention),
        "channels_attention": channels,
        "bound_attention": bound_channels(channels),
        "turned": attention is not None and attention.shape.turned,
        "cached": attention is not None and attention.shape.cached > 0,
    }


def _cache_beats(design: ModelDesign, plan: ModelPlan) -> int:
    """Beats of the cache of keys, or of values, of all layers."""
    layers = sum(isinstance(layer, QuantizedAttention) for layer in plan.layers)
    return 0 if design.attention is None else layers * design.attention.cache_beats


def summary(plan: ModelPlan) -> str:
    """A description of the model in words."""
    kinds = [type(layer).__name__.removeprefix("Quantized").lower() for layer in plan.layers]
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    names = {"linear": "linear", "attention": "attention", "block": "experts"}
    layers = ", ".join(f"{count} of {names[kind]}" for kind, count in counts.items())
    through = f"{len(kinds)} layers: {layers}" if plan.layers[1:] else f"a layer of {names[kinds[0]]}"
    return f"{plan.tokens} tokens of {plan.width} channels through {through}"


def _layout(design: ModelDesign, plan: ModelPlan) -> dict[str, Any]:
    """The layout of memory for the host program; places are in beats."""
    patches = plan.patches
    return {
        **dataclasses.asdict(packing.stream_places(design, plan)),
        "beat": BEAT_BYTES,
        "layers": design.layers,
        "tokens": plan.tokens,
        "width": plan.width,
        "padded_width": design.width,
        "tile": design.experts.hidden_tile,
        "classes": plan.classes,
        "heads": len(plan.heads),
        "ids": 0 if plan.token_rows is None else len(plan.token_rows),
        "rows": plan.output_rows,
        "positions": plan.tokens if design.attention is None else design.attention.shape.positions,
        "cache_bytes": _cache_beats(design, plan) * BEAT_BYTES,
        "output_scale": plan.output_scale,
        "stream_scale": plan.stream_scale,
        "image": None if patches is None else list(patches.shape),
        "patch_width": design.patch_width,
        "scale": None if patches is None else patches.scale,
        "offset": None if patches is None else patches.offset,
    }

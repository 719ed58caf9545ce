"""The files of a whole model's project, like those of ``moe/project.py`` and with the same library.

| path | contents |
|---|---|
| ``src/model.cpp``, ``src/model_*.h`` | generated: the top function with both kernels, constants and tables |
| ``data/`` | weights and layers, one image and the output of every layer: :mod:`moec.targets.hls.model.packing` |
| ``data/embedding.bin`` | for a decoder that takes token ids: the row of the stream of each, int16 [V, width] |
| ``host.py`` | images to labels, or tokens through a decoder: loads the binary, checks it, and runs it |
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

from moec.targets.hls.attention.channels import attention_channels
from moec.targets.hls.attention.quantize import QuantizedAttention
from moec.targets.hls.attention.resources import attention_memories, power_copies
from moec.targets.hls.design.normalization import inverse_roots
from moec.targets.hls.design.numbers import BEAT_BYTES, FRACTION_BITS, MOST_STAGES
from moec.targets.hls.hardware.configuration import LEAST_VERSION
from moec.targets.hls.hardware.memories import Memory, memories_of
from moec.targets.hls.hardware.parts import find_part
from moec.targets.hls.hardware.ports import model_ports
from moec.targets.hls.model import packing
from moec.targets.hls.model.channels import experts_channels
from moec.targets.hls.model.design import ModelDesign, attention_wires, experts_wires
from moec.targets.hls.model.plan import ModelPlan
from moec.targets.hls.moe.project import CLOCK_UNCERTAINTY, bound_channels, library_files, listed, render, repeated
from moec.targets.hls.moe.quantize import power_table, sigmoid_table

Array = np.ndarray[Any, Any]

TOP = "model"
_TEMPLATES = {
    "model_config.h.j2": "src/model_config.h",
    "model_tables.h.j2": "src/model_tables.h",
    "model.cpp.j2": "src/model.cpp",
    "model_testbench.cpp.j2": "src/testbench.cpp",
    "model_readme.md.j2": "README.md",
    "model_host.py.j2": "host.py",
    "hls_config.cfg.j2": "hls_config.cfg",
    "link.cfg.j2": "link.cfg",
    "run_hls.tcl.j2": "run_hls.tcl",
    "Makefile.j2": "Makefile",
}


def model_files(design: ModelDesign, plan: ModelPlan, steps: Array, *, device: str, clock: float) -> dict[str, bytes]:
    """The contents of a project's files by path. ``steps``: the inputs of one image, from
    :meth:`ModelPlan.input_steps`, which the testbench runs; ``clock``: in MHz."""
    data = packing.pack_model(design, plan, steps)
    context = _context(design, plan, data, device, clock)
    templates = {**_TEMPLATES, **({"decoder_host.py.j2": "host.py"} if design.is_decoder else {})}
    files = {path: render(template, context) for template, path in templates.items()}
    memories = [*memories_of(design.experts), *(() if design.attention is None else _own(design))]
    if plan.patches is not None:
        data["patches.bin"] = plan.patches.places.astype("<i4").tobytes()
    if plan.token_rows is not None:
        data["embedding.bin"] = plan.token_rows.astype("<i2").tobytes()
    return {
        **files,
        **library_files(memories),
        **{f"data/{name}": content for name, content in data.items()},
        "data/layout.json": json.dumps(_layout(design, plan), indent=1).encode(),
    }


def _own(design: ModelDesign) -> list[Memory]:
    """The memories of processes that only the attention kernel has. Processes of both kernels are bound once, to the
    storage of the other one."""
    assert design.attention is not None
    others = {memory.process for memory in memories_of(design.experts)}
    return [memory for memory in attention_memories(design.attention) if memory.process not in others]


def _context(design: ModelDesign, plan: ModelPlan, data: dict[str, bytes], device: str, clock: float) -> dict[str, Any]:
    experts = design.experts
    places, (up, down) = packing.stream_places(design, plan), packing.stripes(design)
    stripes = [*up, *down]
    beats = {
        name: max(1, len(data[f"{name}.bin"]) // BEAT_BYTES)
        for name in ("layers", "norm", "router", *stripes, "turns")
        if f"{name}.bin" in data
    }
    return {
        **_attention_context(design, plan, device),
        "name": plan.name,
        "summary": summary(plan),
        "device": device,
        "clock": clock,
        "top": TOP,
        "plan": plan,
        "layers": design.layers,
        "classes": plan.classes,
        "output_rows": plan.output_rows,
        "design": experts,
        "shape": experts.shape,
        "lanes": experts.lanes_in,
        "items_down_depth": design.items_down_depth,
        "fifos": experts.fifos,
        "wires": experts_wires(plan),
        "patch_beats": max(1, design.patch_beats),
        "depth": {**beats, "stream": places.size, "cache": _cache_beats(design, plan)},
        "is_decoder": design.is_decoder,
        "places": places,
        "data": "data",
        "most_stages": MOST_STAGES,
        "fraction_bits": FRACTION_BITS,
        "least_version": LEAST_VERSION,
        "clock_uncertainty": CLOCK_UNCERTAINTY,
        "bound_moe": bound_channels(experts_channels(design)),
        "stripes": stripes,
        "behind": 7 + len(stripes),  # the argument
        "up_ports": [f"{name}_weights" for name in up],
        "down_ports": [f"{name}_weights" for name in down],
        "routing": f"{experts.shape.scoring} of {experts.shape.experts}, {experts.shape.slots} per token",
        "experts": "of all layers",
        "score_copies": -(-(experts.shape.slots + 1) // 2),
        "powers": power_table(),
        "sigmoids": sigmoid_table(),
        "inverse_roots": inverse_roots(),
        "listed": listed,
        "repeated": repeated,
    }


def _attention_context(design: ModelDesign, plan: ModelPlan, device: str) -> dict[str, Any]:
    """The variables of templates about the attention kernel, which a model may lack, and about ports."""
    attention = design.attention
    shape = None if attention is None else attention.shape
    return {
        "attention": attention,
        "attention_wires": attention_wires(plan),
        "attention_copies": 0 if attention is None else power_copies(attention),
        "bound_attention": [] if attention is None else bound_channels(attention_channels(attention)),
        "turned": shape is not None and shape.turned,
        "cached": shape is not None and shape.cached > 0,
        "ports": model_ports(find_part(device).memory, shape, design.experts),
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
    return f"{plan.tokens} tokens of {plan.width} channels through {len(kinds)} layers: {layers}"


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

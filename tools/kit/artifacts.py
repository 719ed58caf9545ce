"""Whole models of the kit: artifacts of two layers, with the results that the emulator computed."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kit.code import keep_artifact, keep_code
from kit.kernels import MULTIPROCESSORS, add_kernels
from kit.plan import KitPlan, KitStep
from kit.recording import KitCall, TapeRecorder, changed
from kit.tapes import KitStore
from moec.common.errors import MoecError
from moec.compiling.compile_options import CompileOptions
from moec.compiling.compiler import write
from moec.runtime.artifact import open_artifact
from moec.runtime.generation import generate

FAMILIES = ("qwen3_moe", "granitemoe", "gpt_oss", "olmoe", "deepseek_v3")
SIZES: Mapping[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 64,
    "moe_intermediate_size": 64,
    "head_dim": 64,
    "vocab_size": 256,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    "num_experts_per_tok": 4,
}
"""Fields that differ from those of :mod:`tiny_families`: wide enough for tensor cores."""
PASSES = "O2,cast-weights{dtype=bf16,weights=all,minimum=0},join-products"
"""The default pipeline, with products in bfloat16: a folder's are computed in float32, which uses no tensor cores."""
PROMPT, NEW = 56, 8
"""Tokens of the prompt, by which an expert's block has 64 rows and warpgroups multiply it, and tokens that follow."""


def pack_models(store: KitStore, plan: KitPlan, work: pathlib.Path, say: Callable[[str], None], only: str = "") -> None:
    """Pack the models whose names begin with ``only``, and the kernels that layers do not have."""
    seen: set[str] = set()
    for place, name in enumerate(FAMILIES):
        if name.startswith(only):
            say(f"model {name}")
            _save(name, work / name)
            path = work / f"{name}.moec"
            try:
                write(str(work / name), path, CompileOptions(target="cuda:sm_90a", passes=PASSES))
            except MoecError as error:  # a model less is better than no kit
                say(f"no model {name}: {error}")
                plan.left_out[name] = str(error)
                continue
            _pack(name, path, store, plan, seen)
            plan.add(KitStep(2, 10 + place, f"model {name}", "model_step", (name,), 60))


def _save(family: str, folder: pathlib.Path) -> None:
    """Write a random model of two layers in bfloat16, as Hugging Face stores models."""
    import torch
    from tiny_families import families, tiny_config

    kind, model = families()[family]
    config = tiny_config(kind).to_dict()
    config = kind(**{**config, **{name: value for name, value in SIZES.items() if name in config}})
    torch.manual_seed(0)
    module = model(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    module.to(torch.bfloat16).save_pretrained(folder)


def _pack(name: str, path: pathlib.Path, store: KitStore, plan: KitPlan, seen: set[str]) -> None:
    """Pack the artifact with what it computes, and each kernel that a session calls."""
    artifact = open_artifact(path)
    recorder = TapeRecorder(MULTIPROCESSORS[0], execute=True)
    model = recorder.load(artifact)
    keep_code(artifact, recorder, store)
    ids = np.random.default_rng(0).integers(3, 200, (1, PROMPT))
    with recorder.recording(model, largest=None) as calls:
        (generation,) = generate(model, [ids[0].tolist()], max_new_tokens=NEW)
    first: dict[str, dict[int, KitCall]] = {}
    for call in calls:
        if call.launches and changed(call):
            first.setdefault(call.kernel, {MULTIPROCESSORS[0]: call})
    add_kernels(name, artifact, first, store, plan, seen)
    results = {"out_logits": model.run({"input_ids": ids})["logits"]}
    keep_artifact(name, path, {"in_input_ids": ids, **results, "tokens": np.array(generation.ids)}, store)

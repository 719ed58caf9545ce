"""Tiny models with an MTP layer, whose drafts may be certain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from . import tiny_models
from .gguf_files import stored, write_file
from .tiny_models import MODELS, Tiny

NAMES = "glm4moe", "deepseek2", "deepseek2 of keys and values", "qwen3next", "qwen35moe", "qwen35"
LAYER = 2
"""The MTP layer, behind two others."""


def mtp_tiny(name: str, kind: str = "F32", certain: bool | None = None) -> Tiny:
    """A model with an MTP layer. ``certain``: no layer adds anything to the residual stream, and the MTP layer projects
    the embedding alone, so that it predicts what the model will; False: it projects the hidden state alone, so that it
    repeats what the model predicted; None: weights are random."""
    architecture, make, options = MODELS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_models, "LAYERS", LAYER + 1)
        tiny = Tiny(architecture, kind)
        make(tiny, **options)
    width = tiny.sizes.D
    tiny.given["nextn_predict_layers"] = 1
    for part in ("enorm", "hnorm", "shared_head_norm"):
        tiny.norm(f"blk.{LAYER}.nextn.{part}.weight", width)
    tiny.matrix(f"blk.{LAYER}.nextn.eh_proj.weight", width, 2 * width)
    if certain is not None:
        _make_certain(tiny, width, certain)
    return tiny


def _make_certain(tiny: Tiny, width: int, certain: bool) -> None:
    for name, tensor in tiny.tensors.items():
        if "attn_output" in name or "ffn_down" in name or "ssm_out" in name:
            tiny.tensors[name] = stored(np.zeros(tensor.shape), tiny.kind)
        elif "_norm.weight" in name or "norm.weight" in name:
            tiny.tensors[name] = stored(np.ones(tensor.shape))
    halves = np.eye(width), np.zeros((width, width))
    projection = np.hstack(halves if certain else halves[::-1])
    tiny.tensors[f"blk.{LAYER}.nextn.eh_proj.weight"] = stored(projection, tiny.kind)


def write_mtp(path: Path, name: str, certain: bool | None = None, kind: str = "F32", **changes: Any) -> Path:
    """Write such a model; ``changes``: hyperparameters and tensors by name, None for those that are left out."""
    tiny = mtp_tiny(name, kind, certain)
    for key, value in changes.items():
        target: dict[str, Any] = tiny.tensors if key.startswith("blk.") else tiny.given
        target[key] = value
        if value is None:
            del target[key]
    return write_file(path, tiny.metadata(), tiny.tensors)

"""Tiny models of transformers with random weights, as folders."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

import moec

torch = pytest.importorskip("torch", reason='needs the extra "torch": pip install "moec[torch]"')
transformers = pytest.importorskip(
    "transformers", minversion="5.0", reason='needs the extra "torch": pip install "moec[torch]"'
)

SHAPES = ((1, 1), (3, 11), (1, 70))


def mixtral(**changes: Any) -> Any:
    """Make two layers of four experts."""
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 128,
    }  # fmt: skip
    torch.manual_seed(0)
    module = transformers.MixtralForCausalLM(transformers.MixtralConfig(**{**sizes, **changes})).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return module


def rounded(module: Any, dtype: Any) -> Any:
    """Round the parameters of a float32 module to numbers of ``dtype``."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.to(dtype))
    return module


def saved(module: Any, folder: pathlib.Path, **options: Any) -> pathlib.Path:
    module.save_pretrained(folder, **options)
    return folder


def change_config(folder: pathlib.Path, **changes: Any) -> None:
    """Change values in config.json; None removes a key."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def agree(compiled: moec.CompiledModel, module: Any, tolerance: float = 1e-5) -> None:
    for shape in SHAPES:
        ids = np.random.default_rng(shape[1]).integers(0, 64, shape)
        with torch.no_grad():
            expected = module(input_ids=torch.from_numpy(ids), use_cache=False).logits.float().numpy()
        actual = compiled.run({"input_ids": ids})["logits"]
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()))


def blocks(compiled: moec.CompiledModel) -> list[tuple[int, int]]:
    return [(block["num_experts"], block["top_k"]) for block in compiled.describe()["moe_blocks"]]

"""Folders for onnxruntime-genai of every family of Hugging Face models: transformers' greedy tokens, or a refusal."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import numpy as np
import pytest

import moec
from moec.common.errors import UnsupportedError

from .test_genai import generate

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent / "tools"))

import model_families

NO_CACHE = ("deepseek_v4", "minimax_m3_vl", "minimax_m3_vl_text", "qwen4_exp", "qwen4_exp_text")
"""Families whose attention to blocks of keys is exported without a cache."""
OTHER_IN_PARTS = "doge"
"""Family with other logits for a text in parts, and for prompts of a batch, in transformers itself."""
PROMPTS, NEW = (6, 40), 10
"""Lengths: the second is beyond windows, chunks and what indexers choose, which have 16 tokens."""


def greedy(module: Any, prompt: list[int], count: int, in_parts: bool) -> list[int]:
    """Take the best tokens of a text that is run as a whole each time, or in parts with the module's own cache."""
    import torch

    text, new, past = list(prompt), list(prompt), {}
    for _ in range(count):
        with torch.no_grad():
            result = module(input_ids=torch.tensor([new if in_parts else text]), use_cache=in_parts, **past)
        name = "cache" if "cache" in result else "past_key_values"
        past = {name: result[name]} if in_parts else {}
        new = [int(result.logits[0, -1].argmax())]
        text += new
    return text


@pytest.mark.nightly
@pytest.mark.parametrize("family", sorted(model_families.known_rows()))
def test_tokens_are_those_of_transformers(family, tmp_path):
    pytest.importorskip("torch")
    genai = pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai: pip install onnxruntime-genai")
    from tiny_families import random_model, speaking_part

    module = random_model(family)
    module.save_pretrained(tmp_path / "model")
    end = speaking_part(module).get_input_embeddings().weight.shape[0] - 1
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    if family in NO_CACHE:
        with pytest.raises(UnsupportedError, match=r"without a cache.*: --for onnxruntime writes it without$"):
            moec.export(tmp_path / "model", tmp_path / "out", form="genai")
        assert not (tmp_path / "out").exists()
        return
    moec.export(tmp_path / "model", tmp_path / "out", form="genai")
    in_parts = family == OTHER_IN_PARTS
    for length in PROMPTS:
        prompts = np.random.default_rng(length).integers(3, end - 5, (2, length)).tolist()
        batches = [[prompt] for prompt in prompts] if in_parts else [prompts]
        answers = [answer for batch in batches for answer in generate(genai, tmp_path / "out", batch, NEW)]
        for prompt, actual in zip(prompts, answers, strict=True):
            expected = greedy(speaking_part(module), prompt, len(actual) - length, in_parts)
            until = expected.index(end, length) if end in expected[length:] else None
            assert len(actual) > length and actual[:until] == expected[:until]

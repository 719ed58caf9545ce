"""Folders for onnxruntime-genai of Hugging Face models with each kind of state: transformers' greedy tokens."""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import pytest

import moec

from .test_genai import generate

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent / "tools"))


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "lfm2_moe", "minimax", "qwen3_next"])
def test_tokens_are_those_of_transformers(family, tmp_path):
    """Keys and values; those of two widths; states of convolutions, of recurrences, and both."""
    torch = pytest.importorskip("torch")
    genai = pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai: pip install onnxruntime-genai")
    from tiny_families import random_model, speaking_part

    module = random_model(family)
    module.save_pretrained(tmp_path / "model")
    end = module.get_input_embeddings().weight.shape[0] - 1
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    moec.export(tmp_path / "model", tmp_path / "out", form="genai")
    prompts = np.random.default_rng(1).integers(3, end - 5, (2, 6)).tolist()
    for prompt, actual in zip(prompts, generate(genai, tmp_path / "out", prompts, 10), strict=True):
        expected = list(prompt)
        while len(expected) < len(actual):
            with torch.no_grad():
                logits = speaking_part(module)(input_ids=torch.tensor([expected]), use_cache=False).logits
            expected.append(int(logits[0, -1].argmax()))
        assert (
            actual[: expected.index(end)] == expected[: expected.index(end)] if end in expected else actual == expected
        )

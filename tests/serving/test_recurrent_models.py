"""Models with recurrences and convolutions, whose states each run replaces: the server's texts are generate's."""

from __future__ import annotations

import concurrent.futures

import pytest

import moec

from ..frontend.gguf import tiny_models
from ..runtime.tiny_decoder import tiny_hybrid
from .served import NAME, Served, compiled, served

SYSTEM = "you are a kind machine that reads " * 9
"""More tokens than a page."""
PROMPTS = ["hi", SYSTEM, f"{SYSTEM}a", f"{SYSTEM}and answers", "b" * 70, f"{SYSTEM}{SYSTEM}"]
SAMPLED = {"temperature": 1.0, "seed": 3}


def check_texts(model: moec.CompiledModel) -> None:
    """Compare texts of prompts side by side, and of the same ones again, which then share what was computed."""

    def texts(server: Served, prompt: str) -> list[str]:
        asked = {"model": NAME, "prompt": prompt, "max_tokens": 12, "n": 2, **SAMPLED}
        return [choice.text for choice in server.client().completions.create(**asked).choices]

    expected = [
        [text.text for text in moec.generate(model, [prompt] * 2, max_new_tokens=12, **SAMPLED)] for prompt in PROMPTS
    ]
    with served(model, tokens=32 * 256) as server, concurrent.futures.ThreadPoolExecutor(6) as threads:
        for _ in range(2):
            assert list(threads.map(texts, [server] * 6, PROMPTS)) == expected
        asked = {"model": NAME, "prompt": f"{SYSTEM}b", "max_tokens": 1}
        usage = server.client().completions.create(**asked).usage
    assert usage.prompt_tokens_details.cached_tokens == 256
    assert len({text for pair in expected for text in pair}) >= len(PROMPTS)


def test_texts_of_a_recurrent_model_are_those_of_generate(tmp_path):
    check_texts(compiled(tmp_path, tiny_hybrid()))


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["qwen3next", "lfm2moe"])
def test_texts_of_files_of_llama_cpp_are_those_of_generate(name, tmp_path, monkeypatch):
    path = tiny_models.write_model(name, tmp_path / "model.gguf")
    model = compiled(tmp_path, path, tiny_models.VOCABULARY)
    monkeypatch.setattr(model.artifact.manifest.text, "context", None)
    check_texts(model)

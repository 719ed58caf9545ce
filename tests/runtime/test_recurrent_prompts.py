"""Prompts on disk of models with states that each run replaces: the texts without the file, from fewer tokens."""

from __future__ import annotations

import functools

import pytest

import moec
from moec.runtime.sampling import Sampling
from moec.runtime.talk import Talk

from ..frontend.gguf.tiny_models import write_model
from ..serving.served import compiled
from .test_drafts import ended
from .test_saved_sessions import tokens
from .tiny_decoder import tiny_hybrid


@functools.cache
def hybrid():
    return moec.compile(tiny_hybrid())


def prompts():
    """Prompts one after the other, and the tokens that are computed of each before its text."""
    first = tokens(700)
    yield first, [512, 179, 9]
    yield first, [9]
    yield [*first, 3], [10]
    yield [*first, *tokens(20, 1)], [20, 9]
    yield [*first, *tokens(20, 1), *tokens(400, 2)], [313, 87, 9]
    yield first[:650], [512, 129, 9]  # shorter than that of the file
    yield [*first[:600], *tokens(50, 1)], [512, 129, 9]
    yield [*first[:510], *tokens(10, 3)], [512, 8]  # the last part has few tokens, and is computed as one
    yield [*first[:510], *tokens(10, 3), *tokens(20, 4)], [19, 9]
    yield tokens(17, 6), [17]
    yield tokens(18, 6), [9, 9]
    yield [*tokens(9, 6), 5, 6], [11]  # too few tokens behind those of the file
    yield [9], [1]


@pytest.mark.parametrize("drafts", [None, "ngram"])
def test_texts_from_a_file_are_those_without_it(computed, drafts, tmp_path):
    for prompt, runs in prompts():
        computed.clear()
        (cached,) = moec.generate(hybrid(), [prompt], max_new_tokens=6, prompt_cache=tmp_path / "cache", drafts=drafts)
        assert computed[: len(runs)] == runs and computed[len(runs)] <= 8
        (plain,) = moec.generate(hybrid(), [prompt], max_new_tokens=6)
        assert ended(cached) == ended(plain)


def test_states_in_a_file_are_those_of_a_session(tmp_path):
    for length in (18, 40, 512, 513, 520, 521, 700):
        prompt = tokens(length, length)
        moec.generate(hybrid(), [prompt], max_new_tokens=1, prompt_cache=tmp_path / "cache")
        cached, plain = hybrid().session(load=tmp_path / "cache"), hybrid().session()
        kept = cached.length
        assert 0 < length - kept <= 9 and cached.tokens[0].tolist() == prompt[:kept]
        for start in range(0, kept, 512):
            plain.feed(prompt[start : min(start + 512, kept)])
        plain.save(tmp_path / "other")
        assert (tmp_path / "cache").read_bytes() == (tmp_path / "other").read_bytes()


def test_a_prompt_that_the_file_has_leaves_it(tmp_path):
    moec.generate(hybrid(), tokens(40), max_new_tokens=2, prompt_cache=tmp_path / "cache")
    before = (tmp_path / "cache").stat()
    moec.generate(hybrid(), tokens(40), max_new_tokens=2, prompt_cache=tmp_path / "cache")
    assert (tmp_path / "cache").stat().st_mtime_ns == before.st_mtime_ns
    moec.generate(hybrid(), tokens(30), max_new_tokens=2, prompt_cache=tmp_path / "cache")
    assert (tmp_path / "cache").stat().st_mtime_ns != before.st_mtime_ns


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["qwen3next", "lfm2moe", "nemotron_h_moe"])
@pytest.mark.parametrize("passes", ["O2", "O3"])
def test_files_of_llama_cpp(name, passes, tmp_path):
    model = moec.compile(write_model(name, tmp_path / "model.gguf"), passes=passes)
    for count in (30, 30, 60, 45, 600):
        prompt = [token % 40 for token in tokens(count)]
        for options in ({}, {"drafts": "ngram"}):
            (cached,) = moec.generate(
                model, [prompt], max_new_tokens=20, prompt_cache=tmp_path / "cache", temperature=0.9, **options
            )
            (plain,) = moec.generate(model, [prompt], max_new_tokens=20, temperature=0.9)
            assert ended(cached) == ended(plain)


@pytest.mark.nightly
def test_a_conversation_is_the_one_without_a_file(computed, tmp_path):
    model = compiled(tmp_path, tiny_hybrid())

    def answers(file):
        talk = Talk(model, Sampling(), system=None, stops=[], max_new_tokens=9, max_tokens=None, prompt_cache=file)
        return [talk.answer(text, lambda place, text: None).text for text in ("hello there", "and?", "more")]

    expected = answers(None)
    for _ in range(2):
        computed.clear()
        assert answers(tmp_path / "cache") == expected
    assert [count for count in computed if count > 1][-2:] == [9, 9]  # the last prompt begins with that of the file

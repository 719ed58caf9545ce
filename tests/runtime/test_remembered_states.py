"""Drafts of models with states that each run replaces: sessions come back to earlier ones, and texts are the same."""

from __future__ import annotations

import functools
import pathlib

import numpy as np
import onnx.parser
import pytest

import moec
from moec.common.errors import ArtifactError, InputError, RoomError
from moec.runtime.artifact import open_artifact
from moec.runtime.draft_limit import DraftLimit
from moec.runtime.session import Session

from ..frontend.gguf.tiny_models import write_model
from .forged_manifests import rewrite_manifest
from .test_drafts import PROMPT, RECURRENT, both, ended
from .tiny_decoder import VOCABULARY, tiny_hybrid

TOOLS = pathlib.Path(__file__).parents[2] / "tools"


@functools.cache
def hybrid():
    return moec.compile(tiny_hybrid())


def tokens(count, seed=0):
    return [int(token) for token in np.random.default_rng(seed).integers(0, VOCABULARY, count)]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_tokens": 19},
        {"temperature": 0.8, "top_p": 0.9, "seed": 2},
        pytest.param({"temperature": 1.2, "repetition_penalty": 1.3}, marks=pytest.mark.nightly),
    ],
)
def test_texts_are_those_without_drafts(options):
    both(hybrid(), PROMPT, **{"max_new_tokens": 40, **options})


@pytest.mark.nightly
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("name", ["qwen3next", "qwen35moe", "lfm2moe", "nemotron_h_moe"])
@pytest.mark.parametrize("passes", ["O0", "O2", "O3"])
def test_texts_of_files_of_llama_cpp(name, passes, tmp_path):
    model = moec.compile(write_model(name, tmp_path / "model.gguf"), passes=passes)
    prompt = [int(token) for token in np.random.default_rng(0).integers(0, 40, 30)]
    for options in ({}, {"temperature": 0.9}):
        (plain,) = moec.generate(model, [prompt], max_new_tokens=50, **options)
        (drafted,) = moec.generate(model, [prompt], max_new_tokens=50, drafts="ngram", **options)
        assert ended(drafted) == ended(plain) and drafted.drafts.drafted


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5_moe", "lfm2_moe", "nemotron_h", "granitemoehybrid", "jamba"])
def test_texts_of_models_of_transformers(family, monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    from tiny_families import random_model, speaking_part

    monkeypatch.setattr(DraftLimit, "count", lambda limit, kind: min(3, limit._most))
    model = moec.compile(speaking_part(random_model(family)), cache=True)
    if family == "jamba":  # its recurrence is no LinearAttention
        with pytest.raises(InputError, match=r"cannot be truncated: state past_state.*; generate without drafts"):
            moec.generate(model, [PROMPT], drafts="ngram")
        return
    for temperature in (0, 0.5):
        both(model, PROMPT, max_new_tokens=40, temperature=temperature)


def test_a_session_comes_back_to_remembered_states():
    session, other = hybrid().session(), hybrid().session()
    for each in (session, other):
        each.run(tokens(5))
    session.remember()
    for count in (1, 4):
        session.run(tokens(count, seed=1))
    copy = session.fork()
    expected = other.run(tokens(3, seed=2), last=None)
    for each in (session, copy, session):
        each.truncate(5)
        np.testing.assert_array_equal(each.run(tokens(3, seed=2), last=None), expected)


def test_other_lengths_and_states_are_refused():
    session = hybrid().session()
    session.run(tokens(5))
    with pytest.raises(InputError, match="the session cannot be truncated: state conv"):
        session.truncate(4)
    session.remember()
    session.run(tokens(3))
    for length in (0, 4, 6, 7):
        with pytest.raises(InputError, match="the session cannot be truncated: state conv"):
            session.truncate(length)
    sums = moec.compile(onnx.parser.parse_model(RECURRENT)).session()
    sums.run([1, 2])
    sums.remember()
    sums.run([3])
    with pytest.raises(InputError, match="the session cannot be truncated: state kept"):
        sums.truncate(2)


@pytest.mark.usefixtures("always")
def test_a_run_without_room_goes_on_token_by_token(monkeypatch):
    run, refused = Session.run, []

    def without_room(session, ids, **options):
        if np.size(ids) > 2 and session.length >= len(PROMPT):
            refused.append(np.size(ids))
            raise RoomError("no memory")
        return run(session, ids, **options)

    (plain,) = moec.generate(hybrid(), [PROMPT], max_new_tokens=30)
    monkeypatch.setattr(Session, "run", without_room)
    (drafted,) = moec.generate(hybrid(), [PROMPT], max_new_tokens=30, drafts="ngram")
    assert ended(drafted) == ended(plain) and len(refused) <= 4


def test_a_smaller_model_needs_states_that_lose_single_tokens():
    with pytest.raises(InputError, match=r"cannot be truncated: state conv.*; generate without drafts"):
        moec.generate(hybrid(), [PROMPT], max_new_tokens=2, drafts=hybrid())


def test_a_forged_list_of_such_states_is_refused(tmp_path):
    hybrid().save(tmp_path / "model.moec")
    rewrite_manifest(tmp_path / "model.moec", stepwise_states=["key0"])
    with pytest.raises(ArtifactError, match=r"stepwise states are \['key0'\]; each run replaces "):
        open_artifact(tmp_path / "model.moec")


def measured(*steps):
    """A limit after three steps of one token in a second, and after ``steps``: drafts and seconds."""
    limit = DraftLimit()
    for drafted, seconds in ((0, 1.0), (0, 1.0), (0, 1.0), *steps):
        limit.ran(drafted, drafted, seconds)
    return limit


def test_a_step_that_computes_tokens_again_is_one_of_more_tokens():
    limit = measured((1, 1.0), (3, 1.0))
    limit.owe(3)
    limit.ran(0, 0, 1.0)
    assert [(size, count) for size, count, _ in limit.steps] == [(1, 3), (2, 1), (4, 2)]


def test_what_is_computed_again_is_paid_by_the_account():
    limit = measured((1, 1.0))
    assert limit.count("kind") > 1
    limit.owe(1)
    limit.ran(0, 0, 9.0)
    limit.owe(0)
    assert limit.count("kind") == 0

"""Drafts of a model's own MTP layer: the same text, in fewer steps where the layer is right."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

import moec
from moec.common.errors import ArtifactError, MoecError, RoomError
from moec.common.specs import HIDDEN, PREVIOUS_HIDDEN
from moec.runtime.artifact import open_artifact
from moec.runtime.draft_limit import DraftLimit
from moec.runtime.mtp_drafts import MtpDrafts
from moec.runtime.run_memory import LEAST_TOKENS
from moec.runtime.session import Session

from ..frontend.gguf.mtp_models import write_mtp
from ..frontend.gguf.tiny_models import VOCABULARY
from .forged_manifests import manifest_of, rewrite_manifest
from .test_drafts import LAST_ALONE, ended

PROMPT = [3, 7, 9, 4, 11]


@functools.cache
def model_of(name="glm4moe", certain=None, **options):
    with tempfile.TemporaryDirectory() as folder:
        return moec.compile(write_mtp(Path(folder, "model.gguf"), name, certain), drafts="mtp", **options)


def both(model, prompt, **options):
    (plain,) = moec.generate(model, [prompt], **options)
    (drafted,) = moec.generate(model, [prompt], drafts="mtp", **options)
    assert ended(drafted) == ended(plain)
    return drafted


def test_tables_of_the_vocabulary_are_stored_once():
    manifest = model_of(certain=True).artifact.manifest
    names = [weight.name for weight in manifest.weights]
    assert sum(name.startswith("token_embd") for name in names) == 1
    assert sum(name.startswith("output.weight") for name in names) == 1
    assert [spec.name for spec in manifest.mtp.inputs][:2] == ["input_ids", PREVIOUS_HIDDEN]
    assert {HIDDEN, "logits"} <= {spec.name for spec in manifest.outputs} & {spec.name for spec in manifest.mtp.outputs}


@pytest.mark.parametrize("options", [{}, {"max_tokens": 19}, {"max_new_tokens": 6}])
def test_right_drafts_save_steps(always, options):
    figures = both(model_of(certain=True), PROMPT, **{"max_new_tokens": 40, **options}).drafts
    assert figures.accepted == figures.drafted > 0
    expected = {"max_tokens": 13, "max_new_tokens": 5}.get(next(iter(options), ""), 39)
    computed = sum(count for _, count, _ in figures.steps) + figures.accepted
    assert computed in (expected, expected + 1)


@pytest.mark.parametrize("name", [None, pytest.param("deepseek2", marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 2.0},
        {"temperature": 0.7, "top_p": 0.9, "seed": 2},
        {"temperature": 1.2, "min_p": 0.1, "repetition_penalty": 1.2},
    ],
)
def test_drafts_that_may_be_wrong_write_the_same_texts(always, options, name):
    model = model_of(certain=True) if name is None else model_of(name)
    figures = both(model, PROMPT, max_new_tokens=40, **options).drafts
    assert figures.accepted < figures.drafted


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["glm4moe", "deepseek2 of keys and values", "qwen3next", "qwen35"])
@pytest.mark.parametrize("passes", ["O0", "O2", "O3"])
def test_texts_of_other_kernels_are_the_same(always, name, passes):
    for length in (1, 60, 600):
        prompt = [int(token) for token in np.random.default_rng(length).integers(0, VOCABULARY, length)]
        both(model_of(name, passes=passes), prompt, max_new_tokens=30, temperature=0.8)


@pytest.mark.parametrize("length", [1, LEAST_TOKENS + 1, 2 * LEAST_TOKENS])
def test_prompts_run_in_parts(monkeypatch, length):
    monkeypatch.setattr(DraftLimit, "count", lambda limit, kind: min(2, limit._most))
    figures = both(model_of(certain=True), [5] * length, max_new_tokens=9).drafts
    assert figures.accepted == figures.drafted > 0


@pytest.mark.nightly
def test_right_drafts_of_a_recurrent_model_save_steps(always):
    figures = both(model_of("qwen35moe", certain=True), PROMPT, max_new_tokens=40).drafts
    assert figures.accepted == figures.drafted > 0


@pytest.mark.nightly
def test_hidden_states_are_those_of_the_model_and_then_of_the_layer():
    """A layer that projects its hidden state alone repeats what the model predicted before."""
    model = model_of(certain=False)
    session = model.session()
    drafts = MtpDrafts(session, model.mtp_session())
    tokens = list(PROMPT)
    for count in (1, 3, 2):
        token = int(np.argmax(drafts.run(tokens[session.length :], last=1)[0, -1]))
        tokens.append(token)
        assert drafts.draft(tokens, count) == [token] * count


@pytest.mark.nightly
def test_a_layer_computes_each_token_once(monkeypatch):
    """Entries of the layer's cache are those of a session that computes the text at once, whatever was drafted."""
    model = model_of("deepseek2")
    monkeypatch.setattr(DraftLimit, "count", lambda limit, kind: min(3, limit._most))
    sources = []
    monkeypatch.setattr(MtpDrafts, "__init__", _noted(MtpDrafts.__init__, sources))
    (text,) = moec.generate(model, [PROMPT], drafts="mtp", max_new_tokens=20)
    (drafts,) = sources
    tokens = [*PROMPT, *text.ids]
    fresh = MtpDrafts(model.session(), model.mtp_session())
    fresh.run(tokens[:-1], last=1)
    count = 4
    assert fresh.draft(tokens, count) == drafts.draft(tokens, count)


def _noted(function, sources):
    def noted(self, *arguments):
        sources.append(self)
        function(self, *arguments)

    return noted


def test_a_prompt_from_a_file_goes_on_with_drafts(monkeypatch, tmp_path):
    monkeypatch.setattr(DraftLimit, "count", lambda limit, kind: min(2, limit._most))
    model, prompt = model_of(certain=True), PROMPT * 20
    for end in ([], [8], [8, 9, 1] * 5):
        (plain,) = moec.generate(model, [prompt + end], max_new_tokens=20)
        (drafted,) = moec.generate(
            model, [prompt + end], max_new_tokens=20, drafts="mtp", prompt_cache=tmp_path / "cache"
        )
        assert ended(drafted) == ended(plain) and drafted.drafts.drafted


def test_a_run_without_room_goes_on_without_drafts(always, monkeypatch):
    run, refused = Session.run_hidden, []

    def without_room(session, ids, **options):
        if np.size(ids) > 2 and session.length >= len(PROMPT) and "previous_hidden" not in options:
            refused.append(np.size(ids))
            raise RoomError("no memory")
        return run(session, ids, **options)

    monkeypatch.setattr(Session, "run_hidden", without_room)
    figures = both(model_of(certain=True), PROMPT, max_new_tokens=30).drafts
    assert len(refused) <= 2 and figures.accepted


def test_several_prompts_run_one_after_the_other(always):
    model, prompts = model_of(certain=True), [PROMPT, [4], PROMPT * 3]
    plain, drafted = (
        moec.generate(model, prompts, drafts=drafts, max_new_tokens=12, batch=1) for drafts in (None, "mtp")
    )
    assert [ended(text) for text in drafted] == [ended(text) for text in plain]


def test_a_model_without_the_layer_is_refused():
    model = moec.compile(onnx.parser.parse_model(LAST_ALONE))
    assert moec.generate(model, [1], max_new_tokens=1)[0].ids
    with pytest.raises(MoecError, match=r"has no MTP layer; compile it with drafts \(moec compile --drafts mtp\)"):
        moec.generate(model, [1], max_new_tokens=1, drafts="mtp")


@pytest.mark.parametrize("change", ["width", "outputs"])
def test_a_forged_layer_is_refused(change, tmp_path):
    model_of(certain=True).save(tmp_path / "model.moec")
    mtp = manifest_of(tmp_path / "model.moec").mtp
    ids, hidden, *states = mtp.inputs
    wider = dataclasses.replace(hidden, shape=(*hidden.shape[:2], 33))
    without = [spec for spec in mtp.outputs if spec.name != HIDDEN]
    changes = {"inputs": [ids, wider, *states]} if change == "width" else {"outputs": without}
    open_artifact(tmp_path / "model.moec")
    rewrite_manifest(tmp_path / "model.moec", mtp=dataclasses.replace(mtp, **changes))
    with pytest.raises(ArtifactError, match=r"the MTP layer takes previous_hidden.* and gets .*; compile"):
        open_artifact(tmp_path / "model.moec")

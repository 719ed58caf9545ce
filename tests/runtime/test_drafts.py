"""Drafts: the same text in fewer steps, draws of the same distribution, and an end of drafts that lose time."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnx.parser
import pytest
from scipy.stats import chisquare

import moec
from moec.common.errors import InputError, MoecError, RoomError
from moec.runtime import ngrams
from moec.runtime.draft_limit import MOST_DRAFTS, DraftLimit
from moec.runtime.model import CompiledModel
from moec.runtime.ngrams import Ngrams, continued
from moec.runtime.sampling import weights
from moec.runtime.session import Session
from moec.targets.cpu.kernels.attention_problem import FEW_QUERIES

from .bigrams import model_of
from .tiny_decoder import VOCABULARY, tiny_decoder

PROMPT = [3, 7, 9, 3, 7, 9, 3, 7]


@functools.cache
def decoder_of(**options):
    """A decoder whose texts repeat themselves, because it does not tell positions."""
    return moec.compile(tiny_decoder({"x0 = Add (embedded, placed)": "x0 = Identity (embedded)"}), **options)


@pytest.fixture
def decoder():
    return decoder_of()


def both(model, prompt, **options):
    """The text of a prompt without drafts, and with drafts of which every fifth is wrong, beside those of n-grams."""
    (plain,) = moec.generate(model, [prompt], **options)
    text = [(token + (place % 5 == 4)) % VOCABULARY for place, token in enumerate([*prompt, *plain.ids])]

    def mostly_right(tokens, place, count):
        return (text[len(tokens) :] + [0] * count)[:count]

    for draft in (mostly_right, continued):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ngrams, "continued", draft)
            if draft is mostly_right:
                patch.setattr(Ngrams, "match", lambda source, tokens: (2, 0))
            (drafted,) = moec.generate(model, [prompt], drafts="ngram", **options)
        assert ended(drafted) == ended(plain)
        assert draft is continued or 0 < drafted.drafts.accepted < drafted.drafts.drafted
    assert plain.drafts is None and drafted.drafts is not None
    return plain, drafted


def ended(generation):
    return generation.ids, generation.text, generation.ended, generation.prompt_tokens


def test_a_step_of_drafts_is_one_that_computes_tokens_alike():
    assert MOST_DRAFTS + 1 == FEW_QUERIES


def test_the_latest_place_of_the_longest_end_is_continued():
    tokens, source = [1, 2, 3, 4, 5, 6, 9, 4, 5, 7, 2, 3, 4, 5], Ngrams()
    assert source.match(tokens[:9]) == (2, 5) and continued(tokens[:9], 5, 3) == [6, 9, 4]
    assert source.match(tokens) == (3, 5)  # 3 4 5, longer than the later 4 5
    assert source.match([*tokens, 8]) is None and Ngrams().match([4]) is None
    assert Ngrams().match([1, 1]) is None and Ngrams().match([1, 1, 1]) == (2, 2)


def test_a_draft_behind_the_end_repeats_the_period():
    assert continued([5, 1, 2, 1, 2], 3, 5) == [1, 2, 1, 2, 1]
    assert continued([4, 4], 1, 3) == [4, 4, 4] and continued([4, 4], 1, 1) == [4]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_tokens": 19},
        {"repetition_penalty": 1.3},
        {"temperature": 0.6, "top_k": 5, "seed": 3},
        {"temperature": 0.8, "top_p": 0.7, "repetition_penalty": 1.1},
        {"temperature": 1.2, "min_p": 0.1},
    ],
)
def test_texts_are_those_without_drafts(decoder, always, options):
    plain, drafted = both(decoder, PROMPT, max_new_tokens=40, **options)
    figures = drafted.drafts
    assert sum(count for _, count, _ in figures.steps) + figures.accepted in (len(plain.ids) - 1, len(plain.ids))


@pytest.mark.parametrize(
    "options",
    [
        {"experts": "int4/32", "linears": "int8"},
        *(pytest.param({"passes": level}, marks=pytest.mark.nightly) for level in ("O0", "O1", "O3")),
        *(pytest.param({"experts": name}, marks=pytest.mark.nightly) for name in ("bf16", "int8", "mxfp4", "fp8")),
    ],
    ids=str,
)
def test_other_kernels_write_the_same_texts(always, options):
    both(decoder_of(**options), PROMPT * 40, max_new_tokens=60)


def test_right_drafts_save_steps(decoder, always):
    _, drafted = both(decoder, PROMPT, max_new_tokens=60)
    figures = drafted.drafts
    assert figures.accepted >= 8 and sum(count for _, count, _ in figures.steps) == 59 - figures.accepted


@pytest.mark.parametrize(
    "options", [{}, {"max_new_tokens": 5}, {"max_tokens": 15}, {"stop": "f"}, {"stop": ["z", "."]}]
)
def test_drafts_do_not_go_beyond_the_end_of_a_text(always, options, tmp_path):
    model = model_of("abcdefghijklmnopqrstuvwxyz.", tmp_path)
    pieces = {None: [], "ngram": []}
    for drafts in pieces:

        def write(place, text, pieces=pieces[drafts]):
            pieces.append(text)

        (actual,) = moec.generate(model, "cdefghijabcde", drafts=drafts, on_text=write, **options)
        pieces[drafts].append(ended(actual))
    assert pieces[None] == pieces["ngram"]


def test_several_prompts_run_one_after_the_other(decoder, always):
    prompts = [PROMPT, [4], PROMPT * 3]
    plain, drafted = (
        moec.generate(decoder, prompts, drafts=drafts, max_new_tokens=12, temperature=0.9, batch=1)
        for drafts in (None, "ngram")
    )
    assert [ended(text) for text in drafted] == [ended(text) for text in plain]


def test_draws_with_drafts_have_the_distribution_of_the_model(monkeypatch):
    """Tokens that follow each token, over many texts, against the probabilities of a model of pairs."""
    monkeypatch.setattr(DraftLimit, "count", lambda limit, kind: 2)
    table = np.random.default_rng(1).normal(size=(4, 4), scale=1.5).astype(np.float32)
    graph = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (int64[B,S] ids) => (float[B,S,4] logits) '
        "<float[4,4] table = {" + ", ".join(map(str, table.ravel())) + "}> { logits = Gather (table, ids) }"
    )
    model, counts, accepted = moec.compile(graph), np.zeros((4, 4)), 0
    for seed in range(25):
        (text,) = moec.generate(
            model, [[0, 1, 2, 3, 0, 1]], drafts="ngram", max_new_tokens=100, temperature=1.5, top_k=3, seed=seed
        )
        accepted += text.drafts.accepted
        np.add.at(counts, (text.ids[:-1], text.ids[1:]), 1)
    assert accepted > 300

    def worst(temperature):
        likely = np.array([weights(row, temperature) for row in table], np.float64)
        likely[np.arange(4), table.argmin(axis=1)] = 0
        expected = counts.sum(axis=1, keepdims=True) * likely / likely.sum(axis=1, keepdims=True)
        assert ((counts > 0) == (expected > 0)).all()
        return min(chisquare(c[e > 0], e[e > 0]).pvalue for c, e in zip(counts, expected, strict=True))

    assert worst(1.5) > 0.01 > 1e-4 > worst(1.1)


def test_a_run_without_room_goes_on_without_drafts(decoder, always, monkeypatch):
    run = Session.run
    refused = []

    def without_room(session, ids, **options):
        if np.size(ids) > 2 and session.length >= len(PROMPT):
            refused.append(np.size(ids))
            raise RoomError("no memory")
        return run(session, ids, **options)

    (plain,) = moec.generate(decoder, [PROMPT], max_new_tokens=30)
    monkeypatch.setattr(Session, "run", without_room)
    (drafted,) = moec.generate(decoder, [PROMPT], max_new_tokens=30, drafts="ngram")
    assert ended(drafted) == ended(plain) and len(refused) <= 2 and drafted.drafts.accepted


RECURRENT = """<ir_version: 10, opset_import: ["" : 24]>
g (int64[B,S] ids, float[B,1,4] kept) => (float[B,S,4] logits, float[B,1,4] next)
<float[4,4] table = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}, int64[1] one = {1}, int64 axis = {1}> {
    e = Gather (table, ids) sum = ReduceSum <keepdims = 1> (e, one) next = Add (kept, sum)
    so_far = CumSum (e, axis) logits = Add (so_far, kept) }"""
ONE_TOKEN = """<ir_version: 10, opset_import: ["" : 24]> g (int64[1,1] ids) => (float[1,1,2] logits)
<float[2,2] table = {1, 2, 3, 4}> { logits = Gather (table, ids) }"""

LAST_ALONE = """<ir_version: 10, opset_import: ["" : 24]> g (int64[B,S] ids) => (float[B,1,2] logits)
<float[2,2] table = {1, 2, 3, 4}, int64[1] last = {-1}, int64[1] end = {1000}, int64[1] axis = {1}> {
    token = Slice (ids, last, end, axis) logits = Gather (table, token) }"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RECURRENT, "cannot be truncated: state kept <- next.*; generate without drafts"),
        (ONE_TOKEN, "runs on 1 tokens at a time; generate without drafts"),
    ],
)
def test_models_that_cannot_step_back_are_refused(text, message):
    model = moec.compile(onnx.parser.parse_model(text))
    assert moec.generate(model, [1], max_new_tokens=1)[0].ids
    with pytest.raises(InputError, match=message):
        moec.generate(model, [1], max_new_tokens=1, drafts="ngram")


def test_a_model_with_the_last_logits_alone_is_refused(always):
    model = moec.compile(onnx.parser.parse_model(LAST_ALONE))
    assert moec.generate(model, [0, 0, 0], max_new_tokens=9)[0].ids
    with pytest.raises(InputError, match=r"logits of 1 of . tokens, and drafts need all; generate without drafts"):
        moec.generate(model, [0, 0, 0], max_new_tokens=9, drafts="ngram")


def test_unknown_drafts_are_refused(decoder):
    with pytest.raises(MoecError, match="drafts is 'mtp7' of type str; expected one of 'ngram'"):
        moec.generate(decoder, [1], drafts="mtp7")


class _Machine:
    """Text of so many tokens whose drafts are right with a probability, on a machine with ``cost`` per further
    token; steps take up to a tenth longer or shorter."""

    def __init__(self, cost: float, right: float, seed: int = 0) -> None:
        self.cost, self.right, self.random = cost, right, np.random.default_rng(seed)
        self.limit, self.seconds, self.tokens, self.drafted = DraftLimit(), 0.0, 0, 0

    def write(self, tokens: int, free: bool = True) -> float:
        """Returns the speed relative to steps of one token."""
        self.tokens, self.seconds = 0, 0.0
        while self.tokens < tokens:
            count = self.limit.count("kind")
            accepted = int(np.cumprod(self.random.random(max(count, 1)) < self.right).sum())
            seconds = (1 + self.cost * count) * self.random.uniform(0.9, 1.1)
            self.limit.tried("kind", max(count, 1), accepted)
            self.limit.ran(count, min(accepted, count), seconds)
            self.tokens += 1 + min(accepted, count)
            self.seconds += seconds
            self.drafted += count
        return self.tokens / self.seconds


@pytest.mark.parametrize("cost", [0.02, 0.2, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("right", [0.0, 0.2, 0.5])
def test_drafts_that_lose_stop(cost, right):
    for seed in range(5):
        for tokens in (100, 1000):
            assert _Machine(cost, right, seed).write(tokens) >= 0.96  # with the noise of times


@pytest.mark.parametrize(("cost", "right", "least"), [(0.1, 0.95, 2.0), (0.2, 0.9, 1.7), (0.5, 0.95, 1.2)])
def test_drafts_that_gain_go_on(cost, right, least):
    assert _Machine(cost, right).write(300) >= least


def test_drafts_begin_again_when_they_gain_again():
    machine = _Machine(0.15, 0.95)
    assert machine.write(300) >= 2
    machine.right = 0.0
    assert machine.write(400) >= 0.95
    before = machine.drafted
    assert machine.write(400) >= 0.96 and machine.drafted - before < 20
    machine.right = 0.95
    assert machine.write(300) >= 1.8


def test_nothing_is_drafted_before_plain_steps_are_measured():
    limit = DraftLimit()
    for _ in range(3):
        assert limit.count("kind") == 0
        limit.ran(0, 0, 1.0)
    assert limit.count("kind") == 1 and limit.steps == [(1, 3, 1.0)]
    for _ in range(5):
        limit.ran(limit.count("kind"), limit.count("kind"), 1.0)
    assert limit.count("kind") == MOST_DRAFTS
    limit.bound(2)
    assert limit.count("kind") == 2


def draft_model(**options):
    """A model that agrees with the decoder of these tests for the most part: the same one, rounded."""
    return decoder_of(experts="int4/32", linears="int8", **options)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_p": 0.9, "seed": 2}, {"max_tokens": 30}])
def test_a_smaller_model_drafts(decoder, always, options):
    (plain,) = moec.generate(decoder, [PROMPT], max_new_tokens=40, **options)
    for smaller in (draft_model(), decoder):
        (drafted,) = moec.generate(decoder, [PROMPT], max_new_tokens=40, drafts=smaller, **options)
        assert ended(drafted) == ended(plain) and drafted.drafts.accepted
    if not options:
        assert drafted.drafts.accepted == drafted.drafts.drafted  # the same model


def test_a_draft_model_that_holds_fewer_tokens_stops(decoder, always, monkeypatch):
    smaller, session = draft_model(), CompiledModel.session
    monkeypatch.setattr(
        CompiledModel,
        "session",
        lambda model, most=None, *rest: session(model, 20 if model is smaller else most, *rest),
    )
    (drafted,) = moec.generate(decoder, [PROMPT], max_new_tokens=40, drafts=smaller)
    (plain,) = moec.generate(decoder, [PROMPT], max_new_tokens=40)
    assert ended(drafted) == ended(plain) and 0 < drafted.drafts.drafted < 24


def test_a_model_of_other_tokens_is_refused(decoder, tmp_path):
    bigrams = model_of("abc", tmp_path)
    with pytest.raises(InputError, match="the model holds no tokenizer, and the other does"):
        moec.generate(decoder, [PROMPT], drafts=bigrams)
    with pytest.raises(InputError, match="the draft model holds no tokenizer"):
        moec.generate(bigrams, "ab", drafts=decoder)
    text = '<ir_version: 10, opset_import: ["" : 21]> g (int64[B,S] ids) => (float[B,S,4] logits) '
    few = moec.compile(
        onnx.parser.parse_model(text + "<float[4,4] t = {" + "1," * 15 + "1}> { logits = Gather (t, ids) }")
    )
    with pytest.raises(
        InputError, match="the draft model has 4 tokens, and the model 50; expected the same vocabulary"
    ):
        moec.generate(decoder, [PROMPT], drafts=few)
    content = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "other.json").write_text(content.replace('"<s>"', '"<t>"'))
    other = moec.compile(tmp_path / "bigrams.onnx", tokenizer=tmp_path / "other.json")
    with pytest.raises(InputError, match="token 256 is b'<t>' there and b'<s>' here; expected the same vocabulary"):
        moec.generate(bigrams, "ab", drafts=other)
    assert moec.generate(bigrams, "ab", drafts=bigrams)[0].text == "c"

"""Several texts of a request, probabilities of tokens, and penalties, as OpenAI's client asks for them."""

from __future__ import annotations

import concurrent.futures
import itertools

import numpy as np
import pytest

import moec

from .served import LETTERS, NAME, Gate, served, wait_for

openai = pytest.importorskip("openai")
CHAT = [{"role": "user", "content": "hello there"}]
PROMPT = "hello there"


@pytest.fixture(scope="module")
def running(model):
    with served(model, new_tokens=300, tokens=20 * 256) as server:
        yield server


def log_softmax(model: moec.CompiledModel, tokens: list[int]) -> np.ndarray:
    """Logarithms of the probabilities after each token, float64 [tokens, vocabulary], by a session."""
    logits = model.session().run([tokens])[0].astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("prompt", [PROMPT, "ab" * 128, "abc" * 100])
def test_choices_are_the_texts_of_so_many_prompts(model, running, prompt):
    options = {"temperature": 1.0, "seed": 1}
    expected = moec.generate(model, [prompt] * 4, max_new_tokens=40, **options)
    asked = {"model": NAME, "prompt": prompt, "max_tokens": 40, "n": 4, **options}
    actual = running.client().completions.create(**asked)
    assert [choice.text for choice in actual.choices] == [text.text for text in expected]
    assert len({text.text for text in expected}) == 4 and [choice.index for choice in actual.choices] == [0, 1, 2, 3]
    usage = len(prompt), sum(len(text.ids) for text in expected)
    assert (actual.usage.prompt_tokens, actual.usage.completion_tokens) == usage


def test_a_prompt_is_computed_once_for_all_its_choices(model, monkeypatch):
    with served(model) as server:
        lengths = []
        run = server.scheduler._batch._program.run
        monkeypatch.setattr(
            server.scheduler._batch._program,
            "run",
            lambda parts, *rest: (lengths.append([len(part.tokens) for part in parts]), run(parts, *rest))[1],
        )
        server.client().completions.create(model=NAME, prompt="abc" * 100, max_tokens=2, n=3, seed=1, temperature=1.0)
    assert lengths == [[256], [44], [1, 1, 1]]


@pytest.mark.parametrize("chat", [True, False])
def test_streams_of_choices_add_up(running, chat):
    client, asked = running.client(), {"model": NAME, "max_tokens": 12, "temperature": 1.0, "seed": 1, "n": 3}
    reasons, roles = {}, []
    if chat:
        whole = client.chat.completions.create(messages=CHAT, **asked)
        parts = client.chat.completions.create(messages=CHAT, stream=True, **asked)
        expected = {choice.index: choice.message.content for choice in whole.choices}
    else:
        whole = client.completions.create(prompt=PROMPT, **asked)
        parts = client.completions.create(prompt=PROMPT, stream=True, **asked)
        expected = {choice.index: choice.text for choice in whole.choices}
    actual = dict.fromkeys(expected, "")
    for part in parts:
        (choice,) = part.choices
        actual[choice.index] += (choice.delta.content or "") if chat else choice.text
        roles += [choice.index] if chat and choice.delta.role else []
        reasons |= {choice.index: choice.finish_reason} if choice.finish_reason else {}
    assert actual == expected and roles == ([0, 1, 2] if chat else [])
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}


def test_probabilities_of_a_chat_are_those_of_a_session(model, running):
    asked = {"model": NAME, "messages": CHAT, "temperature": 1.5, "seed": 3, "max_tokens": 9}
    asked |= {"presence_penalty": 1.0, "logprobs": True, "top_logprobs": 5}
    (choice,) = running.client().chat.completions.create(**asked).choices
    prompt = [LETTERS.index(letter) for letter in "user hello there.A "]
    entries = choice.logprobs.content
    ids = [LETTERS.index(entry.token) for entry in entries]
    assert "".join(entry.token for entry in entries) == choice.message.content and len(ids) == 9
    expected = log_softmax(model, prompt + ids)
    for entry, token, row in zip(entries, ids, expected[len(prompt) - 1 :], strict=False):
        assert entry.logprob == pytest.approx(row[token], abs=1e-4) and bytes(entry.bytes) == entry.token.encode()
        assert [LETTERS.index(other.token) for other in entry.top_logprobs] == np.argsort(-row)[:5].tolist()
        assert [other.logprob for other in entry.top_logprobs] == pytest.approx(np.sort(row)[:-6:-1].tolist(), abs=1e-4)
    parts = running.client().chat.completions.create(stream=True, **asked)
    choices = [part.choices[0] for part in parts]
    streamed = [entry for part in choices if part.logprobs for entry in part.logprobs.content]
    assert streamed == entries


def test_probabilities_of_a_text(running):
    asked = {"model": NAME, "prompt": PROMPT, "temperature": 1.0, "seed": 1, "max_tokens": 9}
    client = running.client()
    (choice,) = client.completions.create(logprobs=2, **asked).choices
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text and told.text_offset == list(range(9))
    for token, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert len(top) == 2 and (top.get(token, logprob) == logprob) and logprob <= 0
    (choice,) = client.completions.create(logprobs=0, **asked).choices
    assert choice.logprobs.top_logprobs == [{}] * 9 and choice.logprobs.token_logprobs == told.token_logprobs
    assert client.completions.create(**asked).choices[0].logprobs is None


BIAS = {3: 100, 0: -100, 8: 21.5}


def biased(logits: np.ndarray, _ids: list[int]) -> np.ndarray:
    return logits + np.array([BIAS.get(token, 0) for token in range(len(logits))])


def penalised(logits: np.ndarray, ids: list[int]) -> np.ndarray:
    counts = np.bincount(ids, minlength=len(logits))
    return logits - 2.0 * (counts > 0) - 1.5 * counts


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"logit_bias": {str(token): number for token, number in BIAS.items()}}, biased),
        ({"presence_penalty": 2, "frequency_penalty": 1.5}, penalised),
        ({"logit_bias": {}, "presence_penalty": 0}, lambda logits, ids: logits),
    ],
)
def test_what_changes_logits_changes_the_most_likely_tokens(model, running, options, changed):
    prompt, ids, logits = [LETTERS.index(letter) for letter in PROMPT], [], []
    for _ in range(60):
        logits.append(log_softmax(model, prompt + ids)[-1])
        ids.append(int(np.argmax(changed(logits[-1], ids))))
    if options["presence_penalty" if "presence_penalty" in options else "logit_bias"]:
        assert ids != [int(row.argmax()) for row in logits]
    asked = {"model": NAME, "prompt": PROMPT, "max_tokens": 60, "temperature": 0}
    text = running.client().completions.create(**options, **asked).choices[0].text
    names = [*LETTERS, "?u"]  # the next token ends a text
    assert text == "".join(names[token] for token in itertools.takewhile(lambda token: token < len(names), ids))


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_goes_frees_all_its_choices(model, monkeypatch, streams):
    with served(model, sequences=4, new_tokens=200) as server:
        gate = Gate(server, monkeypatch)
        gate.open(3)
        asked = {"model": NAME, "prompt": "abc" * 100, "temperature": 1.0, "seed": 1, "n": 4, "max_tokens": 200}
        if streams:
            stream = server.client().completions.create(stream=True, **asked)
            next(iter(stream))
            assert len(server.scheduler._batch) == 4
            stream.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                server.client(timeout=0.5).completions.create(**asked)
        wait_for(lambda: server.scheduler._open == 0)
        gate.open(200)
        wait_for(gate.is_free)
        assert gate.steps <= 5
        asked |= {"max_tokens": 2}
        assert len(server.client().completions.create(**asked).choices) == 4


def test_choices_that_never_fit_are_refused_and_others_wait(model, monkeypatch):
    with served(model, sequences=4, tokens=4 * 256, new_tokens=300) as server:
        client, asked = server.client(), {"model": NAME, "prompt": PROMPT, "temperature": 1.0, "seed": 1}
        with pytest.raises(
            openai.BadRequestError, match=r"3 texts after 11 tokens need 6 pages of 256 tokens; .* has 4"
        ):
            client.completions.create(n=3, max_tokens=300, **asked)
        gate = Gate(server, monkeypatch)
        gate.open(1)
        stream = client.completions.create(n=2, max_tokens=3, stream=True, **asked)
        next(iter(stream))
        with concurrent.futures.ThreadPoolExecutor() as threads:
            other = threads.submit(client.completions.create, n=3, max_tokens=2, **asked)
            wait_for(lambda: len(server.scheduler._waiting) == 1)
            gate.open(1)
            assert len(server.scheduler._batch) == 2
            gate.open(20)
            list(stream)
            assert len(other.result(20).choices) == 3

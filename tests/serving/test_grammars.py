"""Texts that follow JSON schemas and grammars."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest

from moec.common.child import Limits
from moec.runtime.text_codec import TextCodec
from moec.serving import grammars

from .served import NAME, served

openai = pytest.importorskip("openai")
pytest.importorskip("llguidance")
TOKENS = [
    b"\xc3",
    b"\xa4",
    b'{"',
    b'":',
    b"tr",
    b"ue",
    *(letter.encode() for letter in '{}":,[]-0123456789abcdefghijklmnorstu'),
]
TOKENS += [b""] * (49 - len(TOKENS)) + [b"</s>"]
GRAMMAR = 'start: /[%s]{8}/ "ä"'
CHAT = [{"role": "user", "content": "hello there"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["ab", "cd"]},
        "count": {"type": "integer", "minimum": 10, "maximum": 99},
        "list": {"type": "array", "items": {"const": True}, "minItems": 1, "maxItems": 3},
    },
    "required": ["kind", "count", "list"],
    "additionalProperties": False,
}


def schema_of(schema: object) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


@pytest.fixture(scope="module")
def running(model):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextCodec, "vocabulary", lambda _codec: (TOKENS, [49]))
        patch.setattr(TextCodec, "bytes_of", lambda _codec, token: TOKENS[token])
        patch.setattr(
            TextCodec, "decode", lambda _codec, ids: b"".join(TOKENS[token] for token in ids).decode(errors="replace")
        )
        with served(model) as server:
            yield server


def asked(**options):
    return {"model": NAME, "temperature": 1.5, "seed": 1, "max_tokens": 200, **options}


def test_texts_fit_a_schema(running):
    answer = running.client().chat.completions.create(messages=CHAT, n=4, response_format=schema_of(SCHEMA), **asked())
    for choice in answer.choices:
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)
        assert choice.finish_reason == "stop"
    stream = running.client().chat.completions.create(
        messages=CHAT, stream=True, response_format=schema_of(SCHEMA), **asked()
    )
    assert "".join(part.choices[0].delta.content or "" for part in stream) == answer.choices[0].message.content


def test_several_texts_follow_grammars_of_their_own(running):
    client = running.client()
    streams = [
        client.completions.create(
            prompt="hello", stream=True, logprobs=0, extra_body={"grammar": GRAMMAR % letters}, **asked(seed=seed)
        )
        for seed, letters in enumerate(("abc", "def", "ghi"))
    ]
    for stream, letters in zip(streams, ("abc", "def", "ghi"), strict=True):
        parts = [part.choices[0] for part in stream]
        text = "".join(part.text for part in parts)
        assert re.fullmatch(f"[{letters}]{{8}}ä", text) and parts[-1].finish_reason == "stop"
        tokens = [token for part in parts if part.logprobs for token in part.logprobs.tokens]
        assert tokens == [*text[:8], "bytes:\\xc3", "bytes:\\xa4"]


def test_an_object_of_any_form_and_what_max_tokens_ends(running):
    client = running.client()
    form = {"type": "json_object"}
    (choice,) = client.chat.completions.create(messages=CHAT, response_format=form, **asked()).choices
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)
    assert choice.message.content.startswith("{")
    options = asked(max_tokens=3)
    (choice,) = client.chat.completions.create(messages=CHAT, response_format=schema_of(SCHEMA), **options).choices
    assert (choice.finish_reason, choice.message.content[:2]) == ("length", '{"')


@pytest.mark.parametrize(
    ("options", "name", "reason"),
    [
        ({"response_format": schema_of({"type": "objec"})}, "response_format", "Invalid type: objec"),
        ({"response_format": schema_of({"type": "string", "pattern": "("})}, "response_format", "unclosed group"),
        ({"response_format": schema_of({"$ref": "http://a/b"})}, "response_format", "http://a/b"),
        ({"response_format": schema_of({"not": {}})}, "response_format", "not"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "has no json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format", "another type"),
        ({"response_format": 3}, "response_format", "another type"),
        ({"grammar": "start: ("}, "grammar", "Expected token"),
        ({"grammar": 'start: "a" | b'}, "grammar", "unknown name"),
        ({"grammar": 3}, "grammar", "expected a string"),
        ({"grammar": 'start: "a"', "response_format": {"type": "json_object"}}, "grammar", "give one of them"),
    ],
    ids=str,
)
def test_a_wrong_grammar_is_refused_with_the_reason(running, options, name, reason):
    body = {"model": NAME, "messages": CHAT, **options}
    status, answer = running.send("POST", "/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, name) and reason in answer["error"]["message"]


def test_a_compilation_that_needs_too_much_is_refused(running, monkeypatch):
    monkeypatch.setattr(grammars, "LIMITS", Limits(seconds=3, memory=1 << 20))
    with pytest.raises(openai.BadRequestError, match="response_format cannot be followed: its compilation"):
        running.client().chat.completions.create(
            messages=CHAT, response_format=schema_of({"const": "never seen"}), **asked()
        )


def test_without_the_package_the_extra_is_named(running, monkeypatch):
    monkeypatch.setattr(grammars, "_PACKAGE", "no_such_package")
    with pytest.raises(openai.BadRequestError, match=r'needs llguidance .*: pip install "moec\[grammar\]"'):
        running.client().chat.completions.create(messages=CHAT, response_format={"type": "json_object"}, **asked())

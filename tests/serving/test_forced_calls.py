"""Calls that a request forces: texts are calls of the named functions, with arguments that fit their schemas."""

from __future__ import annotations

import json

import jsonschema
import pytest

from moec.runtime.text_codec import TextCodec

from .served import NAME, served

openai = pytest.importorskip("openai")
pytest.importorskip("llguidance")
LETTERS = '<>/_\n{}":, 0123456789abcdefghilmnorstuwxy'
TOKENS = [*(letter.encode() for letter in LETTERS), b"tool", b'": ']
TOKENS += [b""] * (49 - len(TOKENS)) + [b"</s>"]
CHAT = [{"role": "user", "content": "hello there"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"city": {"enum": ["rome", "bonn"]}},
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
NOW = {"type": "function", "function": {"name": "now", "parameters": {"maxProperties": 0}}}
TEMPLATE = "{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def running(model):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextCodec, "vocabulary", lambda _codec: (TOKENS, [49]))
        patch.setattr(TextCodec, "bytes_of", lambda _codec, token: TOKENS[token])
        patch.setattr(TextCodec, "decode", lambda _codec, ids: b"".join(TOKENS[token] for token in ids).decode())
        patch.setattr(TextCodec, "encode", lambda _codec, text, **_options: [len(text) % 40 for _ in text[:20]])
        with served(model) as server:
            patch.setattr(server.scheduler._codec, "_template", TEMPLATE + "<tool_call>")
            yield server


def ask(running, choice, **options):
    asked = {"model": NAME, "messages": CHAT, "tools": [WEATHER, NOW], "tool_choice": choice, "max_tokens": 500}
    return running.client().chat.completions.create(**{**asked, "temperature": 1.5, "seed": 1, **options})


def calls(message) -> list[tuple[str, object]]:
    assert message.content is None
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls]


def test_a_required_call_is_of_any_function(running):
    names = []
    for choice in ask(running, "required", n=8).choices:
        if choice.finish_reason == "length":  # call after call
            continue
        assert choice.finish_reason == "tool_calls"
        for name, arguments in calls(choice.message):
            names.append(name)
            jsonschema.validate(arguments, SCHEMA if name == "weather" else {"type": "object", "maxProperties": 0})
    assert set(names) == {"weather", "now"}


def test_a_function_by_its_name(running):
    choices = ask(running, {"type": "function", "function": {"name": "weather"}}, n=4).choices
    ended = [choice.message for choice in choices if choice.finish_reason != "length"]
    assert ended and {name for message in ended for name, _ in calls(message)} == {"weather"}


def test_without_force_the_text_is_free(running):
    (choice,) = ask(running, "auto", max_tokens=40).choices
    assert choice.message.tool_calls is None and choice.message.content


def test_an_unfinished_call_stays_text(running):
    (choice,) = ask(running, "required", max_tokens=9).choices
    assert choice.finish_reason == "length" and choice.message.tool_calls is None
    assert choice.message.content.startswith("<tool_ca")


def refusal(running, **options) -> str:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(running, "required", **options)
    assert caught.value.param == "tool_choice"
    return str(caught.value)


def test_what_cannot_be_forced_is_told(running, monkeypatch):
    assert "not among tools" in refusal(running, tools=[])
    other = {"type": "function", "function": {"name": "other"}}
    assert "not among tools" in refusal(running, tool_choice=other)
    assert "expected an object of type function" in refusal(running, tool_choice={"type": "allowed_tools"})
    assert "give one of them" in refusal(running, response_format={"type": "json_object"})
    for schema, reason in ({"type": "array"}, "are no object"), ({"properties": {"a": {"type": "objec"}}}, "objec"):
        assert reason in refusal(running, tools=[{"type": "function", "function": {"name": "a", "parameters": schema}}])
    monkeypatch.setattr(running.scheduler._codec, "_template", TEMPLATE)
    assert "does not mention <tool_call>" in refusal(running)

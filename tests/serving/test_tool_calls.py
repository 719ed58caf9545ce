"""Tools: what templates are told of them, and calls that are read from texts of models."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moec.runtime.text_codec import TextCodec
from moec.serving.tool_calls import ToolCall, ToolCallReader

from .served import NAME, served

openai = pytest.importorskip("openai")
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Tells it", "parameters": SCHEMA}}]
CHAT = [{"role": "user", "content": "hello"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
TEMPLATE = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>"
    "answer with <tool_call>{% endif %}"
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% for call in m.tool_calls %}<tool_call>"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>'
    "{% endfor %}{% endfor %}"
)


def read(*parts: str) -> list[str | ToolCall]:
    reader = ToolCallReader()
    return [*(piece for part in parts for piece in reader.push(part)), *reader.rest()]


def joined(pieces: list[str | ToolCall]) -> list[str | ToolCall]:
    """Pieces with neighbouring texts as one."""
    result: list[str | ToolCall] = []
    for piece in pieces:
        if isinstance(piece, str) and result and isinstance(result[-1], str):
            result[-1] += piece
        else:
            result.append(piece)
    return result


WEATHER = ToolCall("weather", '{"city": "Zürich"}')
BROKEN = (
    "<tool_call>\n{broken}\n</tool_call>",
    '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "a", "arguments": "b"}</tool_call>',
    '<tool_call>{"name": "a", "arguments": {"b": 1, "b": 2}}</tool_call>',
    '<tool_call>{"name": "a", "arguments": {"b": NaN}}</tool_call>',
    "<tool_call>" + "[" * 5000 + "</tool_call>",
    "<tool_call>{} and no end",
    "a < b <tool and <tool_calls> </tool_call>\n\n",
    "ends with <tool_cal",
    "two\nlines\n",
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CALL, [WEATHER]),
        (f"Let me see.\n{CALL}\n{CALL}\n", ["Let me see.", WEATHER, WEATHER]),
        (f"{CALL}\nafter", [WEATHER, "after"]),
        (f"{BROKEN[0]}{CALL}", [BROKEN[0], WEATHER]),
        ("", []),
        *((text, [text]) for text in BROKEN),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_calls_are_read_from_parts_of_any_size(text, expected, size):
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    assert joined(read(*parts)) == expected


def test_text_is_told_as_soon_as_it_cannot_be_a_call():
    reader = ToolCallReader()
    assert [reader.push(part) for part in ("a", "<to", "ol", "box", "\n", "b")] == [
        ["a"],
        [],
        [],
        ["<toolbox"],
        [],
        ["\nb"],
    ]


class Scripted:
    """Model whose tokens have the texts ``names`` and are taken one after the other."""

    def __init__(self, server, monkeypatch, names, template=TEMPLATE):
        self.prompts, codec, batch, begins = [], server.scheduler._codec, server.scheduler._batch, {}
        step = batch.step

        def scripted():
            results = step()
            for number, logits in results.items():
                place = batch.length(number) - begins.setdefault(number, batch.length(number))
                logits[:] = np.arange(logits.shape[1]) == (place if place < len(names) else 49)
            return results

        monkeypatch.setattr(
            TextCodec, "decode", lambda _codec, ids: "".join((names + [""] * 50)[token] for token in ids)
        )
        monkeypatch.setattr(codec, "_template", template)
        monkeypatch.setattr(codec, "encode", lambda text, **_options: (self.prompts.append(text), [45])[1])
        monkeypatch.setattr(batch, "step", scripted)


@pytest.fixture(scope="module")
def running(model):
    with served(model) as server:
        yield server


@pytest.fixture
def client(running):
    return running.client()


def ask(client, **options):
    asked = {"model": NAME, "messages": CHAT, "tools": TOOLS, "temperature": 0, **options}
    return client.chat.completions.create(**asked)


def test_a_call_is_an_answer(running, client, monkeypatch):
    names = [
        "I",
        " look.\n",
        "<tool",
        "_call>",
        '{"name": "weather", "argu',
        'ments": {"city": "Zürich"}}',
        "</tool_call>",
    ]
    script = Scripted(running, monkeypatch, names)
    (choice,) = ask(client).choices
    assert (choice.message.content, choice.finish_reason) == ("I look.", "tool_calls")
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == (
        "function",
        "weather",
        {"city": "Zürich"},
    )
    shown = json.dumps(TOOLS[0])
    assert script.prompts == [f"<tools>{shown}</tools>answer with <tool_call>[user] hello"]
    parts = [part.choices[0] for part in ask(client, stream=True)]
    assert "".join(part.delta.content or "" for part in parts) == "I look."
    (streamed,) = [call for part in parts for call in part.delta.tool_calls or ()]
    assert (streamed.index, streamed.function.arguments) == (0, call.function.arguments) and streamed.id != call.id
    assert parts[-1].finish_reason == "tool_calls"
    asked = [*CHAT, choice.message, {"role": "tool", "content": "sunny", "tool_call_id": call.id}]
    ask(client, messages=asked)
    said = '[assistant] I look.<tool_call>{"name": "weather", "arguments": {"city": "Zürich"}}</tool_call>[tool] sunny'
    assert script.prompts[-1].endswith(f"[user] hello{said}")


def test_what_is_no_call_stays_text(running, client, monkeypatch):
    text = '<tool_call>{"name": "weather", "arguments": {"city": }</tool_call>'
    script = Scripted(running, monkeypatch, [text[start : start + 3] for start in range(0, len(text), 3)])
    for options in ({}, {"tool_choice": "none"}, {"tools": []}):
        (choice,) = ask(client, **options).choices
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (text, None, "stop")
    assert ["<tools>" in prompt for prompt in script.prompts] == [True, False, False]
    history = {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f"}}]}
    history["tool_calls"][0]["function"]["arguments"] = "no JSON"
    ask(client, messages=[*CHAT, history])
    assert '{"name": "f", "arguments": "no JSON"}' in script.prompts[-1]


def test_calls_without_tools_and_in_other_forms_stay_text(running, client, monkeypatch):
    Scripted(running, monkeypatch, ["<tool_call>", '{"name": "f", "arguments": {}}', "</tool_call>"])
    assert ask(client, tools=[]).choices[0].message.tool_calls is None
    other = TEMPLATE.replace("<tool_call>", "[CALLS]")
    Scripted(running, monkeypatch, ["[CALLS]", '{"name": "f", "arguments": {}}'], other)
    assert ask(client).choices[0].message.content.startswith("[CALLS]")


def test_a_template_without_a_place_for_tools_is_an_error(client):
    with pytest.raises(openai.BadRequestError, match="tools cannot be shown to this model"):
        ask(client)


@pytest.mark.parametrize(
    "tools",
    [
        *(3, ["a"], [{"type": "function"}], [{"type": "x", "function": {"name": "a"}}], TOOLS * 129),
        *([{"type": "function", "function": {"name": name}}] for name in ("", "a b", "a" * 65, None)),
        [{"type": "function", "function": {"name": "a", "parameters": "object"}}],
    ],
    ids=lambda tools: str(tools)[:40],
)
def test_wrong_tools_are_named(running, tools):
    status, answer = running.send("POST", "/v1/chat/completions", {"model": NAME, "messages": CHAT, "tools": tools})
    assert status == 400 and answer["error"]["param"].startswith("tools")

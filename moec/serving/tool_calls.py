"""Tool calls in the text of a model: JSON between ``<tool_call>`` and ``</tool_call>``, the form of Hermes and Qwen.
They are read from a text, or a grammar makes a text of them."""

from __future__ import annotations

import dataclasses
import json
import secrets
from typing import Any

from moec.common.plain_files import parse_json
from moec.serving.grammars import GrammarText
from moec.serving.refusals import wrong

BEGIN, END = "<tool_call>", "</tool_call>"


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A call. ``arguments``: a JSON object as text."""

    name: str
    arguments: str

    def entry(self) -> dict[str, Any]:
        """The call with a new id, in OpenAI's form."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


class ToolCallReader:
    """Reader of text that comes in parts of any size. What is no call, because it has no end, or is no JSON object of
    ``name`` and ``arguments``, stays text. Line ends around calls are left out."""

    def __init__(self) -> None:
        self._text = ""
        self._follows_call = False

    def push(self, text: str) -> list[str | ToolCall]:
        """Add text, and return the text and the calls that are complete."""
        self._text += text
        parts: list[str | ToolCall] = []
        while BEGIN in self._text:
            before, _, after = self._text.partition(BEGIN)
            inside, end, rest = after.partition(END)
            if not end:
                break
            call = _call(inside)
            self._add(parts, before.rstrip("\n") if call else f"{before}{BEGIN}{inside}{END}")
            if call is not None:
                parts.append(call)
                self._follows_call = True
            self._text = rest
        else:
            ready = self._text[: len(self._text) - self._held()]
            self._text = self._text[len(ready) :]
            self._add(parts, ready)
        return parts

    def rest(self) -> list[str | ToolCall]:
        """Return the text that was held back."""
        parts: list[str | ToolCall] = []
        self._add(parts, self._text)
        self._text = ""
        return parts

    def _add(self, parts: list[str | ToolCall], text: str) -> None:
        text = text.lstrip("\n") if self._follows_call else text
        if text:
            parts.append(text)
            self._follows_call = False

    def _held(self) -> int:
        """Length of the end of the text that may begin a call, with line ends before it."""
        ended = self._text
        length = next((size for size in range(len(BEGIN) - 1, 0, -1) if ended.endswith(BEGIN[:size])), 0)
        before = ended[: len(ended) - length]
        return length + len(before) - len(before.rstrip("\n"))


def call_grammar(tools: list[dict[str, Any]]) -> GrammarText:
    """Grammar of texts that are calls of these tools, one or more, with arguments that fit their schemas. Raises
    RequestError for a tool whose arguments are no object."""
    begin, middle, end = f'{BEGIN}\n{{"name": ', ', "arguments": ', f"}}\n{END}"
    calls, arguments = [], []
    for place, tool in enumerate(tools):
        function = tool["function"]
        schema = {"type": "object", **function.get("parameters", {})}
        if schema["type"] != "object":
            raise wrong("tool_choice", f"cannot force a call of {function['name']}: its parameters are no object")
        calls.append(f"{json.dumps(begin + json.dumps(function['name']) + middle)} arguments_{place} {json.dumps(end)}")
        arguments.append(f"arguments_{place}: %json {json.dumps(schema)}")  # references are to the schema's own root
    rules = ['start: call ("\\n" call)*', f"call: {' | '.join(calls)}", *arguments]
    return GrammarText("lark", "\n".join(rules), "tool_choice")


def _call(text: str) -> ToolCall | None:
    try:
        content = parse_json(text.strip(), strict=True)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    name, arguments = content.get("name"), content.get("arguments")
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False))

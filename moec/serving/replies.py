"""Answers in the form of OpenAI's API: whole ones, and the events of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

from moec.runtime.prompt_row import Generation

DONE = b"data: [DONE]\n\n"
"""Last event of a stream."""


def to_json(value: Any) -> bytes:
    """Write a value as JSON. Half a character, which UTF-8 cannot express, is escaped."""
    return json.dumps(value, separators=(",", ":")).encode()


def event_of(value: Any) -> bytes:
    """Write a value as an event of a stream."""
    return b"data: " + to_json(value) + b"\n\n"


class Reply:
    """The answer to one request, of a chat or of a text."""

    def __init__(self, model: str, *, chat: bool, streams_usage: bool = False) -> None:
        self._chat, self._streams_usage = chat, streams_usage
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, generation: Generation) -> dict[str, Any]:
        """The answer without a stream."""
        text = generation.text
        content = {"message": {"role": "assistant", "content": text, "refusal": None}} if self._chat else {"text": text}
        return {**self._answer([self._choice(content, _reason(generation))]), "usage": _usage(generation)}

    def begin(self) -> Iterator[bytes]:
        """Events before the first text."""
        if self._chat:
            yield self._part({"role": "assistant", "content": ""})

    def text(self, text: str) -> bytes:
        """The event of new text."""
        return self._part({"content": text} if self._chat else text)

    def end(self, generation: Generation) -> Iterator[bytes]:
        """Events after the last text."""
        yield self._part({} if self._chat else "", _reason(generation))
        if self._streams_usage:
            yield event_of({**self._answer([], streams=True), "usage": _usage(generation)})
        yield DONE

    def _part(self, content: Any, reason: str | None = None) -> bytes:
        named = {"delta": content} if self._chat else {"text": content}
        return event_of(self._answer([self._choice(named, reason)], streams=True))

    def _choice(self, content: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": 0, **content, "logprobs": None, "finish_reason": reason}

    def _answer(self, choices: list[dict[str, Any]], *, streams: bool = False) -> dict[str, Any]:
        kind = "text_completion" if not self._chat else "chat.completion.chunk" if streams else "chat.completion"
        return {**self._head, "object": kind, "choices": choices}


def _reason(generation: Generation) -> str:
    return "stop" if generation.ended in ("end", "stop") else "length"


def _usage(generation: Generation) -> dict[str, int]:
    prompt, new = generation.prompt_tokens, len(generation.ids)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

"""Answers in the form of OpenAI's API: whole ones, and the events of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

from moec.serving.choice_reply import ChoiceReply
from moec.serving.parameters import Request
from moec.serving.running_text import EndedText, NewText

DONE = b"data: [DONE]\n\n"
"""Last event of a stream."""


def to_json(value: Any) -> bytes:
    """Write a value as JSON. Half a character, which UTF-8 cannot express, is escaped."""
    return json.dumps(value, separators=(",", ":")).encode()


def event_of(value: Any) -> bytes:
    """Write a value as an event of a stream."""
    return b"data: " + to_json(value) + b"\n\n"


class Reply:
    """The answer to one request, of a chat or of a text: whole, or as a stream while its events come."""

    def __init__(
        self, model: str, asked: Request, bytes_of: Callable[[int], bytes], *, reads_calls: bool = False
    ) -> None:
        """``bytes_of``: bytes of a token. ``reads_calls``: whether texts may have calls of tools."""
        self._asked, self._chat = asked, asked.is_chat
        self._choices = [ChoiceReply(bytes_of, chat=asked.is_chat, reads_calls=reads_calls) for _ in range(asked.count)]
        self._head = {
            "id": f"{'chatcmpl' if asked.is_chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    @property
    def is_whole(self) -> bool:
        """Whether all texts have ended."""
        return all(choice.generation is not None for choice in self._choices)

    def take(self, event: NewText | EndedText) -> None:
        """Add an event."""
        self._choices[event.choice].take(event)

    def whole(self) -> dict[str, Any]:
        """The answer without a stream, after its last event."""
        choices = [self._choice(index, choice.whole(), choice) for index, choice in enumerate(self._choices)]
        return {**self._answer(choices), "usage": self._usage()}

    def begin(self) -> Iterator[bytes]:
        """Events of a stream before the first text."""
        if self._chat:
            for index in range(len(self._choices)):
                yield self._part(index, {"delta": {"role": "assistant", "content": ""}})

    def event(self, event: NewText | EndedText) -> Iterator[bytes]:
        """Events of a stream about new text, or a text's end."""
        choice = self._choices[event.choice]
        for content in choice.take(event):
            yield self._part(event.choice, content)
        if isinstance(event, EndedText):
            yield self._part(event.choice, {"delta": {}} if self._chat else {"text": ""}, choice.reason)

    def end(self) -> Iterator[bytes]:
        """Events of a stream after all texts."""
        if self._asked.streams_usage:
            yield event_of({**self._answer([], streams=True), "usage": self._usage()})
        yield DONE

    def _part(self, index: int, content: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": index, "logprobs": None, **content, "finish_reason": reason}
        return event_of(self._answer([choice], streams=True))

    def _choice(self, index: int, content: dict[str, Any], choice: ChoiceReply) -> dict[str, Any]:
        return {"index": index, **content, "logprobs": choice.all_logprobs(), "finish_reason": choice.reason}

    def _answer(self, choices: list[dict[str, Any]], *, streams: bool = False) -> dict[str, Any]:
        kind = "text_completion" if not self._chat else "chat.completion.chunk" if streams else "chat.completion"
        return {**self._head, "object": kind, "choices": choices}

    def _usage(self) -> dict[str, Any]:
        generations = [choice.generation for choice in self._choices if choice.generation is not None]
        prompt, new = generations[0].prompt_tokens, sum(len(generation.ids) for generation in generations)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": new,
            "total_tokens": prompt + new,
            "prompt_tokens_details": {"cached_tokens": self._choices[0].reused},
        }

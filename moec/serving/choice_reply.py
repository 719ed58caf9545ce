"""The text of one choice in OpenAI's forms: parts of a stream, the whole, and logarithms of probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from moec.runtime.prompt_row import Generation
from moec.serving.running_text import EndedText, NewText
from moec.serving.token_logprobs import TokenLogprob
from moec.serving.tool_calls import ToolCall, ToolCallReader


class ChoiceReply:
    """A choice, made of its events. ``bytes_of``: function that returns the bytes of a token. ``chat``: whether the
    choice answers a chat. ``reads_calls``: whether its text may have calls of tools."""

    def __init__(self, bytes_of: Callable[[int], bytes], *, chat: bool, reads_calls: bool) -> None:
        self.generation: Generation | None = None
        self.reused = 0
        self._bytes_of, self._chat = bytes_of, chat
        self._reader = ToolCallReader() if reads_calls else None
        self._text: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._tokens: list[TokenLogprob] = []
        self._offsets: list[int] = []
        self._characters = 0

    def take(self, event: NewText | EndedText) -> list[dict[str, Any]]:
        """Add an event. Returns the new content, as choices of a stream have it."""
        if isinstance(event, EndedText):
            self.generation, self.reused = event.generation, event.reused
            return [self._content(part) for part in ([] if self._reader is None else self._reader.rest())]
        offsets = [self._characters] * len(event.tokens)
        self._tokens += event.tokens
        self._offsets += offsets
        self._characters += len(event.text)
        parts = [event.text] if self._reader is None else self._reader.push(event.text)
        contents = [self._content(part) for part in parts or ([""] if event.tokens else [])]
        if contents:
            contents[0]["logprobs"] = self._logprobs(event.tokens, offsets)
        return contents

    @property
    def reason(self) -> str:
        """Reason of the end."""
        assert self.generation is not None
        if self._calls and self.generation.ended == "end":
            return "tool_calls"
        return "stop" if self.generation.ended in ("end", "stop") else "length"

    def whole(self) -> dict[str, Any]:
        """Content of the choice in an answer that is no stream."""
        text = "".join(self._text)
        if not self._chat:
            return {"text": text}
        message = {"role": "assistant", "content": text or (None if self._calls else ""), "refusal": None}
        return {"message": {**message, **({"tool_calls": self._calls} if self._calls else {})}}

    def all_logprobs(self) -> dict[str, Any] | None:
        """Logarithms of the probabilities of all tokens, in OpenAI's form; None if they are not wanted."""
        return self._logprobs(self._tokens, self._offsets)

    def _content(self, part: str | ToolCall) -> dict[str, Any]:
        """Note a part of the text, and return it as a choice of a stream has it."""
        if isinstance(part, ToolCall):
            self._calls.append(part.entry())
            return {"delta": {"tool_calls": [{"index": len(self._calls) - 1, **self._calls[-1]}]}}
        self._text.append(part)
        return {"delta": {"content": part}} if self._chat else {"text": part}

    def _logprobs(self, tokens: Sequence[TokenLogprob], offsets: Sequence[int]) -> dict[str, Any] | None:
        if not tokens:
            return None
        if self._chat:
            return {"content": [self._entry(token) for token in tokens], "refusal": None}
        return {
            "tokens": [self._name(token.token) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": list(offsets),
        }

    def _top(self, token: TokenLogprob) -> dict[str, float]:
        """Logarithms of the most likely tokens by text; for equal texts that of the likelier token."""
        by_name = {self._name(other): logprob for other, logprob in reversed(token.top)}
        return dict(reversed(by_name.items()))

    def _entry(self, token: TokenLogprob) -> dict[str, Any]:
        return {
            **self._described(token.token, token.logprob),
            "top_logprobs": [self._described(other, logprob) for other, logprob in token.top],
        }

    def _described(self, token: int, logprob: float) -> dict[str, Any]:
        content = self._bytes_of(token)
        return {"token": content.decode(errors="replace"), "logprob": logprob, "bytes": list(content)}

    def _name(self, token: int) -> str:
        """Text of a token, or its bytes where they are a part of a character."""
        content = self._bytes_of(token)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

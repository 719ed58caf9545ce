"""A prompt while it is continued: what ends its text, and the text so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

from moec.runtime.prompts import Prompt
from moec.runtime.text_codec import TextCodec, TextStream

OnText = Callable[[int, str], None]
"""Callback with the index of a prompt and new text for it."""
Ended = Literal["end", "stop", "length", "full"]


@dataclasses.dataclass(frozen=True)
class DraftFigures:
    """Numbers of ``drafted`` and ``accepted`` tokens. ``steps``: for each size of steps in tokens, the number of such
    steps and the median of their last times in seconds."""

    drafted: int
    accepted: int
    steps: list[tuple[int, int, float]]


@dataclasses.dataclass(frozen=True)
class Generation:
    """Result for one prompt: text and token ids, without those that ended it.

    ``ended``: cause of the end: a token for the ``end`` of text, a ``stop`` string, the requested ``length``, or a
    ``full`` session. ``text``: empty if the artifact has no tokenizer. ``prefill_seconds``: time of the prompt and the
    first new token; ``decode_seconds``: time of the later tokens. Prompts that ran together share the time equally.
    ``drafts``: figures of a text with drafts, else None.
    """

    prompt: Prompt
    text: str
    ids: list[int]
    prompt_tokens: int
    ended: Ended
    prefill_seconds: float
    decode_seconds: float
    drafts: DraftFigures | None = None

    @classmethod
    def of(cls, data: dict[str, Any]) -> Generation:
        """Convert the result of ``dataclasses.asdict`` back."""
        figures = data["drafts"]
        return dataclasses.replace(cls(**data), drafts=None if figures is None else DraftFigures(**figures))

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else f"{self.text[:57]}..."
        return f"<Generation {text!r}: {len(self.ids)} tokens after {self.prompt_tokens}, ended by {self.ended}>"


class TextWriter:
    """Text of one prompt as it is generated; empty without a tokenizer."""

    def __init__(
        self, codec: TextCodec | None, prompt: Sequence[int], stops: Sequence[str], place: int, on_text: OnText | None
    ) -> None:
        self.end_ids = frozenset() if codec is None else codec.end_ids
        self.text = ""
        self._stream = TextStream((lambda ids: "") if codec is None else codec.decode, prompt, stops)
        self._place, self._on_text = place, on_text

    def push(self, token: int) -> bool:
        """Add a token. Returns whether a stop string ends the text here."""
        self._write(self._stream.push(token))
        return self._stream.is_stopped

    def end(self) -> bool:
        """Write the rest of the text. Returns whether a stop string in it ends the text."""
        self._write(self._stream.rest())
        return self._stream.is_stopped

    def _write(self, text: str) -> None:
        self.text += text
        if text and self._on_text is not None:
            self._on_text(self._place, text)


class PromptRow:
    """One prompt in progress: ``pending`` tokens, which the model still has to process, and generated ones."""

    def __init__(self, place: int, prompt: list[int], most: int, writer: TextWriter) -> None:
        self.place, self.prompt, self.pending = place, prompt, list(prompt)
        self.ended: Ended | None = None
        self.drafts: DraftFigures | None = None
        self._most, self._writer = most, writer
        self._new: list[int] = []
        self._has_begun = False
        self._seconds = {"prefill": 0.0, "decode": 0.0}
        self._phase = "prefill"

    @property
    def left(self) -> int:
        """Number of tokens that may still be generated."""
        return self._most - len(self._new)

    @property
    def new(self) -> list[int]:
        """Tokens generated so far, without one that ended the text."""
        return self._new

    def give(self, count: int) -> list[int]:
        """Take the next ``count`` tokens for the model."""
        self._phase = "decode" if self._has_begun else "prefill"
        tokens, self.pending = self.pending[:count], self.pending[count:]
        return tokens

    def take(self, token: int, is_full: bool) -> None:
        """Append a selected token. ``is_full``: whether no token can follow it."""
        self._has_begun = True
        if token in self._writer.end_ids:
            self._end("end")
            return
        self._new.append(token)
        if self._writer.push(token):
            self._end("stop")
        elif len(self._new) == self._most or is_full:
            self._end("length" if len(self._new) == self._most else "full")
        else:
            self.pending = [token]

    def spend(self, seconds: float) -> None:
        """Add the time since :meth:`give`."""
        self._seconds[self._phase] += seconds

    def generation(self, prompt: Prompt) -> Generation:
        assert self.ended is not None
        seconds = self._seconds["prefill"], self._seconds["decode"]
        return Generation(prompt, self._writer.text, self._new, len(self.prompt), self.ended, *seconds, self.drafts)

    def _end(self, ended: Ended) -> None:
        self.ended = "stop" if self._writer.end() else ended

"""Text in and out of a language model: its tokenizer, its chat template, and streams of text made of token ids.

Tokenizers and templates come from files that nobody vouches for: templates run in Jinja's sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from moec.common.tokenizers import tokenizer_of
from moec.errors import MoecError
from moec.runtime.artifact import Artifact

_MOST_HELD = 8
"""Tokens that may be parts of one character; UTF-8 has at most 4 bytes, and tokens at least one."""
_CONTEXT = 4
"""Tokens of the prompt that a stream decodes again: whether a word begins with a space depends on what is before it."""
_INCOMPLETE = "\ufffd"


class TextCodec:
    """The tokenizer and chat template of an artifact."""

    def __init__(self, artifact: Artifact) -> None:
        """Raises MoecError for an artifact without, or with a tokenizer that cannot be read."""
        entry = artifact.manifest.text
        if entry is None:
            raise MoecError(
                f"{artifact.where}: holds no tokenizer; compile the model with --tokenizer tokenizer.json, or from a "
                "folder that has one"
            )
        self._where, self._special_tokens = artifact.where, entry.special_tokens
        self._template = None if entry.chat_template is None else artifact.text(entry.chat_template)
        self._tokenizer = tokenizer_of(artifact.text(entry.tokenizer), f"{artifact.where}: {entry.tokenizer}")
        self._tokenizer.no_truncation()  # files keep what their training used
        self._tokenizer.no_padding()
        self.end_ids = frozenset(entry.end_ids)

    def encode(self, prompt: str, *, chat: bool = False, system: str | None = None) -> list[int]:
        """The token ids of a prompt, with what the tokenizer puts in front; of a ``chat``, with what its template puts
        around a message of the user, behind one of the ``system`` where there is one. Raises MoecError for text that
        UTF-8 does not have (lone surrogates), and where there is no template, or it fails."""
        text = self._chat(prompt, system) if chat else prompt
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise MoecError(f"the prompt is not valid text: {error.reason} at position {error.start}") from error
        return self._tokenizer.encode(text, add_special_tokens=not chat).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens have none."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def _chat(self, prompt: str, system: str | None) -> str:
        if self._template is None:
            raise MoecError(f"{self._where}: holds no chat template; generate without --chat")
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        environment.globals["raise_exception"] = _refuse  # type: ignore[assignment]
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": prompt})
        try:
            template = environment.from_string(self._template)
            return template.render(messages=messages, add_generation_prompt=True, **self._special_tokens)
        except Exception as error:  # whatever the template's author wrote
            reason = " ".join(str(error).split())[:200]
            raise MoecError(f"{self._where}: its chat template fails: {reason}; generate without --chat") from error


def _refuse(message: str) -> None:
    raise MoecError(str(message))


class TextStream:
    """Text as it comes out token by token: whole characters, and nothing that may be the beginning of a string that
    stops it.

    A token is decoded together with those before it, back to the last end of a character, and what is new is told apart
    by its length, as in text-generation-inference and vLLM.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int], stops: Sequence[str] = ()
    ) -> None:
        self._decode, self._stops = decode, tuple(stops)
        self._ids = list(prompt[-_CONTEXT:])
        self._start, self._shown = 0, len(self._ids)
        self._held = ""
        self.is_stopped = False

    def push(self, token: int) -> str:
        """The text that another token completes."""
        self._ids.append(token)
        text = self._new_text()
        if text.endswith(_INCOMPLETE) and len(self._ids) - self._shown < _MOST_HELD:
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return self._up_to_stop(text)

    def rest(self) -> str:
        """What was held back, but for a character that is not complete."""
        if self.is_stopped:
            return ""
        text = self._up_to_stop(self._new_text().rstrip(_INCOMPLETE))
        text, self._held = text + ("" if self.is_stopped else self._held), ""
        self._shown = len(self._ids)
        return text

    def _new_text(self) -> str:
        before = self._decode(self._ids[self._start : self._shown])
        return self._decode(self._ids[self._start :])[len(before) :]

    def _up_to_stop(self, text: str) -> str:
        self._held += text
        places = [place for place in map(self._held.find, self._stops) if place >= 0]
        if places:
            self.is_stopped = True
            return self._held[: min(places)]
        kept = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown = self._held[: len(self._held) - kept]
        self._held = self._held[len(shown) :]
        return shown


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` that ``stop`` begins with."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)

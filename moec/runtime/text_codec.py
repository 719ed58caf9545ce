"""Text in and out of a language model: tokenizer, chat template, and streams of text decoded from token ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moec.common.errors import MoecError
from moec.common.tokenizers import Tokenizer
from moec.runtime.artifact import Artifact
from moec.runtime.chat_template import Conversation, chat_texts, template_child

_MOST_HELD = 8
"""Tokens that may be parts of one character; UTF-8 has at most 4 bytes, and tokens at least one."""
_CONTEXT = 4
"""Tokens of the prompt that a stream decodes again, because a leading space of a word depends on the text before it."""
_INCOMPLETE = "\ufffd"


class TextCodec:
    """The tokenizer and chat template of an artifact. ``end_ids``: tokens that end a text. ``context``: the most tokens
    of a text that the model was trained for, where that is known."""

    def __init__(self, artifact: Artifact) -> None:
        """Raise MoecError for an artifact without tokenizer, or with one that cannot be read."""
        entry = artifact.manifest.text
        if entry is None:
            raise MoecError(
                f"{artifact.where}: holds no tokenizer; compile the model with --tokenizer tokenizer.json, or from a "
                "folder that has one"
            )
        self._where, self._special_tokens = artifact.where, entry.special_tokens
        self._template = None if entry.chat_template is None else artifact.text(entry.chat_template)
        self._templates = template_child()
        content = artifact.text(entry.tokenizer)
        self._tokenizer = Tokenizer(content, f"{artifact.where}: {entry.tokenizer}", entry.checked_by)
        self.end_ids, self.context = frozenset(entry.end_ids), entry.context

    @property
    def has_chat_template(self) -> bool:
        """Whether it can encode conversations."""
        return self._template is not None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Encode a text, with the tokenizer's leading tokens. Raises MoecError for text that UTF-8 cannot express (lone
        surrogates)."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise MoecError(f"the prompt is not valid text: {error.reason} at position {error.start}") from error
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def mentions(self, text: str) -> bool:
        """Whether the chat template has this text."""
        return self._template is not None and text in self._template

    def encode_chats(
        self, conversations: Sequence[Conversation], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[list[int]]:
        """Encode conversations as written by the model's chat template, up to the model's answer. ``tools``: functions
        that the model may call, if the template shows them. Raises MoecError
        where there is no template, or it fails."""
        if self._template is None:
            raise MoecError(f"{self._where}: holds no chat template; generate without --chat")
        texts = chat_texts(self._templates, self._template, conversations, self._special_tokens, self._where, tools)
        return [self.encode(text, add_special_tokens=False) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode token ids; special tokens have no text."""
        return self._tokenizer.decode(ids)

    def bytes_of(self, token: int) -> bytes:
        """Bytes of one token, which may be a part of a character; of special tokens those of their name."""
        return self._tokenizer.bytes_of(token)

    def vocabulary(self) -> tuple[list[bytes], list[int]]:
        """Bytes of all tokens by their ids, and the ids of special tokens."""
        return self._tokenizer.vocabulary()


class TextStream:
    """Text that is generated token by token: whole characters, without anything that may begin a stop string.

    A token is decoded together with those before it, back to the last complete character, and the new text is found by
    its length, as in text-generation-inference and vLLM.
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
        """Add a token and return the text that it completes."""
        self._ids.append(token)
        text = self._new_text()
        if text.endswith(_INCOMPLETE) and len(self._ids) - self._shown < _MOST_HELD:
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return self._up_to_stop(text)

    def rest(self) -> str:
        """Return the text that was held back, except an incomplete character."""
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
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)

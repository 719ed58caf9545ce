"""Prompts of :func:`moec.generate`: texts, token ids and conversations are distinguished and encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moec.common.arguments import shown
from moec.common.errors import MoecError
from moec.runtime.chat_template import Conversation
from moec.runtime.text_codec import TextCodec

Prompt = str | Sequence[int] | Conversation
"""A text; token ids, as a list or an array [tokens]; or the messages of a conversation, each a mapping of strings with
``role`` and ``content``."""

_EXPECTED = (
    "a text, a list of token ids, a list of messages such as {'role': 'user', 'content': 'Hello'}, or a list of these"
)


def prompts_of(value: Any) -> list[Prompt]:
    """Convert one prompt or several to a list of texts, lists of int, and lists of messages. Raises MoecError for
    anything else."""
    if isinstance(value, Mapping):
        raise MoecError(f"prompts is a mapping; expected {_EXPECTED} (of what a tokenizer returned: its input_ids)")
    if isinstance(value, str) or _is_prompt(_listed(value)):
        return [_prompt("prompts", value)]
    several = _listed(value)
    if several is None:
        raise MoecError(f"prompts is {shown(value)}; expected {_EXPECTED}")
    return [_prompt(f"prompt {place + 1}", item) for place, item in enumerate(several)]


def encoded_prompts(
    codec: TextCodec | None,
    prompts: Sequence[Prompt],
    chat: bool,
    system: str | None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[list[int]]:
    """Encode each prompt to token ids. ``chat``: texts are a user's messages. ``system``: system message before every
    conversation. ``tools``: functions that the model may call in conversations. ``codec``: None where all prompts
    are token ids.

    Raises MoecError for prompts without tokens, token ids in a chat, and a system message outside of a chat or in
    addition to another.
    """
    conversations = {place: _conversation(place, prompt, chat, system) for place, prompt in enumerate(prompts)}
    talks = {place: messages for place, messages in conversations.items() if messages is not None}
    chats = iter(codec.encode_chats(list(talks.values()), tools) if codec is not None and talks else ())
    encoded = []
    for place, prompt in enumerate(prompts):
        if place in talks:
            ids = next(chats)
        elif isinstance(prompt, str):
            assert codec is not None
            ids = codec.encode(prompt)
        else:
            ids = [int(token) for token in prompt]  # type: ignore[call-overload]
        if not ids:
            reason = "of which the tokenizer makes no tokens" if isinstance(prompt, str) else "which has no tokens"
            raise MoecError(f"prompt {place + 1} is {str(prompt)[:60]!r}, {reason}; give some text")
        encoded.append(ids)
    return encoded


def _conversation(place: int, prompt: Prompt, chat: bool, system: str | None) -> Conversation | None:
    """Return the messages of a prompt, or those that it becomes in a chat; None for a prompt outside of chats."""
    messages: list[Any]
    if isinstance(prompt, str):
        messages = [{"role": "user", "content": prompt}] if chat else []
    elif prompt and isinstance(prompt[0], Mapping):
        messages = list(prompt)
    else:
        messages = []
        if chat:
            raise MoecError(
                f"prompt {place + 1} is token ids, and a chat is made of text; give text, or leave chat out"
            )
    if not messages:
        if system is not None:
            raise MoecError("a system message is part of a chat; generate with chat, too, or from messages")
        return None
    if system is None:
        return messages
    if any(message["role"] == "system" for message in messages):
        raise MoecError(f"prompt {place + 1} has a message of the system already; leave system out")
    return [{"role": "system", "content": system}, *messages]


def _listed(value: Any) -> list[Any] | None:
    """List the items of a sequence, or of an array of numpy or PyTorch. Returns None for anything else."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) > 0:
        return value.tolist()
    return None


def _is_prompt(listed: list[Any] | None) -> bool:
    """Whether a list is one prompt: its first element is a token id or a message."""
    return bool(listed) and (_is_token(listed[0]) or isinstance(listed[0], Mapping))


def _is_token(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _prompt(name: str, value: Any) -> Prompt:
    if isinstance(value, str):
        return value
    listed = _listed(value)
    if listed is None:
        raise MoecError(f"{name} is {shown(value)}; expected {_EXPECTED}")
    if listed and isinstance(listed[0], Mapping):
        for place, message in enumerate(listed):
            _check_message(f"message {place + 1} of {name}", message)
        return [dict(message) for message in listed]
    for token in listed:
        if not _is_token(token):
            raise MoecError(f"{name} holds {shown(token)} where a token id or a message is expected: {_EXPECTED}")
    return [int(token) for token in listed]


def _check_message(name: str, message: Any) -> None:
    if not isinstance(message, Mapping):
        raise MoecError(f"{name} is {shown(message)}; expected a mapping with role and content")
    for key in ("role", "content"):
        if key not in message:
            raise MoecError(f"{name} has no {key!r}; expected a mapping with role and content, both texts")
    for key, value in message.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise MoecError(f"{name} has {shown(value)} as its {key!r}; expected text: models here read nothing else")

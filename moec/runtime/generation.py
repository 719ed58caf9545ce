"""Text from a compiled language model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from moec.common.arguments import check_kind, check_optional_text
from moec.errors import InputError, MoecError, RoomError, reporting
from moec.runtime.model import CompiledModel
from moec.runtime.sampling import Sampling
from moec.runtime.session import Session
from moec.runtime.text_codec import TextCodec, TextStream

OnText = Callable[[int, str], None]
"""Called with the place of a prompt and text that has come out for it."""
PART = 512
"""Tokens of a prompt that are run at once: more take memory, for each has logits of the whole vocabulary."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """What a model made of one prompt: text and token ids, without those that ended it.

    ``ended``: at an ``end`` of text, a ``stop`` string, the ``length`` that was asked for, or because the session is
    ``full``. Seconds are those of the prompt, the first new token included, and of the tokens after it.
    """

    prompt: str
    text: str
    ids: list[int]
    prompt_tokens: int
    ended: Literal["end", "stop", "length", "full"]
    prefill_seconds: float
    decode_seconds: float


@reporting("generating")
def generate(
    model: CompiledModel,
    prompts: str | Sequence[str],
    *,
    max_new_tokens: int = 128,
    max_tokens: int | None = None,
    chat: bool = False,
    system: str | None = None,
    stop: Sequence[str] = (),
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    on_text: OnText | None = None,
) -> list[Generation]:
    """Go on from each of the prompts, one after the other, each in a session of its own.

    ``chat``: put a prompt into the model's chat template, as what the user says, behind what the ``system`` says, if
    anything. ``stop``: strings that end the text, which is then without them. ``max_tokens``: the most tokens of prompt
    and text together. The others are of :class:`moec.runtime.sampling.Sampling`; random numbers follow from ``seed``
    and the place of the prompt alone. ``on_text`` is called with the place of a prompt and text that has come out.

    Raises MoecError for a model that holds no tokenizer, a missing package, options that cannot be, a prompt without
    tokens; InputError for a model that is no language model, or a prompt longer than the session.
    """
    prompts, stops = _texts("prompts", prompts), _texts("stop", stop)
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    check_kind("max_new_tokens", max_new_tokens, int, "a whole number from 1 up")
    if max_new_tokens < 1 or "" in stops:
        raise MoecError(f"max_new_tokens is {max_new_tokens} and stop {stops}; expected 1 or more, and no empty string")
    check_optional_text(system=system)
    if system is not None and not chat:
        raise MoecError("a system message is part of a chat; generate with chat, too")
    check_kind("model", model, CompiledModel, "what moec.load and moec.compile return")
    codec = TextCodec(model.artifact)
    encoded = _encoded(codec, prompts, chat, system)
    found = []
    for place, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True)):
        writer = _Writer(codec, ids, stops, place, on_text)
        new, ended, seconds = _tokens(model.session(max_tokens), ids, sampling, place, max_new_tokens, writer)
        found.append(Generation(prompt, writer.text, new, len(ids), ended, *seconds))
    return found


class _Writer:
    """The text of one prompt, as it comes out."""

    def __init__(
        self, codec: TextCodec, prompt: Sequence[int], stops: Sequence[str], place: int, on_text: OnText | None
    ) -> None:
        self.end_ids = codec.end_ids
        self.text = ""
        self._stream = TextStream(codec.decode, prompt, stops)
        self._place, self._on_text = place, on_text

    def push(self, token: int) -> bool:
        """Another token; whether a string stops the text here."""
        self._write(self._stream.push(token))
        return self._stream.is_stopped

    def end(self) -> bool:
        """Write what was held back; whether a string in it stops the text."""
        self._write(self._stream.rest())
        return self._stream.is_stopped

    def _write(self, text: str) -> None:
        self.text += text
        if text and self._on_text is not None:
            self._on_text(self._place, text)


def _texts(name: str, given: Any) -> list[str]:
    """One string or several as a list. Raises MoecError for anything else."""
    texts = [given] if isinstance(given, str) else given
    check_kind(name, texts, (list, tuple), "a string, or a list of them")
    for text in texts:
        check_kind(f"one of {name}", text, str, "a string")
    return list(texts)


def _encoded(codec: TextCodec, prompts: Sequence[str], chat: bool, system: str | None) -> list[list[int]]:
    if chat:
        first = [] if system is None else [{"role": "system", "content": system}]
        encoded = codec.encode_chats([[*first, {"role": "user", "content": prompt}] for prompt in prompts])
    else:
        encoded = [codec.encode(prompt) for prompt in prompts]
    for place, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True)):
        if not ids:
            raise MoecError(f"prompt {place + 1} is {prompt!r}, of which the tokenizer makes no tokens; give some text")
    return encoded


def _tokens(
    session: Session, prompt: Sequence[int], sampling: Sampling, place: int, most: int, writer: _Writer
) -> tuple[list[int], Literal["end", "stop", "length", "full"], tuple[float, float]]:
    """New tokens, what ended them, and the seconds until the first and after it."""
    random = np.random.default_rng([sampling.seed, place])
    start = time.perf_counter()
    logits = prefilled(session, prompt)
    seen = np.zeros(logits.size, bool)
    seen[[token for token in prompt if token < seen.size]] = True
    new: list[int] = []
    first = start
    while True:
        token = sampling.choose(logits, seen, random)
        first = first if new else time.perf_counter()
        if token in writer.end_ids:
            ended = "end"
            break
        new.append(token)
        seen[token] = True
        if writer.push(token):
            ended = "stop"
            break
        if len(new) == most or session.length == session.max_tokens:
            ended = "length" if len(new) == most else "full"
            break
        logits = session.run([token])[0, -1]
    seconds = (first - start, time.perf_counter() - first)
    return new, "stop" if writer.end() else ended, seconds


def prefilled(session: Session, ids: Sequence[int]) -> np.ndarray:
    """Run a prompt, in parts where the model keeps states; the logits [vocabulary] of its last token. Parts become
    smaller where memory has no room for what so many tokens ask for. Raises InputError for more tokens than the session
    holds, RoomError where one part cannot become smaller."""
    room = session.max_tokens
    if room is not None and session.length + len(ids) > room:
        raise InputError(f"the prompt has {len(ids)} tokens, and the session holds {room - session.length} more")
    step = (session.fixed_length or PART) if session.is_incremental else len(ids)
    done = 0
    while True:
        part = ids[done : done + step]
        try:
            logits = session.run(part)
        except RoomError:
            if not session.is_incremental or session.fixed_length or len(part) == 1:
                raise
            step = len(part) // 2
        else:
            done += len(part)
            if done >= len(ids):
                return logits[0, -1]

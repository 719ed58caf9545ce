"""A conversation whose tokens stay in a session, so that each answer computes only what is new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moec.common.errors import InputError
from moec.runtime.common_tokens import common_tokens
from moec.runtime.generation import begin_from, run_rows
from moec.runtime.model import CompiledModel
from moec.runtime.prompt_cache import PromptCache
from moec.runtime.prompt_row import Generation, OnText, PromptRow, TextWriter
from moec.runtime.sampling import Sampling
from moec.runtime.session_checks import check_prompt_cache
from moec.runtime.text_codec import TextCodec


class Talk:
    """A conversation with a model, by its chat template.

    ``system``: the system message, None for none; a change takes effect with the next answer. ``max_tokens``: the most
    that the conversation holds, None where no limit is necessary. ``prompt_cache``: a file that keeps the first prompt,
    so that a later conversation that begins alike continues from it."""

    def __init__(
        self,
        model: CompiledModel,
        sampling: Sampling,
        *,
        system: str | None,
        stops: list[str],
        max_new_tokens: int,
        max_tokens: int | None,
        prompt_cache: Path | None = None,
    ) -> None:
        """Raises MoecError for a model without tokenizer and for a foreign ``prompt_cache``, InputError for a model
        that is no language model, or cannot keep prompts."""
        self.system = system
        self._model, self._sampling, self._codec = model, sampling, TextCodec(model.artifact)
        self._stops, self._most, self._max_tokens = stops, max_new_tokens, max_tokens
        self._messages: list[dict[str, Any]] = []
        self._session, self._ids = model.session(max_tokens), []
        self._answers = 0
        self._cache = None
        if prompt_cache is not None:
            check_prompt_cache(self._session)
            self._cache = PromptCache(prompt_cache, model.digest)

    def reset(self) -> None:
        """Forget all messages."""
        self._messages = []

    def answer(self, text: str, on_text: OnText) -> Generation:
        """Answer a message. An exception of ``on_text`` ends the answer, and its text so far stays in the conversation.
        Raises MoecError if the template fails and InputError if the session is full; the message is then forgotten.
        """
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        question = {"role": "user", "content": text}
        (ids,) = self._codec.encode_chats([[*system, *self._messages, question]])
        self._keep_common(ids)
        writer = TextWriter(self._codec, ids, self._stops, self._answers, on_text)
        row = PromptRow(self._answers, ids, self._most, writer)
        row.pending = ids[len(self._ids) :]
        self._answers += 1
        cache = None if self._ids else self._cache
        try:
            is_kept = cache is None or begin_from(cache, self._session, row)
            run_rows(self._session, [row], self._sampling)
            if cache is not None and not is_kept:
                cache.keep(self._session.fork(), ids)
            return row.generation(text)
        finally:
            self._ids = [*ids, *row.new][: self._session.length]
            if writer.text:
                self._messages += [question, {"role": "assistant", "content": writer.text}]

    def _keep_common(self, ids: list[int]) -> None:
        """Cut the session to the tokens that it shares with ``ids``; the last of ``ids`` is always computed anew."""
        common = common_tokens(self._ids, ids[:-1])
        try:
            self._session.truncate(common)
        except InputError:  # states that cannot step back
            self._session, common = self._model.session(self._max_tokens), 0
        self._ids = self._ids[:common]

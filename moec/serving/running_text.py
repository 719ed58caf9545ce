"""Choices: the texts of a request, and their events while they are generated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from moec.runtime.prompt_row import Generation, PromptRow, TextWriter
from moec.runtime.sampling import Sampling
from moec.runtime.text_codec import TextCodec
from moec.runtime.token_selection import TokenSelection
from moec.serving.grammars import TokenMatcher
from moec.serving.refusals import RequestError
from moec.serving.token_logprobs import TokenLogprob, token_logprob


@dataclasses.dataclass(frozen=True)
class TextJob:
    """Generation that a request asks for: ``count`` texts after one prompt.

    ``new_tokens``: the most of each text; None for the server's limit. ``top_logprobs``: number of most likely tokens
    to report with each token; None for no logarithms of probabilities. ``matcher``: grammar that all texts follow, at
    its beginning."""

    prompt: list[int]
    sampling: Sampling
    new_tokens: int | None
    stops: Sequence[str]
    count: int = 1
    top_logprobs: int | None = None
    matcher: TokenMatcher | None = None


@dataclasses.dataclass(frozen=True)
class NewText:
    """New text of a choice, and its tokens if their logarithms of probabilities are wanted. The text is empty if they
    are only a part of a character, or may begin a stop string."""

    choice: int
    text: str
    tokens: list[TokenLogprob]


@dataclasses.dataclass(frozen=True)
class EndedText:
    """Result of a choice. ``reused``: number of tokens of the prompt that were not computed again."""

    choice: int
    generation: Generation
    reused: int


Event = NewText | EndedText | RequestError
"""Event of a request. Each choice has one result; a refusal is the last event."""


class RunningText:
    """One text of a request, with the random numbers of prompt ``index`` in :func:`moec.generate`.

    ``number``: number of its sequence, None until it has one. ``reused``: number of first tokens of the prompt taken
    from an earlier one. ``last_time``: time of its last token, or of the request until it ``has_begun``."""

    def __init__(
        self,
        index: int,
        job: TextJob,
        most: int,
        codec: TextCodec,
        on_event: Callable[[Event], None],
        last_time: float,
    ) -> None:
        self.number: int | None = None
        self.reused = 0
        self.last_time, self.has_begun = last_time, False
        writer = TextWriter(codec, job.prompt, job.stops, index, self._hear)
        self.row = PromptRow(index, job.prompt, most, writer)
        self._selection = TokenSelection(job.sampling, [job.prompt], [index])
        self._matcher = None if job.matcher is None else job.matcher.copy()
        self._index, self._job, self._on_event, self._heard = index, job, on_event, ""

    def take(self, logits: np.ndarray, is_full: bool) -> None:
        """Select the next token by logits float32 [1, vocabulary]. ``is_full``: no token can follow it. Raises
        MoecError as :meth:`moec.runtime.token_selection.TokenSelection.choose`."""
        allowed = {} if self._matcher is None else {0: self._matcher.allowed(logits.shape[1])}
        token = int(self._selection.choose(logits, [0], allowed)[0])
        self.row.take(token, is_full)
        if self._matcher is not None and self.row.ended is None:
            self._matcher.take(token)
        text, self._heard = self._heard, ""
        tokens = []
        if self._job.top_logprobs is not None and self.row.ended != "end":
            tokens.append(token_logprob(logits[0], token, self._job.top_logprobs))
        if text or tokens:
            self._on_event(NewText(self._index, text, tokens))
        if self.row.ended is not None:
            self._on_event(EndedText(self._index, self.row.generation(self._job.prompt), self.reused))

    def _hear(self, place: int, text: str) -> None:
        self._heard += text

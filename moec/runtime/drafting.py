"""Text in steps of several tokens: each step computes the last token and drafts of the next ones, and keeps the drafts
that equal the selected tokens.

Each token is selected by the same logits and random number as without drafts, so the text is the same, too: kernels
compute a token alike in all steps of few tokens. Drafts are single tokens, not distributions, so this selection is that
of speculative sampling (Leviathan et al., "Fast inference from transformers via speculative decoding", arXiv
2211.17192): a draft x is accepted with probability p(x), and a token in place of a rejected x has the distribution p
without x.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import numpy as np

from moec.common.errors import InputError, RoomError
from moec.runtime.common_tokens import common_tokens
from moec.runtime.draft_limit import MOST_DRAFTS, DraftLimit
from moec.runtime.prompt_row import DraftFigures, PromptRow
from moec.runtime.session import Session
from moec.runtime.token_selection import TokenSelection


class DraftSource(Protocol):
    """Source of drafts. ``is_free``: whether drafting takes no time; such drafts are judged even in steps that do not
    run them."""

    is_free: bool

    def kind(self, tokens: Sequence[int]) -> Hashable | None:
        """Kind of draft for a text; None for no draft. Drafts of one kind share a rate of acceptance."""
        ...

    def draft(self, tokens: Sequence[int], count: int) -> list[int]:
        """Up to ``count`` tokens that may follow a text."""
        ...


class DraftedText:
    """Generation of one text after its first token.

    If a draft is rejected, a session that cannot forget single tokens returns to its states before the step; the next
    step then computes the accepted tokens again, together with its own.
    """

    def __init__(
        self,
        session: Session,
        row: PromptRow,
        selection: TokenSelection,
        source: DraftSource,
        run: Callable[[list[int]], np.ndarray] | None = None,
    ) -> None:
        """``run``: function that runs the session on tokens and returns all their logits; None for
        :meth:`moec.Session.run`."""
        self._session, self._row, self._selection = session, row, selection
        self._run_all = run or functools.partial(session.run, last=None)
        self._tokens = [*row.prompt, *row.pending]
        self._can_truncate = session.can_truncate
        self._again: list[int] = []
        """Last tokens of the text that the session has forgotten, before the token that runs next."""
        self._source, self._limit = source, DraftLimit()
        self._drafted = self._accepted = 0

    def finish(self) -> None:
        """Generate until the text has ended."""
        while self._row.ended is None:
            start = time.perf_counter()
            drafted, accepted = self._step()
            seconds = time.perf_counter() - start
            self._limit.ran(drafted, accepted, seconds)
            self._limit.owe(len(self._again))
            self._row.spend(seconds)
            self._drafted += drafted
            self._accepted += accepted
        self._row.drafts = DraftFigures(self._drafted, self._accepted, self._limit.steps)

    def _step(self) -> tuple[int, int]:
        """Run one step. Returns how many tokens were drafted and accepted."""
        kind = self._source.kind(self._tokens)
        count = 0 if kind is None else min(self._limit.count(kind), self._most())
        judged = max(count, 1) if self._source.is_free and kind is not None else count
        draft = self._source.draft(self._tokens, judged) if judged else []
        before = len(self._tokens)
        drafted = self._run(draft[:count])
        right = common_tokens(draft, self._tokens[before:])
        if draft:
            judged = max(drafted, 1)
            self._limit.tried(kind, judged, min(right, judged))
        elif kind is not None:
            self._limit.passed(kind)
        return drafted, min(right, drafted)

    def _most(self) -> int:
        """Number of drafts that the text and the session have room for, after the token that is computed anyway."""
        room = self._session.max_tokens
        left = min(self._row.left - 1, MOST_DRAFTS - len(self._again))
        return left if room is None else min(left, room - len(self._tokens))

    def _run(self, draft: list[int]) -> int:
        """Run on the next token and a draft, and take the tokens that are selected. Returns how many drafts ran."""
        ahead = [*self._again, *self._row.give(1)]
        before = self._session.length + len(ahead)
        if not self._can_truncate:
            self._session.remember()
        try:
            logits = self._run_all([*ahead, *draft])[0]
        except (InputError, RoomError):  # for example experts for which memory does not suffice
            if len(ahead) + len(draft) == 1:
                raise
            self._limit.bound(len(draft) // 2)
            draft = []
            logits = np.concatenate([self._run_all([token])[0] for token in ahead])
        count = len(ahead) + len(draft)
        if len(logits) < count:
            raise InputError(
                f"the model computes the logits of {len(logits)} of {count} tokens, and drafts need all; "
                "generate without drafts"
            )
        accepted = self._take(logits[len(ahead) - 1 :], draft, before)
        self._forget(ahead + draft[:accepted], before + accepted)
        return len(draft)

    def _forget(self, tokens: list[int], length: int) -> None:
        """Cut the session to ``length`` tokens or, if it cannot forget single tokens, to its length before the last
        step, which computed ``tokens``."""
        is_whole = self._can_truncate or length == self._session.length
        self._session.truncate(length if is_whole else length - len(tokens))
        self._again = [] if is_whole else tokens

    def _take(self, logits: np.ndarray, draft: list[int], before: int) -> int:
        """Take the tokens that ``logits`` [tokens, vocabulary] select, up to the first that differs from the draft.
        Returns the number of accepted drafts."""
        accepted = 0
        for of_token in logits:
            token = int(self._selection.choose(of_token[None], [0])[0])
            self._tokens.append(token)
            self._row.take(token, before + accepted == self._session.max_tokens)
            if self._row.ended is not None or draft[accepted : accepted + 1] != [token]:
                break
            self._row.give(1)  # it is computed already
            accepted += 1
        return accepted

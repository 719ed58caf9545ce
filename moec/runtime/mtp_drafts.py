"""Drafts of the model's own MTP layer (:mod:`moec.frontend.gguf.parts.mtp`,
:mod:`moec.frontend.huggingface.mtp`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moec.common.draft_kinds import MTP
from moec.runtime.session import Session


class MtpDrafts:
    """A session of the MTP layer, which follows that of the model and continues the text with its most likely tokens.

    Entry k of its cache is of the hidden state of token ``start`` + k and of the token after it. Hidden states of the
    layer itself take the place of those of tokens that are only drafted; their entries are forgotten before the next
    draft.
    """

    is_free = False

    def __init__(self, model: Session, layer: Session) -> None:
        """``model``: session of the model, whose tokens so far have no entries: nobody kept their hidden states."""
        self._model, self._layer, self._start = model, layer, model.length
        self._entries = 0
        self._hidden: list[np.ndarray] = []
        """Hidden states [width] of the tokens from ``start + entries`` on that the model computed."""

    def kind(self, tokens: Sequence[int]) -> str:
        """The one kind of these drafts."""
        return MTP

    def run(self, ids: Sequence[int] | np.ndarray, last: int | None = None) -> np.ndarray:
        """Run the model on tokens and keep their hidden states. Returns the logits [1, ``last``, vocabulary]."""
        before = self._model.length - self._start - self._entries
        logits, hidden = self._model.run_hidden(ids, last=last)
        del self._hidden[max(before, 0) :]  # of drafts that were rejected
        self._hidden += list(hidden[0, max(-before, 0) :])  # tokens that are computed again may have entries
        return logits

    def follow(self) -> None:
        """Compute the entries of all tokens except the last, so that no hidden states of a prompt wait."""
        tokens = self._model.tokens[0]
        if self._start + self._entries + 1 < len(tokens):
            self._follow(tokens)

    def draft(self, tokens: Sequence[int], count: int) -> list[int]:
        """Continue the text ``tokens``, of which the model computed all except the last, by ``count`` tokens."""
        logits, hidden = self._follow(tokens)
        draft = [int(np.argmax(logits[0, -1]))]
        while len(draft) < count:
            logits, hidden = self._layer.run_hidden(draft[-1:], previous_hidden=hidden[:, -1:])
            draft.append(int(np.argmax(logits[0, -1])))
        return draft

    def _follow(self, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Compute the entries of tokens that have one after them in ``tokens``. Returns logits and hidden states."""
        self._layer.truncate(self._entries)
        following = tokens[self._start + self._entries + 1 :]
        before = np.stack(self._hidden[: len(following)])[None]
        result = self._layer.run_hidden(following, previous_hidden=before)
        self._entries += len(following)
        del self._hidden[: len(following)]
        return result

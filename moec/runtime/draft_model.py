"""Drafts of a smaller model with the same tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from moec.common.errors import InputError
from moec.runtime.common_tokens import common_tokens
from moec.runtime.model import CompiledModel
from moec.runtime.session import Session
from moec.runtime.text_codec import TextCodec


class DraftModel:
    """Drafts of a smaller model: its session follows the text and continues it with the most likely tokens."""

    is_free = False

    def __init__(self, session: Session, vocabulary: int) -> None:
        """``vocabulary``: number of tokens of the model that judges the drafts."""
        self._session, self._vocabulary = session, vocabulary

    def kind(self, tokens: Sequence[int]) -> str | None:
        """The one kind of these drafts; None where the session has no room for another token."""
        room = self._session.max_tokens
        return "model" if room is None or len(tokens) < room else None

    def draft(self, tokens: Sequence[int], count: int) -> list[int]:
        """Continue the text ``tokens`` by up to ``count`` tokens."""
        room = self._session.max_tokens
        most = count if room is None else min(count, room - len(tokens) + 1)
        self._session.truncate(min(common_tokens(tokens, self._session.tokens[0]), len(tokens) - 1))
        draft: list[int] = []
        new = list(tokens[self._session.length :])
        while len(draft) < most:
            token = int(np.argmax(self._session.run(new)[0, -1]))
            if token >= self._vocabulary:
                break
            draft.append(token)
            new = [token]
        return draft


def check_same_tokens(model: CompiledModel, smaller: CompiledModel) -> None:
    """Raise InputError if the models have different texts for a token id, naming the first such id."""
    have_text = [each.artifact.manifest.text is not None for each in (model, smaller)]
    if not any(have_text):
        here, there = model.session(1).vocabulary, smaller.session(1).vocabulary
        if here != there:
            raise InputError(f"the draft model has {there} tokens, and the model {here}; expected the same vocabulary")
        return
    if not all(have_text):
        which = "the draft model" if have_text[0] else "the model"
        raise InputError(f"{which} holds no tokenizer, and the other does; expected the same one in both artifacts")
    here, there = (TextCodec(each.artifact).vocabulary()[0] for each in (model, smaller))
    for token, (own, other) in enumerate(itertools.zip_longest(here, there, fillvalue=b"")):
        if own != other:
            raise InputError(
                f"the tokenizer of the draft model differs: token {token} is {_shown(other)} there and {_shown(own)} "
                "here; expected the same vocabulary"
            )


def _shown(content: bytes) -> str:
    return repr(content[:40]) if content else "unknown"

"""Drafts without a model: tokens that followed the last few tokens where these occurred before."""

from __future__ import annotations

from collections.abc import Sequence

_SIZES = 5, 3, 2


class Ngrams:
    """The places of all sequences of 5, 3 and 2 tokens of one text that grows (prompt lookup: Saxena, "Prompt lookup
    decoding", 2023; also Yang et al., "Inference with reference", arXiv 2304.04487)."""

    def __init__(self) -> None:
        self._behind: dict[tuple[int, ...], int] = {}  # where the latest occurrence ends
        self._noted = self._place = 0

    is_free = True

    def kind(self, tokens: Sequence[int]) -> int | None:
        """Number of last tokens that occurred before, which is the kind of the draft; None where none did."""
        match = self.match(tokens)
        if match is None:
            return None
        size, self._place = match
        return size

    def draft(self, tokens: Sequence[int], count: int) -> list[int]:
        """Continue the text of the last :meth:`kind` by the tokens after the earlier occurrence."""
        return continued(tokens, self._place, count)

    def match(self, tokens: Sequence[int]) -> tuple[int, int] | None:
        """Find the latest earlier occurrence of the longest end of the text ``tokens``. Returns how many tokens are
        equal and where that occurrence ends; None where there is none."""
        self._note(tokens)
        for size in _SIZES:
            place = self._behind.get(tuple(tokens[-size:])) if len(tokens) > size else None
            if place is not None:
                return size, place
        return None

    def _note(self, tokens: Sequence[int]) -> None:
        for end in range(self._noted + 1, len(tokens)):
            for size in _SIZES:
                if size <= end:
                    self._behind[tuple(tokens[end - size : end])] = end
        self._noted = max(self._noted, len(tokens) - 1)


def continued(tokens: Sequence[int], place: int, count: int) -> list[int]:
    """Continue ``tokens`` by the ``count`` tokens from ``place`` on, which repeat after the end of ``tokens``."""
    draft = list(tokens[place : place + count])
    while len(draft) < count:
        draft.append(draft[len(draft) - (len(tokens) - place)])
    return draft

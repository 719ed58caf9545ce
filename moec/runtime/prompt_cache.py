"""Prompts kept on disk: the states of the last prompt in a file, from which a prompt that begins alike continues."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from moec.common.array_files import check_arrays_destination
from moec.common.errors import InputError
from moec.runtime.common_tokens import common_tokens
from moec.runtime.run_memory import FEW_TOKENS
from moec.runtime.saved_session import SavedSession
from moec.runtime.session import Session
from moec.runtime.session_checks import check_prompt_cache


class PromptCache:
    """File with the tokens of one prompt and the states after them. It does not change the text: reused tokens have the
    bits that computing them again would give.

    A session that cannot forget single tokens is kept as it is some tokens before the end of its prompt
    (:meth:`place`), and only a prompt that begins with all kept tokens continues from there.
    """

    def __init__(self, path: str | os.PathLike[str], digest: str) -> None:
        """Read the file, if it exists. Raises MoecError for a file of another artifact, or that moec did not write."""
        check_arrays_destination(path)
        self._path = path
        self._saved = SavedSession.read(path, digest) if os.path.exists(path) else None
        if self._saved is not None and len(self._saved.tokens) != 1:
            raise InputError(f"{path}: holds {len(self._saved.tokens)} sequences; expected one: choose another file")

    def begin(self, session: Session, prompt: Sequence[int]) -> tuple[int, int]:
        """Load the common beginning of the file and a prompt into a session without tokens. Returns its length, and
        the length of the prompt up to which the session has to run next, to end a part."""
        check_prompt_cache(session)
        if self._saved is None:
            return 0, 0
        part = session.part_tokens(len(prompt))
        kept, end = _reusable(prompt, self._saved.tokens[0], part)
        if not kept or not (session.can_truncate or kept == self._saved.tokens.shape[1]):
            return 0, 0
        session.load(self._saved, kept)
        return kept, end

    def place(self, session: Session, prompt: Sequence[int]) -> int:
        """Number of first tokens of a prompt after which a session that cannot forget single tokens is kept. The rest
        of the last part is long enough to be computed as if the part were not cut there."""
        part, least = session.part_tokens(len(prompt)), FEW_TOKENS + 1
        start = max(session.length, (len(prompt) - 1) // part * part)
        return len(prompt) - least if len(prompt) - start >= 2 * least else start

    def keep(self, session: Session, prompt: Sequence[int]) -> None:
        """Write the prompt of a session, unless the file has it already. The session forgets all later tokens."""
        saved = [] if self._saved is None else self._saved.tokens[0]
        is_of_use = session.can_truncate or len(saved) == len(prompt)
        if is_of_use and common_tokens(prompt, saved) == len(prompt):
            return
        session.truncate(len(prompt))
        session.save(self._path)


def _reusable(prompt: Sequence[int], saved: np.ndarray, part: int) -> tuple[int, int]:
    """Number of first tokens that can take their states from the ``saved`` prompt, and the end of the part after them.

    Prompts run in parts of ``part`` tokens. A token has the same bits in all parts of many tokens, but others in a part
    of few tokens. So a last part of few tokens of the saved prompt is not reused, and reuse never leaves a part of few
    tokens to compute."""
    last = (len(saved) - 1) // part * part
    usable = last if len(saved) - last <= FEW_TOKENS else len(saved)
    common = min(common_tokens(prompt, saved[:usable]), len(prompt) - 1)
    start = common // part * part
    end = min(start + part, len(prompt))
    return (start if end - start <= FEW_TOKENS else min(common, end - FEW_TOKENS - 1)), end

"""One sequence of a batch: its tokens, and how far they are computed."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from moec.runtime.batch_entries import FIRST
from moec.runtime.batch_pages import SequencePages
from moec.runtime.held import PAGE
from moec.runtime.page_pool import BLOCK


@dataclasses.dataclass
class BatchSequence:
    """A sequence. The first ``computed`` of its ``tokens`` are in its ``pages`` and its ``entry``.

    ``wanted``: number of last tokens whose logits are wanted. ``logits``: wanted logits computed so far. ``as_prompt``:
    number of first tokens that were computed in parts of many tokens, by the kernels of prompts. ``beginnings``:
    numbers of first tokens after which the entry is kept for other sequences. ``names``: names of the first blocks,
    kept so that each is computed once. ``most``: the most tokens of a part that memory may have room for."""

    tokens: list[int]
    wanted: int
    entry: int = FIRST
    computed: int = 0
    as_prompt: int = 0
    pages: SequencePages = dataclasses.field(default_factory=SequencePages)
    logits: list[np.ndarray] = dataclasses.field(default_factory=list)
    beginnings: frozenset[int] = frozenset()
    names: list[bytes] = dataclasses.field(default_factory=list)
    most: int = PAGE

    @property
    def waiting(self) -> int:
        """Number of tokens that are still to be computed."""
        return len(self.tokens) - self.computed

    @property
    def part_size(self) -> int:
        """Number of tokens of the next part: up to the end of a page, in equal parts of at most ``most``."""
        count = min(self.waiting, PAGE - self.computed % PAGE)
        parts = -(-count // self.most)
        return -(-count // max(1, parts))

    def block_names(self, count: int) -> list[bytes]:
        """Names of the first ``count`` blocks: each follows from all tokens up to the end of the block."""
        for block in range(len(self.names), count):
            tokens = np.array(self.tokens[block * BLOCK : (block + 1) * BLOCK], np.int64)
            self.names.append(hashlib.sha256(b"".join(self.names[-1:]) + tokens.tobytes()).digest())
        return self.names[:count]

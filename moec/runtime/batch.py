"""Batches: sequences of different lengths that one run computes together, and that join and leave between runs."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from moec.common.arguments import shown
from moec.common.errors import InputError, RoomError
from moec.common.guards import holds, parse_guard
from moec.runtime.batch_entries import FIRST, BatchEntries
from moec.runtime.batch_pages import BatchPages
from moec.runtime.batch_program import BatchProgram, SequencePart
from moec.runtime.batch_sequence import BatchSequence
from moec.runtime.held import PAGE
from moec.runtime.interface import Interface
from moec.runtime.page_pool import BLOCK


class Batch:
    """Sequences of a language model that run together. :meth:`moec.CompiledModel.batch` makes it.

    :meth:`add` begins a sequence with its first tokens, :meth:`extend` appends further ones. :meth:`step` computes
    waiting tokens of all sequences in one run, so that weights are read once for all of them. The results of a sequence
    do not depend on the others, bit for bit: waiting tokens are computed in parts that end at multiples of 256 tokens,
    whatever else a step computes.

    States lie in pages of 256 tokens. A fork shares pages until it writes to them. A new sequence shares the beginning
    that it has in common with an earlier prompt, in blocks of 16 tokens; states of a block depend only on the tokens up
    to its end. Prompts of removed sequences can be shared until other tokens take their pages. States that each run
    replaces are kept in two places, after the last whole page of a prompt and after the last page that a prompt shared;
    a new sequence can begin only there.
    """

    def __init__(
        self, interface: Interface, program: BatchProgram, max_sequences: int, max_tokens: int, step_tokens: int | None
    ) -> None:
        for name, number in (("max_sequences", max_sequences), ("max_tokens", max_tokens)):
            _check_count(name, number)
        least = PAGE + max_sequences - 1
        self._budget = least if step_tokens is None else step_tokens
        _check_count("step_tokens", self._budget)
        self._most = self._budget
        if self._budget < PAGE:
            raise InputError(f"step_tokens is {self._budget}; expected {PAGE} or more: prompts run in parts of that")
        self._interface, self._program, self.max_sequences = interface, program, max_sequences
        self._guards = [parse_guard(text) for text in interface.guards]
        count, states = -(-max_tokens // PAGE), program.entry.program.held
        self._pool = BatchPages(states, program.entry.inputs, count, max_sequences, program.device)
        self._entries = BatchEntries(program.states, program.entry.inputs, max_sequences, program.device)
        self._sequences: dict[int, BatchSequence] = {}  # in the order in which they are served
        self._next = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        pages = f"{self.pages - self.free_pages} of {self.pages} pages in use"
        return f"<Batch of {len(self._sequences)} sequences of at most {self.max_sequences}, {pages}>"

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self._sequences)

    @property
    def sequences(self) -> list[int]:
        """Numbers of the sequences, in ascending order."""
        return sorted(self._sequences)

    @property
    def pages(self) -> int:
        """Number of pages of 256 tokens."""
        return self._pool.count

    @property
    def free_pages(self) -> int:
        """Number of pages that no sequence holds."""
        return self._pool.free

    @property
    def vocabulary(self) -> int | None:
        """Number of tokens that the model knows, if that is known."""
        return self._program.roles.limit

    @property
    def page_bytes(self) -> int:
        """Bytes of a page."""
        return self._pool.page_bytes

    @property
    def state_bytes(self) -> int:
        """Bytes of the pages in use and of states that each run replaces. Shared ones count once."""
        return self._pool.bytes_in_use + self._entries.bytes_in_use

    def length(self, sequence: int) -> int:
        """Number of tokens of a sequence, waiting ones included. Raises InputError for an unknown sequence."""
        return len(self._known(sequence).tokens)

    def waiting(self, sequence: int) -> int:
        """Number of tokens of a sequence that are still to be computed. Raises InputError for an unknown sequence."""
        return self._known(sequence).waiting

    def can_hold(self, tokens: int) -> bool:
        """Whether the model and all pages together can hold a sequence of this many tokens."""
        try:
            self._check_length(tokens)
        except InputError:
            return False
        return True

    def add(self, ids: Any, *, last: int | None = 1) -> int:
        """Add a sequence with its first tokens, integers [1 or more], and return its number.

        ``last``: as for :meth:`extend`. Raises InputError, and adds nothing, if there are ``max_sequences`` already,
        for ids of another shape or beyond the vocabulary, and for more tokens than the model or the batch can hold."""
        with self._used():
            self._check_room()
            tokens = self._checked(ids)
            sequence = BatchSequence(tokens, _wanted(last, len(tokens)))
            self._check_length(len(tokens))
            self._share_prefix(sequence)
            return self._new(sequence)

    def extend(self, sequence: int, ids: Any, *, last: int | None = 1) -> None:
        """Append tokens, integers [1 or more], for the next steps to compute.

        ``last``: number of last new tokens whose logits :meth:`step` returns; None for all. Raises InputError, and
        appends nothing, for an unknown sequence, for one with waiting tokens, and as :meth:`add`."""
        with self._used():
            own, tokens = self._known(sequence), self._checked(ids)
            if own.waiting:
                raise InputError(
                    f"sequence {sequence} has {own.waiting} tokens that wait; extend it when they are computed (step)"
                )
            count = _wanted(last, len(tokens))
            self._check_length(len(own.tokens) + len(tokens))
            own.tokens += tokens
            own.wanted = count

    def fork(self, sequence: int) -> int:
        """Add a sequence with the tokens of another, and return its number. They share pages until one writes to them,
        which copies that page. Raises InputError for an unknown sequence and for a batch that has ``max_sequences``."""
        with self._used():
            own = self._known(sequence)
            self._check_room()
            pages = self._pool.shared(own.pages)
            self._entries.hold(own.entry)
            copied = {"tokens": list(own.tokens), "logits": list(own.logits), "names": list(own.names)}
            copy = dataclasses.replace(own, pages=pages, **copied)
            return self._new(copy)

    def truncate(self, sequence: int, length: int) -> None:
        """Forget all except the first ``length`` tokens of a sequence.

        Raises InputError for an unknown sequence and for more tokens than it has. With states that each run replaces,
        also for a part of the computed tokens; they can only be forgotten together. With windows, also for a length
        before its last part if keys of the window are gone there."""
        with self._used():
            own = self._known(sequence)
            if not _is_whole(length) or not 0 <= length <= len(own.tokens):
                raise InputError(
                    f"truncate sequence {sequence} to {shown(length)} tokens; expected a whole number from 0 to "
                    f"{len(own.tokens)}"
                )
            if self._entries and 0 < length < own.computed:
                raise InputError(
                    f"sequence {sequence} cannot be truncated to {length} tokens: each run replaces its states; "
                    f"expected {own.computed} tokens or more, or 0; fork it before the tokens to forget"
                )
            shortest = self._pool.shortest(own.pages)
            if 0 < length < shortest:
                raise InputError(
                    f"sequence {sequence} cannot be truncated to {length} tokens: layers with a window keep the last "
                    f"keys alone; expected {shortest} tokens or more, or 0; fork it before the tokens to forget"
                )
            own.wanted = max(0, own.wanted - (len(own.tokens) - length))
            del own.tokens[length:], own.names[length // BLOCK :]
            own.computed = min(own.computed, length)
            if not own.computed:
                self._entries.release(own.entry)
                own.entry = FIRST
            own.as_prompt = min(own.as_prompt, length)
            self._pool.keep(own.pages, -(-own.computed // PAGE))
            if not own.waiting:
                own.logits.clear()

    def remove(self, sequence: int) -> None:
        """Remove a sequence, and free the pages that no other holds. Raises InputError for an unknown one."""
        with self._used():
            own = self._known(sequence)
            self._pool.keep(own.pages, 0)
            self._entries.release(own.entry)
            del self._sequences[sequence]
            self._entries.forget(self._pool.has)

    def step(self) -> dict[int, np.ndarray]:
        """Compute waiting tokens of all sequences, or of as many as ``step_tokens`` allows, in one run.

        Returns the wanted logits, float32 [last, vocabulary], by number, of each sequence without waiting tokens left;
        an empty dict if no token waits. Sequences take turns, so that none waits for ever. If memory is insufficient,
        such as for the experts that the tokens select together, the step has fewer sequences or a smaller part of one.

        Raises InputError if pages are missing, and MoecError if weights cannot be read; then nothing is computed."""
        with self._used():
            while numbers := self._chosen():
                try:
                    results = self._computed(numbers)
                except RoomError:
                    if not self._compute_less(numbers):
                        raise
                else:
                    self._most = min(self._most + 1, self._budget)
                    return results
            return {}

    def _computed(self, numbers: Sequence[int]) -> dict[int, np.ndarray]:
        """Compute the next parts of these sequences. Returns the logits of those without waiting tokens left."""
        with self._room_for(numbers), self._entries.taking(len(numbers)) as entries:
            pairs = zip(numbers, entries, strict=True)
            parts = {number: self._part(self._sequences[number], entry) for number, entry in pairs}
            logits = self._program.run([*parts.values()], self._pool, self._entries, PAGE)
        return self._take(parts, logits)

    def _chosen(self) -> list[int]:
        """Choose sequences with waiting tokens whose parts fit in a step, in the order of their waiting time. The first
        one always fits."""
        chosen, left = list[int](), self._most
        for number, sequence in self._sequences.items():
            count = sequence.part_size
            if 0 < count <= left or (count and not chosen):
                chosen.append(number)
                left -= count
        return chosen

    def _compute_less(self, numbers: Sequence[int]) -> bool:
        """Halve the tokens of steps, beginning with the parts of these sequences, or the parts of a single one. Returns
        False for a single token. The parts of a sequence depend on no other, so its numbers do not either."""
        first, *others = [self._sequences[number] for number in numbers]
        if others:
            self._most = sum(sequence.part_size for sequence in (first, *others)) // 2
        elif first.part_size > 1:
            first.most = first.part_size // 2
        else:
            return False
        return True

    @contextlib.contextmanager
    def _room_for(self, numbers: Sequence[int]) -> Iterator[None]:
        """Context with pages for the next parts of these sequences, which nobody shares. A failure gives them back."""
        before = {number: len(self._sequences[number].pages) for number in numbers}
        try:
            for number in numbers:
                sequence = self._sequences[number]
                end = sequence.computed + sequence.part_size
                self._pool.make_room(sequence.pages, sequence.computed, end)
            yield
        except BaseException:
            for number, count in before.items():
                self._pool.keep(self._sequences[number].pages, count)
            raise

    def _part(self, sequence: BatchSequence, entry: int) -> SequencePart:
        """Describe the next part of a sequence. Its states are written to ``entry``."""
        end = sequence.computed + sequence.part_size
        last = max(0, min(end - sequence.computed, end - (len(sequence.tokens) - sequence.wanted)))
        tokens = sequence.tokens[sequence.computed : end]
        return SequencePart(tokens, sequence.computed, sequence.pages, (sequence.entry, entry), last)

    def _share_prefix(self, sequence: BatchSequence) -> None:
        """Give a new sequence the known pages of its first tokens, up to those whose logits are wanted.

        The rest of a part of many tokens still has many, and a part of few tokens is computed as a whole. So the same
        kernels compute each token as without sharing."""
        count = len(sequence.tokens)
        last_part = (count - 1) // PAGE * PAGE
        most = min(count - sequence.wanted, max(last_part, count - self._program.few_tokens - 1), count - 1)
        names = sequence.block_names(most // BLOCK)
        ends = [self._pool.known(names) * BLOCK, most]
        sequence.beginnings = frozenset(end // PAGE * PAGE for end in ends) if self._entries else frozenset()
        sequence.pages, blocks = self._pool.find(names, self._entries.has)
        sequence.as_prompt = sequence.computed = blocks * BLOCK
        if blocks:
            sequence.entry = self._entries.find(names[blocks - 1])

    def _name_blocks(self, sequence: BatchSequence, part: SequencePart) -> None:
        """Give blocks their names if they and all before them were computed by the kernels of prompts."""
        if len(part.tokens) <= self._program.few_tokens or sequence.as_prompt != part.start:
            return
        sequence.as_prompt = part.end
        first, end = part.start // BLOCK, part.end // BLOCK
        for block, name in enumerate(sequence.block_names(end)[first:], first):
            self._pool.name(sequence.pages, block, name)
            if part.end in sequence.beginnings and block == end - 1:
                self._entries.keep(name, sequence.entry)

    def _take(self, parts: Mapping[int, SequencePart], logits: np.ndarray) -> dict[int, np.ndarray]:
        """Note what was computed, and let these sequences wait behind the others."""
        done, first = {}, 0
        for number, part in parts.items():
            sequence = self._sequences.pop(number)
            self._sequences[number] = sequence
            sequence.computed = part.end
            self._entries.release(sequence.entry)
            _, sequence.entry = part.entries
            self._name_blocks(sequence, part)
            self._pool.release_before(sequence.pages, part.start)
            sequence.logits.append(logits[first : first + part.wanted])
            first += part.wanted
            if not sequence.waiting:
                done[number] = np.concatenate(sequence.logits)
                sequence.logits, sequence.wanted = [], 0
        return {number: done[number] for number in sorted(done)}

    def _new(self, sequence: BatchSequence) -> int:
        number = self._next
        self._next += 1
        self._sequences[number] = sequence
        return number

    def _known(self, number: int) -> BatchSequence:
        if not _is_whole(number) or number not in self._sequences:
            listed = ", ".join(map(str, self.sequences)) or "none"
            raise InputError(f"the batch has no sequence {shown(number)}; it has: {listed}")
        return self._sequences[number]

    def _check_room(self) -> None:
        if len(self._sequences) >= self.max_sequences:
            raise InputError(
                f"the batch has {len(self._sequences)} sequences, its max_sequences; remove one, or make a larger batch"
            )

    def _checked(self, ids: Any) -> list[int]:
        """Token ids as a list."""
        try:
            array = np.asarray(ids)
        except (ValueError, TypeError):
            array = np.empty((0, 0), object)
        if array.dtype.kind not in "iu" or array.ndim != 1 or not array.size:
            raise InputError(f"token ids are {shown(ids)}; expected integers [1 or more]")
        limit = self._program.roles.limit
        if array.min() < 0 or (limit is not None and array.max() >= limit):
            bad = int(array.min()) if array.min() < 0 else int(array.max())
            raise InputError(f"token id {bad} is outside of the vocabulary; expected 0 to {(limit or 1 << 63) - 1}")
        return [int(token) for token in array]

    def _check_length(self, total: int) -> None:
        """Check that the model and the pages can hold so many tokens in a sequence."""
        if -(-total // PAGE) > self.pages:
            raise InputError(
                f"the sequence would have {total} tokens, and the batch has {self.pages} pages of {PAGE}; make a batch "
                "for more tokens (max_tokens)"
            )
        ids, specs = self._program.roles.ids, {spec.name: spec for spec in self._interface.inputs}
        axes = [(specs[state.input], state.axis) for state in self._interface.states if state.axis is not None]
        sizes = {ids.shape[0]: 1, ids.shape[1]: 1, **{spec.shape[axis]: total - 1 for spec, axis in axes}}
        named = {name: number for name, number in sizes.items() if isinstance(name, str)}
        for guard in self._guards:
            if set(guard.names) <= named.keys() and not holds(guard, named):
                raise InputError(f"the model was exported for sizes with {guard} only, and cannot hold {total} tokens")

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise InputError("the batch is being used by another thread; let one thread use it")
        try:
            yield
        finally:
            self._lock.release()


def _wanted(last: int | None, count: int) -> int:
    if last is not None and (not _is_whole(last) or last < 0):
        raise InputError(f"last is {shown(last)}; expected a whole number from 0 up, or None for all tokens")
    return count if last is None else min(last, count)


def _check_count(name: str, number: Any) -> None:
    if not _is_whole(number) or number < 1:
        raise InputError(f"{name} is {shown(number)}; expected a whole number from 1 up")


def _is_whole(number: Any) -> bool:
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool)

"""Sessions: the states of a language model between runs, so that each token is computed once."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from moec.common.arguments import check_path, shown
from moec.common.dtypes import dtype_of
from moec.common.errors import InputError
from moec.common.specs import HIDDEN
from moec.runtime.device_results import Ending
from moec.runtime.interface import Interface
from moec.runtime.roles import roles_of
from moec.runtime.run_memory import LEAST_TOKENS, MOST_TOKENS, RunMemory
from moec.runtime.saved_session import SavedSession
from moec.runtime.session_states import Runner, SessionStates
from moec.runtime.token_selection import Rows, TokenSelection


class Session:
    """One conversation with a language model, or ``batch`` conversations of equal length.
    :meth:`moec.CompiledModel.session` makes it. A model may have several sessions, each for one thread at a time.

    A model without states runs all tokens again each time, with the same results.
    """

    def __init__(
        self,
        interface: Interface,
        executor: Runner,
        max_tokens: int | None = None,
        batch: int = 1,
        run_memory: RunMemory | None = None,
        digest: Callable[[], str] | None = None,
    ) -> None:
        """``run_memory``: memory of the program's runs, if that of its device bounds the parts of a prompt. ``digest``:
        function that computes the artifact's digest for saved sessions; None if sessions cannot be saved."""
        _check_count("batch", batch)
        if max_tokens is not None:
            _check_count("max_tokens", max_tokens)
        self._interface, self._roles, self._run_memory = interface, roles_of(interface), run_memory
        self._digest = digest
        self._states = SessionStates.empty(interface, executor, self._roles, max_tokens, batch)
        self._mask = np.ones((batch, 0), bool)
        self._seen = np.zeros((batch, 0), dtype_of(self._roles.ids.dtype))
        self._most = _least(max_tokens, self._states.room)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        most = "" if self.max_tokens is None else f" of at most {self.max_tokens}"
        rows = f", {self.batch} sequences side by side" if self.batch > 1 else ""
        return f"<Session with {self.length} tokens{most}{rows}>"

    @property
    def length(self) -> int:
        """Number of tokens so far, padding included."""
        return self._mask.shape[1]

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self._mask.shape[0]

    @property
    def max_tokens(self) -> int | None:
        """Most tokens that it holds; None where there is no limit."""
        return self._most

    @property
    def vocabulary(self) -> int:
        """Number of tokens that the model knows; ids are smaller."""
        size = self._roles.logits.shape[2]
        return self._roles.limit or (size if isinstance(size, int) else 1)

    @property
    def fixed_length(self) -> int | None:
        """Number of tokens that each run takes; None where it is free."""
        length = self._roles.ids.shape[1]
        return length if isinstance(length, int) else None

    def part_tokens(self, new: int) -> int:
        """Number of tokens of each sequence that one run should take of a prompt of ``new`` tokens: on a device as many
        as its free memory allows, on a processor few, which fit in its caches."""
        if self.fixed_length is not None or not self.is_incremental:
            return self.fixed_length or new
        least = max(1, LEAST_TOKENS // self.batch)
        if self._run_memory is None:
            return least
        sizes = functools.partial(self._states.sizes, self._interface, self._roles.ids, self.batch)
        most, length = min(new, MOST_TOKENS // self.batch), self.length + new
        return self._run_memory.tokens(least, most, lambda part: sizes(part, length))

    @property
    def is_incremental(self) -> bool:
        """Whether the model keeps states, so that a run computes only the new tokens."""
        return bool(self._states)

    @property
    def state_bytes(self) -> int:
        """Bytes that its states take; 0 for a model without states."""
        return self._states.bytes_in_use

    def run(self, ids: Any, *, last: int | None = 1, device_outputs: bool = False, **inputs: Any) -> Any:
        """Run on the next tokens.

        ``ids``: integers [batch, new], or [new] for a batch of 1. Returns the logits of the ``last`` new tokens,
        float32 [batch, last, vocabulary]; of all new tokens if there are fewer or ``last`` is None. A model compiled
        for the last token alone returns [batch, 1, vocabulary].

        ``inputs``: further inputs of the model by name. The session fills in attention masks, positions and the like
        (:mod:`moec.runtime.roles`) if they are not given; then every token counts. Pad rows of different lengths on the
        left, with an ``attention_mask`` [batch, new] of 0 there; the session keeps masks of earlier runs, and positions
        count the tokens whose mask is not 0. A model that counts the ones of a mask, as with onnxruntime's
        GroupQueryAttention, needs padding on the right instead, in the first run only; as the last tokens of shorter
        rows are then padding, request the logits of all tokens (``last=None``).

        ``device_outputs``: leave the logits on the GPU, in the model's type, as an object with DLPack that belongs to
        the caller (``torch.from_dlpack``). These are the logits of all new tokens if the program cannot omit others.
        They are complete in the order of the current stream; the host does not wait. Without a GPU it has no effect.

        Raises InputError, and leaves the session unchanged, for ids of another shape or beyond the vocabulary, more
        tokens than ``max_tokens``, padding that the model cannot ignore, inputs that are missing, unknown or refused by
        :meth:`moec.CompiledModel.run`, and while another thread uses the session.
        """
        if last is not None:
            _check_count("last", last)
        with self._used():
            ids = self._checked_ids(ids)
            count = ids.shape[1] if last is None else min(last, ids.shape[1])
            name = self._roles.logits.name
            if device_outputs and self._states.executor.is_apart:
                return self._outputs(ids, inputs, count, lambda results: results.owned(name))
            logits = np.asarray(self._outputs(ids, inputs, count)[self._roles.logits.name])[:, -count:]
            return np.ascontiguousarray(logits, np.float32)

    def run_hidden(self, ids: Any, *, last: int | None = 1, **inputs: Any) -> tuple[np.ndarray, np.ndarray]:
        """Run a model that was compiled with its MTP layer, or that layer, as :meth:`run`. Returns the logits and the
        hidden states, float32 [batch, new, width], that the layer takes."""
        with self._used():
            ids = self._checked_ids(ids)
            count = ids.shape[1] if last is None else min(last, ids.shape[1])
            outputs = self._outputs(ids, inputs, count)
            return np.asarray(outputs[self._roles.logits.name], np.float32)[:, -count:], np.asarray(outputs[HIDDEN])

    def select(self, ids: Any, selection: TokenSelection, rows: Rows, **inputs: Any) -> np.ndarray:
        """Run on the next tokens as :meth:`run`, and select the token after them for the sequences ``rows``.

        Returns int64 [batch]; numbers of other sequences have no meaning. A GPU selects if the program has a kernel for
        that, so that only tokens are fetched; otherwise the host does, from the logits. The tokens are the same. Raises
        MoecError for logits that are NaN."""
        sampler, name = self._states.executor.sampler, self._roles.logits.name
        if not sampler:
            return selection.choose(self.run(ids, **inputs)[:, -1], rows)
        with self._used():
            ids = self._checked_ids(ids)
            return self._outputs(ids, inputs, 1, lambda results: selection.choose_there(results, name, sampler, rows))

    def feed(self, ids: Any, **inputs: Any) -> None:
        """Run on the next tokens as :meth:`run`, without logits. Stages of a pipeline then need not wait for each
        other."""
        with self._used():
            self._outputs(self._checked_ids(ids), inputs, 0)

    def _outputs(self, ids: np.ndarray, inputs: Mapping[str, Any], count: int, ending: Ending | None = None) -> Any:
        """Run on checked ids and keep the states. Returns the outputs, with logits of ``count`` tokens or more, or the
        result of ``ending`` on them."""
        mask = np.concatenate([self._mask, self._new_mask(ids, inputs)], axis=1)
        self._check_counted(mask)
        seen = np.concatenate([self._seen, ids], axis=1)
        fed = ids if self._states else seen
        filled = self._roles.values(mask, fed.shape[1])
        feeds = {**filled, **self._checked_inputs(inputs), self._roles.ids.name: fed}
        outputs, states = self._states.run(feeds, count, ending)
        self._states, self._mask, self._seen = states, mask, seen
        return outputs

    def fork(self) -> Session:
        """Copy the session, so that both can continue from here. Raises InputError where another thread is using it."""
        with self._used():
            other = copy.copy(self)
            other._states, other._lock = self._states.fork(), threading.Lock()
            return other

    def truncate(self, length: int) -> None:
        """Forget all except the first ``length`` tokens. Raises InputError for more than there are, for a model with a
        state that each run replaces, except where :meth:`remember` was called after as many tokens, and where another
        thread is using the session."""
        with self._used():
            if not _is_whole(length) or not 0 <= length <= self.length:
                raise InputError(f"truncate to {shown(length)} tokens; expected a whole number from 0 to {self.length}")
            self._states = self._states.truncated(length, self.length)
            self._mask, self._seen = self._mask[:, :length], self._seen[:, :length]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tokens and states to a file, for :meth:`moec.CompiledModel.session`. The file replaces only one that
        moec wrote and nobody changed.

        Raises MoecError where it cannot be written; InputError for states on a GPU or on several ranks, and where
        another thread is using the session."""
        check_path("path", path)
        with self._used():
            self.check_saving()
            assert self._digest is not None
            SavedSession(self._digest(), self._seen, self._mask, self._states.saved(self.length)).write(path)

    def check_saving(self) -> None:
        """Raise InputError where no session can be saved or loaded (:meth:`save`)."""
        if self._digest is None or not self._states.are_here:
            raise InputError(
                "the session cannot be saved or loaded: its states are not all in the memory of one processor"
            )

    def load(self, saved: SavedSession, length: int | None = None) -> None:
        """Take the first ``length`` tokens of a saved session, None for all, into this one, which has no tokens yet.
        Raises InputError for a file that does not fit the model, and for more tokens than the session holds."""
        tokens = saved.tokens[:, :length]
        if tokens.shape[0] != self.batch:
            raise InputError(f"the file has a session of {tokens.shape[0]} sequences; expected {self.batch} (batch)")
        if tokens.size:
            self._checked_ids(tokens)
        self._states = self._states.loaded(saved.states, saved.tokens.shape[1])
        self._mask, self._seen = saved.mask, saved.tokens.astype(self._seen.dtype)
        self.truncate(tokens.shape[1])

    @property
    def tokens(self) -> np.ndarray:
        """Token ids so far, integers [batch, length]."""
        return self._seen

    def remember(self) -> None:
        """Keep the current states, instead of those kept before, so that :meth:`truncate` can return to them. Raises
        InputError while another thread uses the session."""
        with self._used():
            self._states = self._states.remembering(self.length)

    def check_truncation(self, *, to_remembered: bool = False) -> None:
        """Raise InputError if no token can be forgotten (:meth:`truncate`). ``to_remembered``: returning to a length at
        which :meth:`remember` was called suffices."""
        self._states.check_truncation(self.length, to_remembered=to_remembered)

    @property
    def can_truncate(self) -> bool:
        """Whether tokens can be forgotten one by one."""
        try:
            self.check_truncation()
        except InputError:
            return False
        return True

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise InputError("the session is being used by another thread; give each thread one of its own, or fork it")
        try:
            yield
        finally:
            self._lock.release()

    def _checked_ids(self, ids: Any) -> np.ndarray:
        try:
            array: np.ndarray[Any, Any] = np.asarray(ids)
        except (ValueError, TypeError):  # for example rows of different lengths
            array = np.empty((0, 0), object)
        if array.ndim == 1 and self.batch == 1:
            array = np.expand_dims(array, 0)
        if array.dtype.kind not in "iu" or array.ndim != 2 or array.shape[0] != self.batch or not array.size:
            actual = f"{array.dtype}{list(array.shape)}" if array.dtype != object else shown(ids)
            raise InputError(f"token ids are {actual}; expected integers [{self.batch}, 1 or more]")
        limit = self._roles.limit
        if array.min() < 0 or (limit is not None and array.max() >= limit):
            bad = int(array.min()) if array.min() < 0 else int(array.max())
            raise InputError(f"token id {bad} is outside of the vocabulary; expected 0 to {(limit or 1 << 63) - 1}")
        total = self.length + array.shape[1]
        if self._most is not None and total > self._most:
            raise InputError(
                f"the session would hold {total} tokens ({self.length} and {array.shape[1]} new ones), and its "
                f"max_tokens is {self._most}; truncate it, or make one for more"
            )
        return np.ascontiguousarray(array, dtype_of(self._roles.ids.dtype))

    def _new_mask(self, ids: np.ndarray, inputs: Mapping[str, Any]) -> np.ndarray:
        name = self._roles.mask
        if name is None or name not in inputs:
            return np.ones(ids.shape, bool)
        mask = np.asarray(inputs[name])
        if mask.shape != ids.shape or mask.dtype.kind not in "iubf":
            raise InputError(
                f"input {name!r} is {mask.dtype}{list(mask.shape)}; expected numbers {list(ids.shape)}: of the new "
                "tokens, 0 where one does not count"
            )
        return mask != 0

    def _check_counted(self, mask: np.ndarray) -> None:
        """Raise InputError for a mask [batch, past + new] that a model counts the ones of, unless all padding is on the
        right and in the first run: later padding would overwrite tokens."""
        name = self._roles.mask
        if name is None or name not in self._interface.counted:
            return
        new = mask[:, self.length :]
        is_later = bool(self._states) and self.length > 0
        checked = new if self._states else mask
        if not (new.all() if is_later else (checked[:, :-1] >= checked[:, 1:]).all()):
            raise InputError(
                f"input {name!r} is 0 where the model cannot leave a token out: it counts the ones to tell how long a "
                "sequence is; pad on the right and in the first run alone, or give each row a session of its own"
            )

    def _checked_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Check the caller's inputs and return them without the mask, which the session keeps."""
        names = {*self._roles.filled, *(spec.name for spec in self._roles.asked)}
        for name in inputs:
            if name not in names:
                listed = ", ".join(sorted(names)) or "none"
                raise InputError(
                    f"unknown input {name!r}; a session fills in token ids and states, and takes: {listed}"
                )
        missing = [str(spec) for spec in self._roles.asked if spec.name not in inputs]
        if missing:
            raise InputError(f"nothing tells what these inputs are; give them by name: {', '.join(missing)}")
        return {name: value for name, value in inputs.items() if name != self._roles.mask}


def _least(*numbers: int | None) -> int | None:
    return min((number for number in numbers if number is not None), default=None)


def _check_count(name: str, number: Any) -> None:
    if not _is_whole(number) or number < 1:
        raise InputError(f"{name} is {shown(number)}; expected a whole number from 1 up")


def _is_whole(number: Any) -> bool:
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool)

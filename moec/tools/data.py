"""Data for measuring and judging models: batches of inputs from ``.npz`` files or from text."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from moec.common.array_files import read_arrays
from moec.common.dtypes import dtype_of
from moec.common.errors import MoecError
from moec.common.plain_files import read_text
from moec.common.specs import State, TensorSpec
from moec.common.tokenizers import Tokenizer

Array = np.ndarray[Any, Any]
Batch = dict[str, Array]

_LINES_AT_ONCE = 2000
_LARGEST_TEXT, _LARGEST_TOKENIZER = 4 << 30, 256 << 20
"""Bytes of the largest text file, and of the largest tokenizer.json."""

_LENGTH = 2
"""Axis of a cache of keys or values that counts past tokens."""
_BESIDE_TOKENS = {
    "attention_mask": lambda shape: np.ones(shape, np.int64),
    "position_ids": lambda shape: np.broadcast_to(np.arange(shape[-1]), shape),
    "token_type_ids": lambda shape: np.zeros(shape, np.int64),
}
"""Inputs that follow from the shape of token ids, by the names that models give them."""


@dataclasses.dataclass(frozen=True)
class KeptTokenizer:
    """Text of the ``tokenizer.json`` that a model came with; ``where`` names it in messages, ``checked_by`` as in
    :class:`moec.common.tokenizers.Tokenizer`."""

    content: str
    where: str
    checked_by: str | None


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """Conversion of text to batches: rows of ``length`` tokens, ``batch`` at a time, ``limit`` in all. ``tokenizer`` is
    a ``tokenizer.json``; without it ``kept``, the one that the model came with, is used."""

    tokenizer: pathlib.Path | None = None
    length: int = 256
    batch: int = 8
    limit: int | None = None
    kept: KeptTokenizer | None = None

    def opened(self, path: pathlib.Path) -> Tokenizer:
        """Open the tokenizer for the text at ``path``. Raises MoecError where there is none, or it cannot be read."""
        if self.tokenizer is not None:
            return Tokenizer(read_text(self.tokenizer, _LARGEST_TOKENIZER), self.tokenizer)
        if self.kept is None:
            raise MoecError(
                f"{path}: text needs a tokenizer, and the model came with none: add --tokenizer tokenizer.json, or "
                "give .npz files"
            )
        return Tokenizer(self.kept.content, self.kept.where, self.kept.checked_by)

    def tokenizer_sha256(self) -> str | None:
        """Hash the tokenizer's bytes. Returns None without a tokenizer."""
        if self.tokenizer is not None:
            return hashlib.sha256(self.tokenizer.read_bytes()).hexdigest()
        return None if self.kept is None else hashlib.sha256(self.kept.content.encode()).hexdigest()


def with_tokenizer_of(
    text: TextOptions | None, source: str | os.PathLike[str], data: Sequence[str | os.PathLike[str]]
) -> TextOptions:
    """Add the tokenizer in the model's folder or GGUF file to ``text``, where some of the data is text."""
    from moec.frontend.text_files import text_files_of

    text = text or TextOptions()
    if text.tokenizer is not None or not any(is_text(pathlib.Path(path)) for path in data):
        return text
    files = text_files_of(source)
    if files is None:
        return text
    return dataclasses.replace(text, kept=KeptTokenizer(files.tokenizer, os.fspath(source), files.checked_by))


def is_text(path: pathlib.Path) -> bool:
    """Whether the data at a path is text, not an array file or a folder of them."""
    return path.suffix != ".npz" and not path.is_dir()


class Data:
    """Batches for a model, one after another, read from the files each time they are iterated over.

    ``path``: an ``.npz`` file of inputs by name (a batch; with one more axis than the model's inputs have, several), a
    folder of such files in the order of their names, or a text file (UTF-8), for which a tokenizer is needed.
    ``beside``: an array such as labels that batches also contain, where the ``.npz`` file has it. ``states``: inputs
    that may be left out, all of them together; a run then begins a text.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        specs: Sequence[TensorSpec],
        text: TextOptions | None = None,
        extra: str | None = None,
        states: Sequence[State] = (),
    ) -> None:
        """Raise MoecError for data that cannot be read or does not fit the inputs."""
        self.path, self._specs, self._text = pathlib.Path(path), list(specs), text or TextOptions()
        self._beside: set[str] = set() if extra is None else {extra}
        self._states = {state.input for state in states}
        if not self.path.exists():
            raise MoecError(f"{path}: no such file; expected .npz files of inputs, or text")
        self._files = self._listed()
        self._tokens = self._tokenized() if is_text(self._files[0]) else None

    @property
    def name(self) -> str:
        return self.path.name

    def sha256(self) -> str:
        """Hash the bytes of all files, in their order."""
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(file.read_bytes())
        return digest.hexdigest()

    def __iter__(self) -> Iterator[Batch]:
        if self._tokens is not None:
            yield from self._of_tokens(self._tokens)
            return
        for file in self._files:
            yield from self._of_file(file)

    def _listed(self) -> list[pathlib.Path]:
        if not self.path.is_dir():
            return [self.path]
        files = sorted(self.path.glob("*.npz"))
        if not files:
            raise MoecError(f"{self.path}: holds no .npz file; expected a folder of them")
        return files

    def _of_file(self, path: pathlib.Path) -> Iterator[Batch]:
        arrays = read_arrays(path, self._specs)
        specs = self._specs if self._states & arrays.keys() else self._without_states()
        names = {spec.name for spec in specs}
        if missing := sorted(names - arrays.keys()):
            raise MoecError(f"{path}: has no array {missing[0]!r}; expected the model's inputs: {sorted(names)}")
        for spec in specs:
            if arrays[spec.name].dtype != dtype_of(spec.dtype):
                actual = arrays[spec.name].dtype
                raise MoecError(f"{path}: the input {spec.name!r} is {actual}; expected {spec.dtype}: convert it")
        spare = {array.ndim - len(spec.shape) for spec in specs for array in (arrays[spec.name],)}
        if spare not in ({0}, {1}):
            shapes = ", ".join(f"{spec} is {list(arrays[spec.name].shape)}" for spec in specs)
            raise MoecError(
                f"{path}: the arrays have the shapes {shapes}; expected those of the inputs, or all with one more "
                "axis in front, for batches"
            )
        whole = {name: arrays[name] for name in names | (self._beside & arrays.keys())}
        batches = [whole] if spare == {0} else _unstacked(whole, path)
        for batch in batches:
            yield {name: self._finite(path, name, array) for name, array in batch.items()}

    def _without_states(self) -> list[TensorSpec]:
        return [spec for spec in self._specs if spec.name not in self._states]

    def _finite(self, path: pathlib.Path, name: str, array: Array) -> Array:
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise MoecError(f"{path}: the input {name!r} holds NaN; data to measure on has to be numbers")
        return array

    def _tokenized(self) -> Array:
        tokenizer = self._text.opened(self.path)
        content = read_text(self.path, _LARGEST_TEXT)
        return np.array(list(itertools.islice(_ids(tokenizer, content), self._most())))

    def _most(self) -> int | None:
        """Number of tokens to use; None for all."""
        text = self._text
        return None if text.limit is None else text.limit * text.length

    def _of_tokens(self, tokens: Array) -> Iterator[Batch]:
        length, batch = self._text.length, self._text.batch
        rows = tokens[: len(tokens) // length * length].reshape(-1, length)[: self._text.limit]
        if not len(rows):
            raise MoecError(f"{self.path}: holds {len(tokens)} tokens, fewer than one row of {length}; give --length")
        tokens_name, others = self._inputs_of_text()
        for start in range(0, len(rows), batch):
            ids = rows[start : start + batch]
            defaults = {spec.name: _beside(spec, ids.shape) for spec in others}
            specs = {spec.name: dtype_of(spec.dtype) for spec in self._specs}
            yield {name: array.astype(specs[name]) for name, array in {tokens_name: ids, **defaults}.items()}

    def _inputs_of_text(self) -> tuple[str, list[TensorSpec]]:
        """Name the input for token ids [rows, length], and list the inputs that follow from it."""
        specs = self._without_states()
        ids = token_input(specs)
        others = [spec for spec in specs if spec != ids]
        if ids is None or not all(spec.name in _BESIDE_TOKENS or _is_cache(spec) for spec in others):
            listed = ", ".join(map(str, self._specs))
            raise MoecError(
                f"{self.path}: text gives token ids [rows, length], {', '.join(_BESIDE_TOKENS)} and empty "
                f"caches past*; the model takes {listed}: give .npz files of all of them"
            )
        return ids.name, others


def token_input(specs: Sequence[TensorSpec]) -> TensorSpec | None:
    """Find the one input that takes token ids [rows, length]. Returns None where there is none, or there are
    several."""
    candidates = [
        spec
        for spec in specs
        if spec.name not in _BESIDE_TOKENS and len(spec.shape) == 2 and dtype_of(spec.dtype).kind in "iu"
    ]
    return candidates[0] if len(candidates) == 1 else None


def _is_cache(spec: TensorSpec) -> bool:
    """Whether an input is a cache of past tokens that can be empty: its first axis counts rows, and all others have
    fixed sizes, except the length in [rows, heads, length, size]."""
    rest = [size for axis, size in enumerate(spec.shape[1:], 1) if not (axis == _LENGTH and len(spec.shape) == 4)]
    return spec.name.startswith("past") and len(spec.shape) > 1 and all(isinstance(size, int) for size in rest)


def _beside(spec: TensorSpec, shape: tuple[int, int]) -> Array:
    """Make an input that follows from token ids of the given shape."""
    if spec.name in _BESIDE_TOKENS:
        return _BESIDE_TOKENS[spec.name](shape)
    return np.zeros([shape[0], *(0 if isinstance(size, str) else size for size in spec.shape[1:])])


def check_limits(batch: Mapping[str, Array], limits: Mapping[str, int], path: pathlib.Path) -> None:
    """Raise MoecError where an input holds a number that indexes nothing, such as an id beyond the vocabulary."""
    for name, limit in limits.items():
        array = batch[name]
        if array.size and not 0 <= array.min() <= array.max() < limit:
            span = f"{array.min()} to {array.max()}"
            raise MoecError(f"{path}: the input {name!r} holds {span}; expected 0 to {limit - 1}")


def _unstacked(arrays: Mapping[str, Array], path: pathlib.Path) -> Iterator[Batch]:
    counts = {len(array) for array in arrays.values()}
    if len(counts) != 1:
        raise MoecError(f"{path}: arrays hold different numbers of batches: {sorted(counts)}")
    return ({name: array[index] for name, array in arrays.items()} for index in range(counts.pop()))


def _ids(tokenizer: Tokenizer, content: str) -> Iterator[int]:
    """Tokenize a text lazily, a few thousand lines at a time."""
    lines = content.splitlines(keepends=True)
    for start in range(0, len(lines), _LINES_AT_ONCE):
        for ids in tokenizer.encode_each(lines[start : start + _LINES_AT_ONCE]):
            yield from ids

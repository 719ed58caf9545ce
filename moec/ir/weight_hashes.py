"""Weights as text shows them: by a hash of their bytes instead of their numbers."""

from __future__ import annotations

import hashlib
import weakref
from typing import Any, NoReturn

import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.mapped_files import release_pages
from moec.common.progress import Progress, reported
from moec.ir.weights.stacks import packed_parts

PREFIX = "sha256:"
_HASH_DIGITS = 16
_LARGE = 1 << 20

_known_hashes: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def content_hash(tensor: ir.TensorProtocol) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a tensor's bytes; computed once per tensor object.

    Tensors are taken to be immutable, as everywhere in ONNX IR.
    """
    if isinstance(tensor, HashedTensor):
        return tensor.content_hash
    digits = _known_hashes.get(tensor)
    if digits is None:
        digest = hashlib.sha256()
        for part in packed_parts(tensor):
            digest.update(part)
            release_pages()
        digits = digest.hexdigest()[:_HASH_DIGITS]
        _known_hashes[tensor] = digits
    return digits


def hash_weights(model: ir.Model, progress: Progress, step: str) -> None:
    """Compute the hashes that the text of a model shows and say how far that is, for it reads all weights."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    new = [tensor for tensor in tensors if tensor is not None and _known_hashes.get(tensor) is None]
    for tensor in reported([tensor for tensor in new if tensor.nbytes >= _LARGE], _nbytes, progress, step, "weight"):
        content_hash(tensor)


def _nbytes(tensor: ir.TensorProtocol) -> int:
    return tensor.nbytes


class HashedTensor(ir.LazyTensor):
    """A tensor that knows its type, shape and hash, but not its numbers. Reading them raises MoecError."""

    def __init__(self, name: str | None, dtype: ir.DataType, shape: ir.Shape, content_hash: str) -> None:
        super().__init__(self._refuse, dtype, shape, name=name)
        self.content_hash = content_hash

    def _refuse(self) -> NoReturn:
        raise MoecError(
            f"weight {self.name}: the text holds its hash {self.content_hash}, not its numbers; "
            "pass them to parse_model as weights={name: array}"
        )


def check_hash(hashed: HashedTensor, tensor: ir.TensorProtocol) -> None:
    """Raises MoecError unless ``tensor`` has the type, shape and bytes that ``hashed`` stands for."""
    expected = (hashed.dtype, tuple(hashed.shape), hashed.content_hash)
    actual = (tensor.dtype, tuple(tensor.shape), content_hash(tensor))
    if actual != expected:
        raise MoecError(
            f"weight {hashed.name}: the given array is {actual[0]}{list(actual[1])} with hash {actual[2]}; "
            f"the text has {expected[0]}{list(expected[1])} with hash {expected[2]}"
        )

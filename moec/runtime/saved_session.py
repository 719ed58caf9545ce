"""Sessions in files: the tokens and states of a session of one artifact, as named arrays in a sealed ``.npz``."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np

from moec.common.array_files import read_arrays, write_arrays
from moec.common.errors import InputError

_ARTIFACT, _TOKENS, _MASK, _STATE = "artifact", "tokens", "mask", "state:"


@dataclasses.dataclass(frozen=True)
class SavedSession:
    """Contents of a file. ``digest``: of the artifact (:attr:`moec.CompiledModel.digest`). ``tokens``: integers [batch,
    length]. ``mask``: bool [batch, length], whether each counts. ``states``: arrays and pages by the input of the
    state."""

    digest: str
    tokens: np.ndarray
    mask: np.ndarray
    states: Mapping[str, np.ndarray]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file, where nothing is or one that moec wrote and nobody changed. Raises MoecError."""
        states = {f"{_STATE}{name}": _as_bytes(array) for name, array in self.states.items()}
        artifact = np.frombuffer(bytes.fromhex(self.digest), np.uint8)
        write_arrays(path, {_ARTIFACT: artifact, _TOKENS: self.tokens, _MASK: self.mask, **states})

    @classmethod
    def read(cls, path: str | os.PathLike[str], digest: str) -> SavedSession:
        """Read a file of a session of the artifact ``digest``. Raises InputError for any other file. States are not
        checked."""
        arrays = read_arrays(path)
        artifact, tokens, mask = (arrays.pop(name, None) for name in (_ARTIFACT, _TOKENS, _MASK))
        if artifact is None or tokens is None or mask is None or not all(name.startswith(_STATE) for name in arrays):
            raise InputError(f"{path}: holds {_shown(arrays)}; expected a session that session.save wrote")
        if artifact.tobytes().hex() != digest:
            raise InputError(
                f"{path}: is a session of another artifact ({artifact.tobytes()[:4].hex()}...; this one is "
                f"{digest[:8]}...); remove it or choose another file"
            )
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or (mask.shape, mask.dtype) != (tokens.shape, np.bool_):
            raise InputError(
                f"{path}: has tokens {tokens.dtype}{list(tokens.shape)} and a mask {mask.dtype}{list(mask.shape)}; "
                "expected integers and bool [batch, length]"
            )
        return cls(digest, tokens, mask, {name.removeprefix(_STATE): array for name, array in arrays.items()})


def checked_state(name: str, array: np.ndarray | None, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Return the array of a state, with its type. Raises InputError where it has another type or shape, or is None."""
    if array is not None and dtype.isbuiltin != 1 and array.dtype == np.uint8:
        array = array.view(dtype) if array.shape and array.shape[-1] % dtype.itemsize == 0 else array
    if array is None or array.dtype != dtype or array.shape != tuple(shape):
        actual = "none" if array is None else f"{array.dtype}{list(array.shape)}"
        raise InputError(f"the file of the session has for state {name!r} {actual}; expected {dtype}{list(shape)}")
    return array


def _as_bytes(array: np.ndarray) -> np.ndarray:
    """Elements of types that numpy does not have as raw bytes: the last axis of bfloat16 becomes twice as long."""
    return array.view(np.uint8) if array.dtype.isbuiltin != 1 else array


def _shown(arrays: Mapping[str, np.ndarray]) -> str:
    names = sorted(arrays)
    return ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "") if names else "no arrays"

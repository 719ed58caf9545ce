"""Roles of a language model's inputs, as far as a session can tell, and the values that follow from them.

Types, shapes and the manifest identify most: token ids are the integers that index an embedding, and an attention mask
is as long as past and new tokens together. The rest is identified by usual names: ``input_ids``, ``attention_mask``,
``position_ids``, ``cache_position``, and ONNX's own ``write_indices`` and ``nonpad_kv_seqlen``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from moec.common.dtypes import dtype_of
from moec.common.errors import InputError
from moec.common.guards import parse_size
from moec.common.specs import TensorSpec
from moec.runtime.interface import Interface

Role = Literal["mask", "positions", "past", "total"]
_NAMED: dict[str, Role] = {
    "attention_mask": "mask",
    "position_ids": "positions",
    "cache_position": "positions",
    "write_indices": "past",
    "nonpad_kv_seqlen": "total",
}
_IDS, _LOGITS = "input_ids", "logits"


@dataclasses.dataclass(frozen=True)
class Roles:
    """Inputs and outputs of a model by role.

    ``ids``: the input of token ids [batch, new]. ``limit``: bound of the ids, where known. ``filled``: inputs that
    follow from the number of tokens. ``asked``: inputs that the caller gives by name. ``logits``: the output [batch,
    new, vocabulary].
    """

    ids: TensorSpec
    limit: int | None
    filled: Mapping[str, tuple[Role, TensorSpec]]
    asked: tuple[TensorSpec, ...]
    logits: TensorSpec

    @property
    def mask(self) -> str | None:
        """Name of the attention mask."""
        return next((name for name, (role, _) in self.filled.items() if role == "mask"), None)

    def sequence_axes(self, spec: TensorSpec) -> list[int]:
        """List the axes of an input or output that count sequences; a mask's may have a name of its own."""
        role = self.filled[spec.name][0] if spec.name in self.filled else None
        if role is None:
            return [axis for axis, size in enumerate(spec.shape) if size == self.ids.shape[0]]
        is_one_for_all = (role == "positions" and len(spec.shape) == 1) or isinstance(spec.shape[0], int)
        return [] if is_one_for_all else [0]

    def values(self, mask: np.ndarray, new: int) -> dict[str, np.ndarray]:
        """Compute the inputs that follow from a ``mask`` bool [batch, past + new] of the tokens that count."""
        values = {}
        for name, (role, spec) in self.filled.items():
            value = _value(role, mask, new, len(spec.shape))
            values[name] = np.ascontiguousarray(value.astype(dtype_of(spec.dtype)))
        return values


def _value(role: Role, mask: np.ndarray, new: int, rank: int) -> np.ndarray:
    batch, total = mask.shape
    if role == "mask":
        return mask
    if role == "positions" and rank == 1:
        return np.arange(total - new, total)
    if role == "positions":
        return np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, total - new :]
    return np.full(batch, total - new if role == "past" else total)


def roles_of(interface: Interface) -> Roles:
    """Assign the roles. Raises InputError for a model without token ids or without logits."""
    cached = {state.input for state in interface.states}
    free = [spec for spec in interface.inputs if spec.name not in cached]
    ids = _token_ids(free, interface.limits)
    filled: dict[str, tuple[Role, TensorSpec]] = {}
    for spec in free:
        role = None if spec is ids else _role(spec, ids, interface.sizes)
        if role is not None:
            filled[spec.name] = (role, spec)
    asked = tuple(spec for spec in free if spec is not ids and spec.name not in filled)
    kept = {state.output for state in interface.states}
    logits = _logits([spec for spec in interface.outputs if spec.name not in kept])
    return Roles(ids, interface.limits.get(ids.name), filled, asked, logits)


def _token_ids(free: Sequence[TensorSpec], limits: Mapping[str, int]) -> TensorSpec:
    integers = [spec for spec in free if dtype_of(spec.dtype).kind in "iu" and len(spec.shape) == 2]
    named = [spec for spec in integers if spec.name == _IDS]
    indexing = [spec for spec in integers if spec.name in limits and spec.name not in _NAMED]
    matches = named or indexing
    if len(matches) != 1:
        listed = ", ".join(map(str, free)) or "none"
        raise InputError(
            f"the model has {len(matches) or 'no'} inputs that could be token ids: integers [batch, length] that index "
            f"an embedding, or {_IDS!r}; its inputs: {listed}; sessions are for language models: use run instead"
        )
    return matches[0]


def _role(spec: TensorSpec, ids: TensorSpec, sizes: Mapping[str, str]) -> Role | None:
    named = _NAMED.get(spec.name)
    is_integer = dtype_of(spec.dtype).kind in "iu"
    if named == "positions":
        return named if is_integer and len(spec.shape) in (1, 2) else None
    if named in ("past", "total"):
        return named if is_integer and len(spec.shape) == 1 else None
    if len(spec.shape) != 2:
        return None
    length = str(spec.shape[1])
    terms = sizes.get(length, length).split(" + ")
    return "mask" if named == "mask" or (len(terms) > 1 and str(ids.shape[1]) in terms) else None


def _logits(outputs: Sequence[TensorSpec]) -> TensorSpec:
    scores = [spec for spec in outputs if len(spec.shape) == 3 and dtype_of(spec.dtype).kind not in "iub"]
    named = [spec for spec in scores if spec.name == _LOGITS]
    fits = named or scores
    if len(fits) != 1:
        listed = ", ".join(map(str, outputs)) or "none"
        raise InputError(
            f"the model has {len(fits) or 'no'} outputs that could be logits [batch, length, vocabulary]; its outputs "
            f"except states: {listed}; sessions are for language models: use run instead"
        )
    return fits[0]


def room_of(axis: int | None, input: TensorSpec, output: TensorSpec) -> int | str | None:
    """Length of the axis of a state with room, which a run writes along but does not extend: a number, or the name of a
    size that only the cache determines. Returns None for states that grow or are replaced."""
    return None if axis is None or input.shape[axis] != output.shape[axis] else input.shape[axis]


def first_shape(spec: TensorSpec, axis: int | None, sizes: Mapping[str, int], room: int | None) -> tuple[int, ...]:
    """Shape of a state before the first token. ``sizes``: known ones by name; ``room``: length of the axis that is
    written along, None for one that grows from nothing. Raises InputError for a size that is not known."""
    shape = []
    for place, size in enumerate(spec.shape):
        if isinstance(size, int):
            shape.append(size)
        elif place == axis:
            shape.append(room or 0)
        else:
            shape.append(_size(size, sizes, spec))
    return tuple(shape)


def _size(text: str, sizes: Mapping[str, int], spec: TensorSpec) -> int:
    try:
        return parse_size(text)(sizes)
    except (ValueError, KeyError, ZeroDivisionError):
        raise InputError(
            f"state {spec}: nothing tells how large its size {text!r} is; give that input a fixed size in the model"
        ) from None

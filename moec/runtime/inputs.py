"""Checks of what a compiled model is called with, before anything reaches a kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moec.errors import InputError
from moec.runtime.dtypes import dtype_of
from moec.runtime.manifest import TensorSpec
from moec.runtime.tensors import array_of


def check_inputs(specs: Sequence[TensorSpec], values: Mapping[str, Any]) -> list[np.ndarray]:
    """The values as arrays in the order of ``specs``, over the same memory.

    Raises InputError naming the input, what was found and what was expected: for missing and unknown names, wrong
    element types, ranks and fixed sizes, and dynamic sizes of one name that differ.
    """
    _check_names(specs, values)
    sizes: dict[str, tuple[int, str]] = {}
    arrays = []
    for spec in specs:
        array = array_of(spec.name, values[spec.name])
        _check_array(spec, array)
        _bind_sizes(spec, array, sizes)
        arrays.append(array)
    return arrays


def _check_names(specs: Sequence[TensorSpec], values: Mapping[str, Any]) -> None:
    known = {spec.name for spec in specs}
    if known == values.keys():
        return
    listed = ", ".join(map(str, specs)) or "none"
    for name in values:
        if name not in known:
            raise InputError(f"unknown input {name!r}; expected: {listed}")
    missing = next(spec.name for spec in specs if spec.name not in values)
    raise InputError(f"input {missing!r} is missing; expected: {listed}")


def _check_array(spec: TensorSpec, array: np.ndarray) -> None:
    if array.dtype != dtype_of(spec.dtype):
        raise InputError(f"input {spec.name!r} has dtype {array.dtype}; expected {spec.dtype}: convert it with .astype")
    if array.ndim != len(spec.shape):
        raise InputError(
            f"input {spec.name!r} has rank {array.ndim} (shape {list(array.shape)}); expected rank {len(spec.shape)}: "
            f"{spec}"
        )
    for axis, (found, expected) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if isinstance(expected, int) and found != expected:
            raise InputError(f"input {spec.name!r} has size {found} on axis {axis}; expected {expected}: {spec}")


def _bind_sizes(spec: TensorSpec, array: np.ndarray, sizes: dict[str, tuple[int, str]]) -> None:
    for axis, (found, name) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if isinstance(name, int):
            continue
        expected, first = sizes.setdefault(name, (found, spec.name))
        if found != expected:
            raise InputError(
                f"input {spec.name!r} has size {found} on axis {axis} ({name}); expected {expected}, which {name} is "
                f"in input {first!r}"
            )

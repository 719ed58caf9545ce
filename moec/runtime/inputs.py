"""Checks of what a compiled model is called with, before anything reaches a kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moec.arguments import shown
from moec.errors import InputError
from moec.runtime.dtypes import dtype_of
from moec.runtime.manifest import TensorSpec
from moec.runtime.on_device import OnDevice
from moec.runtime.tensors import CPU, array_of


class InputCheck:
    """The inputs that a model takes. What can be prepared is prepared here: a call checks, and explains only what is
    wrong, for the checks of a model that is called once in a while are read from memory like its weights."""

    def __init__(self, specs: Sequence[TensorSpec], device: int = CPU) -> None:
        """``device``: the kind, as DLPack counts, of the memory that arrays may be in beside the host's."""
        self._specs, self._device = tuple(specs), device
        self._names = frozenset(spec.name for spec in specs)
        self._expected = [(spec.name, dtype_of(spec.dtype), spec.shape) for spec in specs]
        self._fixed = {size: size for spec in specs for size in spec.shape if isinstance(size, int)}

    def __call__(self, values: Mapping[str, Any]) -> list[np.ndarray | OnDevice]:
        """The values as arrays in the order of the specifications, over the same memory.

        Raises InputError naming the input, what was found and what was expected: for missing and unknown names, wrong
        element types, ranks and fixed sizes, and dynamic sizes of one name that differ.
        """
        if not isinstance(values, (dict, Mapping)):  # the second takes longer to ask
            listed = ", ".join(map(str, self._specs)) or "none"
            raise InputError(f"inputs are {shown(values)}; expected a mapping of arrays by name: {listed}")
        if values.keys() != self._names:
            raise self._wrong_names(values)
        sizes: dict[str | int, int] = {**self._fixed}
        arrays: list[np.ndarray | OnDevice] = []
        for name, dtype, shape in self._expected:
            array = values[name]
            if not isinstance(array, np.ndarray):
                array = array_of(name, array, self._device)
            arrays.append(array)
            if array.dtype != dtype or array.ndim != len(shape):
                raise self._wrong_array(arrays)
            for found, size in zip(array.shape, shape, strict=True):
                if sizes.setdefault(size, found) != found:
                    raise self._wrong_array(arrays)
        return arrays

    def _wrong_names(self, values: Mapping[str, Any]) -> InputError:
        listed = ", ".join(map(str, self._specs)) or "none"
        unknown = [name for name in values if name not in self._names]
        if unknown:
            return InputError(f"unknown input {unknown[0]!r}; expected: {listed}")
        missing = next(spec.name for spec in self._specs if spec.name not in values)
        return InputError(f"input {missing!r} is missing; expected: {listed}")

    def _wrong_array(self, arrays: Sequence[np.ndarray | OnDevice]) -> InputError:
        """What is wrong with the last of ``arrays``, given those before it."""
        spec, array = self._specs[len(arrays) - 1], arrays[-1]
        if array.dtype != dtype_of(spec.dtype):
            hint = "convert it with .astype"
            return InputError(f"input {spec.name!r} has dtype {array.dtype}; expected {spec.dtype}: {hint}")
        if array.ndim != len(spec.shape):
            found = f"rank {array.ndim} (shape {list(array.shape)})"
            return InputError(f"input {spec.name!r} has {found}; expected rank {len(spec.shape)}: {spec}")
        for axis, (size, expected) in enumerate(zip(array.shape, spec.shape, strict=True)):
            if isinstance(expected, int) and size != expected:
                return InputError(f"input {spec.name!r} has size {size} on axis {axis}; expected {expected}: {spec}")
        return self._different_sizes(arrays)

    def _different_sizes(self, arrays: Sequence[np.ndarray | OnDevice]) -> InputError:
        first: dict[str | int, tuple[int, str]] = {}
        for spec, array in zip(self._specs, arrays, strict=False):
            for axis, (found, size) in enumerate(zip(array.shape, spec.shape, strict=True)):
                expected, owner = first.setdefault(size, (found, spec.name))
                if found != expected:
                    where = f"input {spec.name!r} has size {found} on axis {axis} ({size})"
                    return InputError(f"{where}; expected {expected}, which {size} is in input {owner!r}")
        raise AssertionError("an input was refused that fits")

"""Checks of a compiled model's inputs before anything reaches a kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moec.common.arguments import shown
from moec.common.dtypes import dtype_of
from moec.common.errors import InputError
from moec.common.guards import Expression, computed_sizes, holds, parse_guard, size_names, solve
from moec.common.specs import TensorSpec
from moec.runtime.on_device import OnDevice
from moec.runtime.tensors import CPU, array_of


def bound_inputs(names: Sequence[str], arguments: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the inputs of a call by name: positional ones, named ones, or one mapping of all. Raises InputError for
    more positions than ``names``, and for an input that is given twice."""
    if len(arguments) == 1 and not named and isinstance(arguments[0], Mapping):
        return dict(arguments[0])
    if len(arguments) > len(names):
        raise InputError(f"{len(arguments)} positional inputs given; the model takes {len(names)}: {', '.join(names)}")
    positional = dict(zip(names, arguments, strict=False))
    if twice := sorted(positional.keys() & named.keys()):
        raise InputError(f"input {twice[0]!r} is given both by position and by name; give it once")
    return {**positional, **named}


class InputCheck:
    """Check of the inputs that a model takes.

    Everything possible is prepared here. A call only checks, and explains only errors: for a model that is called once
    in a while, code has to be fetched from memory just like weights.
    """

    def __init__(self, specs: Sequence[TensorSpec], device: int = CPU, guards: Sequence[str] = ()) -> None:
        """``device``: kind, by DLPack's numbers, of the memory that arrays may be in besides the host's. ``guards``:
        see :mod:`moec.common.guards`; ``specs`` have all names in them."""
        self._specs, self._device = tuple(specs), device
        self._names = frozenset(spec.name for spec in specs)
        self._expected = [(spec.name, dtype_of(spec.dtype), spec.shape) for spec in specs]
        self._fixed = {size: size for spec in specs for size in spec.shape if isinstance(size, int)}
        self._computed = computed_sizes(spec.shape for spec in specs)
        self._guards = [parse_guard(text) for text in guards]

    def __call__(self, values: Mapping[str, Any]) -> list[np.ndarray | OnDevice]:
        """Convert the values to arrays in the order of the specifications, over the same memory.

        Raises InputError naming the input, the actual and the expected property: for missing and unknown names, wrong
        element types, ranks and fixed sizes, dynamic sizes of one name that differ or that differ from their
        expression, and sizes that violate a guard.
        """
        if not isinstance(values, (dict, Mapping)):  # the second takes longer to check
            listed = ", ".join(map(str, self._specs)) or "none"
            raise InputError(f"inputs are {shown(values)}; expected a mapping of arrays by name: {listed}")
        if values.keys() != self._names:
            raise self._wrong_names(values)
        sizes: dict[Any, int] = {**self._fixed}
        arrays: list[np.ndarray | OnDevice] = []
        for name, dtype, shape in self._expected:
            array = values[name]
            if not isinstance(array, np.ndarray):
                array = array_of(name, array, self._device)
            arrays.append(array)
            if array.dtype != dtype or array.ndim != len(shape):
                raise self._wrong_array(arrays)
            for actual, size in zip(array.shape, shape, strict=True):
                if sizes.setdefault(size, actual) != actual:
                    raise self._wrong_array(arrays)
        self._check_sizes(sizes)
        return arrays

    def _check_sizes(self, sizes: dict[Any, int]) -> None:
        for size in self._computed:
            if not solve(size, sizes):
                raise self._wrong_size(size, sizes)
        for guard in self._guards:
            if not holds(guard, sizes):
                raise self._outside(guard, sizes)

    def _wrong_names(self, values: Mapping[str, Any]) -> InputError:
        listed = ", ".join(map(str, self._specs)) or "none"
        unknown = [name for name in values if name not in self._names]
        if unknown:
            return InputError(f"unknown input {unknown[0]!r}; expected: {listed}")
        missing = next(spec.name for spec in self._specs if spec.name not in values)
        return InputError(f"input {missing!r} is missing; expected: {listed}")

    def _wrong_array(self, arrays: Sequence[np.ndarray | OnDevice]) -> InputError:
        """Explain what is wrong with the last of ``arrays``, given those before it."""
        spec, array = self._specs[len(arrays) - 1], arrays[-1]
        if array.dtype != dtype_of(spec.dtype):
            hint = "convert it with .astype"
            return InputError(f"input {spec.name!r} has dtype {array.dtype}; expected {spec.dtype}: {hint}")
        if array.ndim != len(spec.shape):
            rank = f"rank {array.ndim} (shape {list(array.shape)})"
            return InputError(f"input {spec.name!r} has {rank}; expected rank {len(spec.shape)}: {spec}")
        for axis, (size, expected) in enumerate(zip(array.shape, spec.shape, strict=True)):
            if isinstance(expected, int) and size != expected:
                return InputError(f"input {spec.name!r} has size {size} on axis {axis}; expected {expected}: {spec}")
        return self._different_sizes(arrays)

    def _wrong_size(self, size: Expression[int], sizes: Mapping[Any, int]) -> InputError:
        name, axis = self._place(size.text)
        sizes_given = [self._found(known_name, sizes) for known_name in size.names if known_name in sizes]
        condition = f"where {', '.join(sizes_given)}" if sizes_given else f"for a whole number {', '.join(size.names)}"
        return InputError(f"input {name!r} has size {sizes[size.text]} on axis {axis}; expected {size} {condition}")

    def _outside(self, guard: Expression[bool], sizes: Mapping[Any, int]) -> InputError:
        sizes_text = ", ".join(self._found(name, sizes) for name in guard.names)
        return InputError(f"the model was exported for sizes with {guard} only, and cannot run where {sizes_text}")

    def _found(self, size: str, sizes: Mapping[Any, int]) -> str:
        """Describe a size, as in ``seq = 40 (axis 1 of input 'x')``."""
        name, axis = self._place(size)
        return f"{size} = {sizes[size]} (axis {axis} of input {name!r})"

    def _place(self, size: str) -> tuple[str, int]:
        """Find the first input that has the size, by itself or as part of another, and its axis."""
        axes = [(spec.name, axis, text) for spec in self._specs for axis, text in enumerate(spec.shape)]
        whole = [(name, axis) for name, axis, text in axes if text == size]
        return (whole + [(name, axis) for name, axis, text in axes if size in size_names(text)])[0]

    def _different_sizes(self, arrays: Sequence[np.ndarray | OnDevice]) -> InputError:
        first: dict[str | int, tuple[int, str]] = {}
        for spec, array in zip(self._specs, arrays, strict=False):
            for axis, (actual, size) in enumerate(zip(array.shape, spec.shape, strict=True)):
                expected, owner = first.setdefault(size, (actual, spec.name))
                if actual != expected:
                    where = f"input {spec.name!r} has size {actual} on axis {axis} ({size})"
                    return InputError(f"{where}; expected {expected}, which {size} is in input {owner!r}")
        raise AssertionError("an input was refused that fits")

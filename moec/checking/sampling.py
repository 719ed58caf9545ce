"""Random inputs that a model accepts: sizes for its dynamic dimensions, and values its operators can take."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from moec.common.dtypes import dtype_of
from moec.common.errors import MoecError
from moec.common.guards import holds, parse_guard, parse_size, size_names
from moec.common.specs import TensorSpec

_LARGEST = 64
"""Bound of the sizes that are tried where guards exclude the preferred ones, in addition to those around the guards'
numbers."""


def size_cases(
    specs: Sequence[TensorSpec],
    choices: Sequence[int] = (1, 3, 16),
    first_sizes: Sequence[int] = (1, 3, 2),
    dependent: Mapping[str, str] | None = None,
    guards: Sequence[str] = (),
) -> list[dict[str, int]]:
    """Select sizes for every named dynamic dimension, one case for each of ``choices``. Where there are several names,
    the first (the batch, as models are exported) takes ``first_sizes`` instead.

    ``dependent`` sizes follow from others (:mod:`moec.passes.shapes.input_sizes`). Where one is a sum, the past gets
    the next of ``choices`` as its length, and 0 in the last case: a few tokens after many, and a prompt. Where
    ``guards`` (:mod:`moec.common.guards`) exclude sizes, the nearest allowed ones are taken. No case comes twice.
    Raises MoecError where no allowed sizes are found.
    """
    dependent = dependent or {}
    names = dict.fromkeys(name for spec in specs for size in spec.shape for name in size_names(size))
    free = [name for name in names if name not in dependent]
    if not free:
        return [{}]
    first, others = free[0], free[1:]
    pasts = {size_names(size)[0] for size in dependent.values() if "+" in size} & names.keys()
    cases = []
    for size, batch, past in zip(choices, first_sizes, (*choices[1:], 0), strict=True):
        case = {first: batch if others else size, **dict.fromkeys(others, size), **dict.fromkeys(pasts, past)}
        cases.append(completed_sizes(case, dependent))
    if not guards:
        return cases
    inside = [_nearest(case, guards, dependent, lambda truths: all(truths)) for case in cases]
    if None in inside:
        raise MoecError(f"no sizes found with {' and '.join(guards)}; give inputs of such sizes")
    return [case for position, case in enumerate(inside) if case is not None and case not in inside[:position]]


def outside_cases(
    case: Mapping[str, int], guards: Sequence[str], dependent: Mapping[str, str]
) -> dict[str, dict[str, int]]:
    """Find for each of ``guards`` sizes near ``case`` that it excludes; guards without such sizes are left out."""
    cases = {guard: _nearest(case, [guard], dependent, lambda truths: not all(truths)) for guard in guards}
    return {guard: sizes for guard, sizes in cases.items() if sizes is not None}


def _nearest(
    case: Mapping[str, int], guards: Sequence[str], dependent: Mapping[str, str], accepts: Callable[[list[bool]], bool]
) -> dict[str, int] | None:
    """Find the sizes nearest to ``case`` for which ``accepts`` is true of the guards' values."""
    parsed = [parse_guard(guard) for guard in guards]
    free = list(
        dict.fromkeys(name for guard in parsed for of in guard.names for name in size_names(dependent.get(of, of)))
    )
    numbers = [int(digits) for guard in guards for digits in re.findall(r"\b\d{1,6}\b", guard)]
    tried = {
        *range(_LARGEST + 1),
        *(size for number in numbers for size in (number - 1, number, number + 1, 2 * number)),
    }
    nearby = [_nearby(case[name], tried) for name in free]
    for sizes in itertools.product(*nearby):
        changed = completed_sizes({**case, **dict(zip(free, sizes, strict=True))}, dependent)
        if accepts([holds(guard, changed) for guard in parsed]):
            return changed
    return None


def _nearby(preferred: int, tried: set[int]) -> list[int]:
    """Sort sizes by their distance from ``preferred``. Zero, for which models compute nothing, comes last unless it is
    wanted."""
    sizes = {*tried, preferred} - {-1}
    return sorted(sizes, key=lambda size: (size == 0 != preferred, abs(size - preferred), size))


def completed_sizes(case: Mapping[str, int], dependent: Mapping[str, str]) -> dict[str, int]:
    return {**case, **{name: evaluated_size(total, case) for name, total in dependent.items()}}


def random_inputs(
    specs: Sequence[TensorSpec], sizes: Mapping[str, int], limits: Mapping[str, int], seed: int = 0
) -> dict[str, np.ndarray]:
    """Draw normal floats and integers below their limit; integers without a limit, and booleans (masks), are ones."""
    generator = np.random.default_rng(seed)
    inputs = {}
    for spec in specs:
        shape = tuple(evaluated_size(size, sizes) for size in spec.shape)
        dtype = dtype_of(spec.dtype)
        if spec.name in limits:
            inputs[spec.name] = generator.integers(0, limits[spec.name], shape).astype(dtype)
        elif dtype.kind in "iub":
            inputs[spec.name] = np.ones(shape, dtype)
        else:
            inputs[spec.name] = generator.standard_normal(shape).astype(dtype)
    return inputs


def evaluated_size(size: int | str, sizes: Mapping[str, int]) -> int:
    """Evaluate an int, a name, or arithmetic of both as exporters write it (``past_length + sequence_length``)."""
    if isinstance(size, int):
        return size
    return sizes[size] if size_names(size) == (size,) else parse_size(size)(sizes)

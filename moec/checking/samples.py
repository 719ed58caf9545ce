"""Random inputs that go beyond a few usual sizes: several of everything, many tokens, other magnitudes and indices."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from moec.checking.sampling import completed_sizes, evaluated_size, random_inputs, size_cases
from moec.common.guards import holds, parse_guard, size_names
from moec.common.specs import TensorSpec

Inputs = dict[str, np.ndarray]
MANY = 300
LEAST = 3
"""The least size where there are several of everything."""


@dataclasses.dataclass(frozen=True)
class Samples:
    """Inputs of a model: ``limits`` of indices, sizes ``dependent`` on others, and ``guards`` that sizes have to keep
    (see :func:`moec.checking.sampling.size_cases`)."""

    specs: Sequence[TensorSpec]
    limits: Mapping[str, int]
    dependent: Mapping[str, str]
    guards: Sequence[str] = ()

    @functools.cached_property
    def free(self) -> list[str]:
        """The names of sizes that can be chosen."""
        names = dict.fromkeys(name for spec in self.specs for size in spec.shape for name in size_names(size))
        return [name for name in names if name not in self.dependent]

    def usual(self) -> Iterator[Inputs]:
        """Many tokens, for tables by place go on where nothing is compared, and three or more of everything, because
        values may be shared along one axis or counted along two."""
        yield self.of(MANY, 1, 10)
        yield from (self.at(sizes, 16) for sizes in self.unequal())

    def unequal(self) -> list[dict[str, int]]:
        """Two cases in which every size is 3 or more and no two are equal, that of one smallest where it is largest in
        the other; none where there is one. Caches are empty: onnxruntime's attention takes several tokens behind others
        of one sequence alone."""
        pasts = {size_names(size)[0] for size in self.dependent.values() if "+" in size}
        names = [name for name in self.free if name not in pasts]
        if len(names) < 2:
            return []
        sizes = range(LEAST, LEAST + len(names))
        cases = [dict(zip(names, order, strict=True)) for order in (sizes, sizes[::-1])]
        return [case for case in (dict.fromkeys(pasts, 0) | case for case in cases) if self.allows(case)]

    def further(self, tokens: Sequence[int]) -> Iterator[Inputs]:
        """Floats of other magnitudes, the first and the last index, and so many ``tokens`` and sequences."""
        for factor in (1e-3, 30.0, 1e3, -1.0, 0.0):
            if any(np.dtype(spec.dtype).kind == "f" for spec in self.specs if spec.dtype != "bfloat16"):
                yield {name: _scaled(array, factor) for name, array in self.of(7, 2, 11).items()}
        for place in (0, -1):
            usual = self.of(7, 2, 12)
            yield usual | {name: np.full_like(usual[name], place % limit) for name, limit in self.limits.items()}
        for count in tokens:
            yield self.of(count, 1, 13)
            yield self.of(3, count, 14)

    def of(self, tokens: int, sequences: int, seed: int) -> Inputs:
        (sizes,) = size_cases(self.specs, (tokens,), (sequences,), self.dependent)
        return random_inputs(self.specs, sizes, self.limits, seed)

    def at(self, sizes: Mapping[str, int], seed: int) -> Inputs:
        """Inputs of these free sizes."""
        return random_inputs(self.specs, self.complete(sizes), self.limits, seed)

    def complete(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return completed_sizes(sizes, self.dependent)

    def allows(self, sizes: Mapping[str, int]) -> bool:
        complete = self.complete(sizes)
        return all(holds(parse_guard(guard), complete) for guard in self.guards)

    def rows_at(self, sizes: Mapping[str, int]) -> int:
        """Rows of the largest input, or its elements where it is a matrix of indices."""
        complete = self.complete(sizes)
        rows = [1]
        for spec in self.specs:
            shape = [evaluated_size(size, complete) for size in spec.shape]
            rows.append(math.prod(shape if spec.dtype.startswith(("bool", "int", "uint")) else shape[:-1]))
        return max(rows)

    def sizes_of(self, inputs: Inputs) -> dict[str, int]:
        """The free sizes that inputs have."""
        return {
            name: inputs[spec.name].shape[axis]
            for spec in self.specs
            for axis, size in enumerate(spec.shape)
            for name in size_names(size)
            if (name,) == size_names(size) and name in self.free
        }


def _scaled(array: np.ndarray, factor: float) -> np.ndarray:
    return array if array.dtype.kind in "iub" else (array * array.dtype.type(factor)).astype(array.dtype)

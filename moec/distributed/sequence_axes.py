"""Parts of inputs and outputs of a model by sequences, which different ranks compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from moec.common.specs import TensorSpec
from moec.runtime.roles import Roles

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class SequenceAxes:
    """The ``axes`` of inputs and outputs that count sequences, by name, none where they are not split; ``count``:
    sequences, or 1; ``tokens``: of each, or 0."""

    axes: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    count: int = 1
    tokens: int = 0

    @staticmethod
    def of(arrays: Arrays, roles: Roles | None, specs: Iterable[TensorSpec]) -> SequenceAxes:
        """Find the axes for inputs. ``roles``: None for a model whose sequences are not split. Inputs of different
        numbers of them are not split, such as a mask that all sequences share."""
        if roles is None:
            return SequenceAxes()
        axes = {spec.name: roles.sequence_axes(spec) for spec in specs}
        counts = {array.shape[axis] for name, array in arrays.items() for axis in axes[name]}
        return SequenceAxes(axes, *arrays[roles.ids.name].shape) if len(counts) == 1 else SequenceAxes()

    def part(self, arrays: Arrays, part: slice) -> dict[str, np.ndarray]:
        """Take some of the sequences. What has one part for all sequences is not split."""
        result = dict(arrays)
        for name, array in arrays.items():
            for axis in self.axes.get(name, ()):
                result[name] = np.ascontiguousarray(array[(slice(None),) * axis + (part,)])
        return result

    def joined(self, parts: Sequence[Arrays]) -> dict[str, np.ndarray]:
        """Join outputs for parts of the sequences; of those without sequences take the first."""
        return {
            name: np.concatenate([part[name] for part in parts], self.axes[name][0]) if self.axes.get(name) else value
            for name, value in parts[0].items()
        }

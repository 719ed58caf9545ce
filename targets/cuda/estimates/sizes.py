"""The sizes of a kernel's call at some number of tokens, from the expressions stored in the artifact."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moec.common.dtypes import DTYPES
from moec.common.errors import ArtifactError, MoecError
from moec.common.guards import Expression, parse_size, size_names, solve
from moec.runtime.artifact import Artifact
from moec.runtime.manifest import ProgramEntry

TOKENS, SLOTS = "tokens", "slots"
"""Names of the dynamic sizes of routing weights [T, k] in kernels of experts."""
ROWS = "M"
"""Name of the number of rows in kernels of dense products."""
MULTIPROCESSORS = "multiprocessors"
"""Name of the GPU's number of multiprocessors in expressions of launches."""
LARGEST = 2**40
"""The largest valid size or number; larger ones are rejected."""


def evaluate(text: str, sizes: Mapping[str, int], where: str) -> int:
    """The value of a C expression of sizes. Raises ArtifactError for any other text, an unknown name, division by zero,
    and a result that is not a valid size."""
    size = _parsed(text, where)
    try:
        value = size(sizes)
    except (KeyError, ZeroDivisionError) as error:
        raise ArtifactError(f"{where}: size {text[:80]!r} cannot be computed: {error!r}") from error
    if not 0 <= value <= LARGEST:
        raise ArtifactError(f"{where}: size {text[:80]!r} is {value}; expected 0 to {LARGEST}")
    return value


class ModelSizes:
    """The model's sizes at any number of tokens, on a GPU with ``multiprocessors`` multiprocessors. ``past``: the
    length of states that a run extends. All other sizes that do not follow from the number of tokens are 1."""

    def __init__(self, artifact: Artifact, program: ProgramEntry, past: int, multiprocessors: int) -> None:
        inputs = {spec.name: spec for spec in artifact.manifest.inputs}
        states = [inputs[state.input].shape[state.axis] for state in program.held if state.input in inputs]
        lengths = [size for size in states if isinstance(size, str) and size_names(size) == (size,)]
        names = [name for spec in inputs.values() for size in spec.shape for name in size_names(size)]
        self._others = {**dict.fromkeys(names, 1), **dict.fromkeys(lengths, past)}
        self._others[MULTIPROCESSORS] = multiprocessors
        self.has_past = bool(lengths)

    def at(self, kernel: Mapping[str, Any], size: str, tokens: int, where: str) -> dict[str, int]:
        """The model's sizes at which ``size`` of a kernel equals ``tokens``. If it depends on several sizes of the
        model (a batch of sequences), all except the last are 1. Raises MoecError if the size cannot have that value."""
        text = kernel["sizes"][size]
        parsed = _parsed(text, where)
        sizes: dict[Any, int] = {parsed.text: tokens, **dict.fromkeys(parsed.names[:-1], 1)}
        if not solve(parsed, sizes) or evaluate(text, sizes, where) != tokens:
            raise MoecError(f"{where}: the layer has {text} tokens; {tokens} are none of these numbers")
        return {**self._others, **{name: sizes[name] for name in parsed.names}}

    def tell(self, kernel: Mapping[str, Any], texts: Iterable[str], where: str) -> bool:
        """Whether all sizes in ``texts``, expressions of a kernel, follow from the model's sizes.
        They do not if they depend on computed values."""
        sizes = kernel["sizes"]
        needed = [name for text in texts for name in _parsed(text, where).names]
        followed = [_parsed(sizes[name], where).names if name in sizes else (name,) for name in needed]
        return all(name in self._others for names in followed for name in names)


def kernel_sizes(kernel: Mapping[str, Any], model: Mapping[str, int], where: str) -> dict[str, int]:
    """The model's sizes and the kernel's own dynamic sizes, except those that depend on computed values."""
    own = {
        name: evaluate(text, model, where)
        for name, text in kernel["sizes"].items()
        if all(size in model for size in _parsed(text, where).names)
    }
    return {**model, **own}


def tensor_bytes(
    parameters: Sequence[Mapping[str, Any]], moved: Mapping[str, str], sizes: Mapping[str, int], where: str
) -> int:
    """The bytes of a kernel's tensors. ``moved``: by name, the most numbers of a tensor to count, as an expression."""
    total = 0
    for parameter in parameters:
        count = math.prod(evaluate(str(size), sizes, where) for size in parameter["shape"])
        if parameter["name"] in moved:
            count = min(count, evaluate(moved[parameter["name"]], sizes, where))
        total += count * DTYPES[parameter["dtype"]].itemsize
    return total


def _parsed(text: Any, where: str) -> Expression[int]:
    try:
        return parse_size(text.replace("/", "//"))
    except (ValueError, AttributeError) as error:
        raise ArtifactError(f"{where}: size {str(text)[:80]!r} cannot be computed: {error}") from error

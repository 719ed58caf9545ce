"""The sizes of a model at some number of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from moec.common.errors import MoecError
from moec.common.guards import size_names, solve
from moec.common.kernel_sizes import evaluate, parsed_size
from moec.common.specs import WANTED
from moec.runtime.artifact import Artifact
from moec.runtime.manifest import ProgramEntry

TOKENS, SLOTS = "tokens", "slots"
"""Names of the dynamic sizes of routing weights [T, k] in kernels of experts."""
ROWS = "M"
"""Name of the number of rows in kernels of dense products."""
MULTIPROCESSORS = "multiprocessors"
"""Name of the GPU's number of multiprocessors in expressions of launches."""


class ModelSizes:
    """The model's sizes at any number of tokens, on a GPU with ``multiprocessors`` multiprocessors. ``past``: the
    length of states that a run extends. Logits are those of the last token. All other sizes that do not follow from the
    number of tokens are 1."""

    def __init__(self, artifact: Artifact, program: ProgramEntry, past: int, multiprocessors: int) -> None:
        inputs = {spec.name: spec for spec in artifact.manifest.inputs}
        states = [inputs[state.input].shape[state.axis] for state in program.held if state.input in inputs]
        lengths = [size for size in states if isinstance(size, str) and size_names(size) == (size,)]
        names = [name for spec in inputs.values() for size in spec.shape for name in size_names(size)]
        self._others = {WANTED: 1, **dict.fromkeys(names, 1), **dict.fromkeys(lengths, past)}
        self._others[MULTIPROCESSORS] = multiprocessors
        self.has_past = bool(lengths)

    def at(self, kernel: Mapping[str, Any], size: str, tokens: int, where: str) -> dict[str, int]:
        """The model's sizes at which ``size`` of a kernel equals ``tokens``. If it depends on several sizes of the
        model (a batch of sequences), all except the last are 1. Raises MoecError if the size cannot have that value."""
        text = kernel["sizes"][size]
        parsed = parsed_size(text, where)
        sizes: dict[Any, int] = {parsed.text: tokens, **dict.fromkeys(parsed.names[:-1], 1)}
        if not solve(parsed, sizes) or evaluate(text, sizes, where) != tokens:
            raise MoecError(f"{where}: the layer has {text} tokens; {tokens} are none of these numbers")
        return {**self._others, **{name: sizes[name] for name in parsed.names}}

    def tell(self, kernel: Mapping[str, Any], texts: Iterable[str], where: str) -> bool:
        """Whether all sizes in ``texts``, expressions of a kernel, follow from the model's sizes.
        They do not if they depend on computed values."""
        sizes = kernel["sizes"]
        needed = [name for text in texts for name in parsed_size(text, where).names]
        followed = [parsed_size(sizes[name], where).names if name in sizes else (name,) for name in needed]
        return all(name in self._others for names in followed for name in names)

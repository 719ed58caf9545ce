"""The sizes of a kernel's call at some number of tokens, from the expressions that the artifact holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from moec.common.dtypes import DTYPES
from moec.common.guards import Expression, parse_size, solve
from moec.errors import ArtifactError, MoecError
from moec.targets.cuda.launch_model.plans import LARGEST, TOKENS


def evaluate(text: str, sizes: Mapping[str, int], where: str) -> int:
    """A C expression of sizes. Raises ArtifactError for other text, a name without a size, a result that is none."""
    size = _parsed(text, where)
    try:
        found = size(sizes)
    except (KeyError, ZeroDivisionError) as error:
        raise ArtifactError(f"{where}: size {text[:80]!r} cannot be computed: {error!r}") from error
    if not 0 <= found <= LARGEST:
        raise ArtifactError(f"{where}: size {text[:80]!r} is {found}; expected 0 to {LARGEST}")
    return found


def model_sizes(kernel: Mapping[str, Any], tokens: int, where: str) -> dict[str, int]:
    """The model's sizes at which a kernel of a layer is called with so many tokens. Where these follow from several (a
    batch of sequences), all but the last are 1. Raises MoecError where the kernel is called with another number."""
    text = kernel["sizes"][TOKENS]
    size = _parsed(text, where)
    sizes: dict[Any, int] = {size.text: tokens, **dict.fromkeys(size.names[:-1], 1)}
    if not solve(size, sizes) or evaluate(text, sizes, where) != tokens:
        raise MoecError(f"{where}: the layer has {text} tokens; {tokens} are none of these numbers")
    return {name: sizes[name] for name in size.names}


def kernel_sizes(kernel: Mapping[str, Any], model: Mapping[str, int], where: str) -> dict[str, int]:
    """The kernel's own dynamic sizes, and the model's."""
    own = {name: evaluate(text, model, where) for name, text in kernel["sizes"].items()}
    return {**model, **own}


def tensor_bytes(
    parameters: Sequence[Mapping[str, Any]], names: Sequence[str] | None, sizes: Mapping[str, int], where: str
) -> float:
    """Of the kernel's tensors of these names; of all where names are None."""
    total = 0.0
    for parameter in parameters:
        if names is None or parameter["name"] in names:
            shape = (evaluate(str(size), sizes, where) for size in parameter["shape"])
            total += math.prod(shape) * DTYPES[parameter["dtype"]].itemsize
    return total


def _parsed(text: Any, where: str) -> Expression[int]:
    try:
        return parse_size(text.replace("/", "//"))
    except (ValueError, AttributeError) as error:
        raise ArtifactError(f"{where}: size {str(text)[:80]!r} cannot be computed: {error}") from error

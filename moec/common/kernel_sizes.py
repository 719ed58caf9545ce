"""Sizes of a kernel's call from the expressions stored in the artifact."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from moec.common.dtypes import DTYPES
from moec.common.errors import ArtifactError
from moec.common.guards import Expression, parse_size

LARGEST = 2**40
"""The largest valid size or number; larger ones are rejected."""
LARGEST_WORK = 2**60
"""The largest valid number of operations."""


def evaluate(text: str, sizes: Mapping[str, int], where: str, largest: int = LARGEST) -> int:
    """The value of a C expression of sizes. Raises ArtifactError for any other text, an unknown name, division by zero,
    and a result that is not a valid size."""
    size = parsed_size(text, where)
    try:
        value = size(sizes)
    except (KeyError, ZeroDivisionError) as error:
        raise ArtifactError(f"{where}: size {text[:80]!r} cannot be computed: {error!r}") from error
    if not 0 <= value <= largest:
        raise ArtifactError(f"{where}: size {text[:80]!r} is {value}; expected 0 to {largest}")
    return value


def kernel_sizes(kernel: Mapping[str, Any], model: Mapping[str, int], where: str) -> dict[str, int]:
    """The model's sizes and the kernel's own dynamic sizes, except those that depend on computed values."""
    own = {
        name: evaluate(text, model, where)
        for name, text in kernel["sizes"].items()
        if all(size in model for size in parsed_size(text, where).names)
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


def parsed_size(text: Any, where: str) -> Expression[int]:
    try:
        return parse_size(text.replace("/", "//"))
    except (ValueError, AttributeError) as error:
        raise ArtifactError(f"{where}: size {str(text)[:80]!r} cannot be computed: {error}") from error

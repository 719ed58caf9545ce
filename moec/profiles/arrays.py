"""Expected shapes and numbers of a profile's arrays (:mod:`moec.profiles.measures`), as a table for checking files."""

from __future__ import annotations

from typing import Any

import numpy as np

from moec.profiles.head import Head, LayerEntry
from moec.profiles.measures import BINS

Array = np.ndarray[Any, Any]
_ANY = None
Shape = tuple[int | None, ...]
"""Sizes of axes; None for any size."""

HELD = "held"
"""Folder of data that was held back."""
PARTNERS = {"row_gates": "rows", "sample_gates": "sample", "sample_output": "sample"}
"""Arrays with an entry for each row of another one."""
_MAY_BE_NEGATIVE = {"gate_sum", "moment_in", "moment_hidden", "rows", "row_gates"}
_MAY_OVERFLOW = {"error", "prior_error"}
_AS_RUN = {"sample", "sample_gates", "sample_output"}
"""Arrays of values computed by a model, which may be NaN or infinite: passes skip such tokens."""


def problem_of(name: str, array: Array, head: Head) -> str | None:
    """Describe the fault of a named array in the file. Returns None where it has none."""
    owner, _, rest = name.partition("/")
    concept, _, expert = rest.partition("/")
    if owner == HELD:
        return _problem_of_input(expert, array, head)
    expected = _shape(owner, concept, expert, head)
    if expected is None:
        return "belongs to no layer of its head"
    if array.ndim != len(expected) or any(
        size not in (_ANY, actual) for size, actual in zip(expected, array.shape, strict=True)
    ):
        return f"is {list(array.shape)}; expected {['any' if size is None else size for size in expected]}"
    if array.dtype.kind not in "iuf":
        return f"is of the type {array.dtype}; expected numbers"
    if concept in _AS_RUN:
        return None
    if np.isnan(array).any() or (concept not in _MAY_OVERFLOW and not np.isfinite(array).all()):
        return "holds numbers that are not finite"
    if concept not in _MAY_BE_NEGATIVE and (array < 0).any():
        return "holds numbers below 0"
    return None


def _problem_of_input(place: str, array: Array, head: Head) -> str | None:
    """Describe the fault of an input of a batch that was held back."""
    if not place.isdecimal() or int(place) >= len(head.inputs):
        return "belongs to no input of its head"
    if array.dtype.kind not in "iufb":
        return f"is of the type {array.dtype}; expected numbers"
    return "holds numbers that are not finite" if not np.isfinite(array).all() else None


def _shape(owner: str, concept: str, expert: str, head: Head) -> Shape | None:
    """Look up the shape of an array. Returns None for one that the head does not describe."""
    layer = next((layer for layer in head.layers if layer.key == owner), None)
    if layer is not None:
        shapes = _of_experts(layer) if layer.kind == "experts" else {"energy": (), "error": ()}
        return shapes.get(concept)
    readers = [layer for layer in head.layers if layer.kind == "linear" and owner == f"input{layer.input}"]
    if not readers:
        return None
    size = readers[0].inner
    return {"rows": (_ANY, size), "moment_in": (_triangle(size),), "measured": ()}.get(concept)


def _of_experts(layer: LayerEntry) -> dict[str, Shape]:
    experts, inner, hidden = layer.experts, layer.inner, layer.hidden
    parts = (experts, len(layer.parts))
    return {
        **dict.fromkeys(("count", "gate_sum", "measured", "output_norm", "saliency", "energy"), (experts,)),
        **dict.fromkeys(("error", "prior_error"), parts),
        "sensitivity": (len(layer.parts),),
        "gate_histogram": (experts, BINS),
        "ratio_histogram": (layer.k, BINS),
        "pairs": (experts, experts),
        "following": (experts, _ANY),
        "hidden": (experts, hidden),
        "moment_in": (_triangle(inner),),
        "moment_hidden": (_triangle(hidden),),
        "rows": (_ANY, inner),
        "row_gates": (_ANY,),
        "sample": (_ANY, inner),
        "sample_gates": (_ANY, experts),
        "sample_output": (_ANY, _ANY),
    }


def _triangle(size: int) -> int:
    """Number of elements of a packed matrix (:func:`moec.profiles.measures.packed`) of that size."""
    return size * (size + 1) // 2

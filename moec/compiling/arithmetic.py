"""The arithmetic of a compiled model, for the summary line: types of activations, and the other level."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.runtime.manifest import Manifest

KEY = "arithmetic"
"""Key of an artifact's provenance."""


@dataclasses.dataclass(frozen=True)
class ActivationRounding:
    """Rounding of activations in a compiled model. ``activations``: types that they are rounded to
    (:func:`moec.ir.rounding.arithmetics_of`). ``own``: whether the model itself asks for it. ``could_round``: whether
    products in float32 have weights that int8 arithmetic takes."""

    activations: Sequence[str]
    own: bool
    could_round: bool


def rounding_of(graph: ir.Model, own: Collection[str], gains: bool) -> ActivationRounding:
    """Determine the rounding after all passes. ``own``: types that activations were rounded to before them. ``gains``:
    whether the target's products become faster by rounding."""
    from moec.ir.dialect import is_moec
    from moec.ir.rounding import arithmetics_of

    activations = sorted(arithmetics_of(graph))
    floats = (node for node in graph.graph if is_moec(node) and "arithmetic" not in node.attributes)
    return ActivationRounding(
        activations, bool(own) and set(activations) <= set(own), gains and any(map(_fits, floats))
    )


def _fits(node: ir.Node) -> bool:
    from moec.common.errors import UnsupportedError
    from moec.ir.weight_operands import stored_weights, weight_inputs
    from moec.passes.weights.choice import fit_bytes

    if not weight_inputs(node):
        return False

    try:
        formats = {form for weight in stored_weights(node).values() for form in weight.formats}
    except UnsupportedError:
        return False
    return bool(formats) and fit_bytes(formats)


def described(manifest: Manifest) -> str:
    """Write ``activations in int8 (outputs of layers move by 0.5%), caches in float16; -O2 is exact``; empty where
    everything is as exact as the model's own floats, and no level would compute faster."""
    if not manifest.programs:  # projects for an FPGA have an arithmetic of their own
        return ""
    entry: dict[str, Any] = manifest.provenance.get(KEY, {})
    parts = []
    if names := entry.get("activations"):
        parts.append(f"activations in {', '.join(names)}{_moved(manifest)}")
    types = {spec.name: spec.dtype for spec in manifest.inputs}
    cached = [state for program in manifest.programs for state in program.held]
    if caches := sorted({state.dtype for state in cached if state.dtype != types[state.input]}):
        parts.append(f"caches in {', '.join(caches)}")
    if parts:
        return ", ".join(parts) + ("" if entry.get("own") else "; -O2 is exact")
    return "products in float32; -O3 rounds activations to 8 bits, which is faster" if entry.get("could_round") else ""


def _moved(manifest: Manifest) -> str:
    errors = [loss["output_error"] for loss in manifest.losses if not loss["weight_error"]]
    return f" (outputs of layers move by {sum(errors) / len(errors):.1%})" if errors else ""

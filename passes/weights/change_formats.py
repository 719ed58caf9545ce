"""Change of the formats of a layer's weights, with activations to match and the loss in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.ir.weights.format import WeightFormat
from moec.passes.framework.base import Report
from moec.passes.weights.calibration import KnownInputs, Method
from moec.passes.weights.choice import fit_bytes, input_sizes, quantize_activations
from moec.passes.weights.loss import Layer, layer_of, loss
from moec.passes.weights.store import store
from moec.profiles import Profile


def readable_layer(pass_name: str, node: ir.Node, report: Report) -> Layer | None:
    """The layer as it is; None, and a warning, for weights in no way that moec stores them."""
    try:
        return layer_of(node)
    except UnsupportedError as error:
        report.warn(pass_name, node_name(node), f"not quantised: {error}")
        return None


def change_formats(
    pass_name: str,
    before: Layer,
    targets: Mapping[str, Sequence[WeightFormat]],
    profile: Profile | None,
    method: Method,
    report: Report,
    activation_group: int | None = None,
) -> bool:
    """Store expert e of the weight ``name`` in format ``wanted[name][e]``, and let products be computed in int8 where
    all weights can be; say whether that changes anything."""
    node = before.node
    formats = {form for weight in before.weights.values() for form in weight.formats}
    stored = all(weight.formats == list(targets.get(name, weight.formats)) for name, weight in before.weights.items())
    if stored and (before.spec.arithmetic == "int8" or not fit_bytes(formats)):
        report.note(pass_name, node_name(node), f"nothing to quantise: its weights are {before.describe_formats()}")
        return False
    inputs = KnownInputs(profile, node, method, report.jobs)
    if (few := inputs.too_few()) is not None:
        report.warn(pass_name, node_name(node), few)
    for name, formats in targets.items():
        store(node, name, formats, inputs.encoder(name), report.jobs.at_once)
    after = layer_of(node)
    every = {form for weight in after.weights.values() for form in weight.formats}
    quantize_activations(node, every, input_sizes(before), activation_group)
    report.losses.append(loss(pass_name, before, layer_of(node), inputs.rows))
    return True

"""A layer of experts in its present form, with sampled tokens and the outputs that a profile measured for them.

Passes that repair a layer whose experts were removed, merged or rounded bring its outputs closer to the measured ones.
Tokens are those of the layer in the measured model, so that losses of earlier layers are not in them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.mapped_files import release_pages
from moec.common.names import node_name
from moec.ir import dialect, semantics
from moec.ir.semantics import pairs_by_expert
from moec.ir.weights.stored import constant
from moec.passes.framework.base import Report
from moec.passes.graph.router_product import RouterProduct, router_product
from moec.passes.weights.calibration import profile_reading
from moec.passes.weights.expert_set import ExpertSet
from moec.passes.weights.loss import Layer, layer_of, output_of
from moec.profiles import Profile

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class SampledLayer:
    """A layer with ``inputs`` [n,d] and measured ``outputs`` [n,width]. All arithmetic on them is in float64, so that
    no decision depends on the last bits of a product."""

    experts: ExpertSet
    layer: Layer
    router: RouterProduct
    inputs: Array
    outputs: Array

    @property
    def correction_bias(self) -> Array | None:
        """[R]."""
        tensor = constant(self.experts.correction_bias)
        return None if tensor is None else tensor.numpy()

    def routed(self) -> tuple[Array, Array]:
        """The weights [n,k] and the experts [n,k], by :meth:`numbered`, of the tokens."""
        weights, ids = semantics.route(self.experts.routing, self.router(self.inputs), self.correction_bias)
        return weights, self.numbered(ids)

    def numbered(self, ids: Array) -> Array:
        """Convert the router's ids to numbers of experts: first the stored ones, then identity experts; -1 for pairs
        that contribute nothing."""
        table = range(self.experts.routed) if self.experts.table is None else self.experts.table
        return np.array([*table, -1])[ids]

    def contributions(self, weights: Array, ids: Array) -> Array:
        """Contributions [n,k,width] of the pairs [n,k] to the outputs of their tokens."""
        pairs = np.zeros((*ids.shape, self.outputs.shape[1]))
        before = self.experts.weights.spec.weight_on_input
        for expert, tokens, slots in pairs_by_expert(ids):
            weight = weights[tokens, slots, None]
            output = self.made_by(expert, self.inputs[tokens] * (weight if before else 1))
            pairs[tokens, slots] = output * (1 if before else weight)
        return pairs

    def made_by(self, expert: int, rows: Array) -> Array:
        """Unweighted output [m,width] of an expert for rows [m,d]."""
        if expert >= self.experts.stored:
            return rows
        output = output_of(self.layer, expert, rows)
        release_pages()
        return output


def sampled_layer(pass_name: str, node: ir.Node, profile: Profile, report: Report) -> SampledLayer | None:
    """The layer of a node that has experts; None, with the reason in the report, if it cannot be computed from tokens
    alone. Raises MoecError for a profile of another model, one that lacks ``sample_output``, and a damaged one."""
    where = f"{profile.path}: node {node_name(node)}"
    try:
        experts = ExpertSet(node)
        with profile_reading(where):
            measures = profile.layer(node)
            inputs, outputs = (measures.array(name) for name in ("sample", "sample_output"))
            shapes = ((len(inputs), experts.weights.inner), (len(inputs), experts.weights.width))
            if (inputs.shape, outputs.shape) != shapes:
                raise ValueError(f"sample and sample_output have the shapes {inputs.shape} and {outputs.shape}")
        router = _router(experts)
    except UnsupportedError as error:
        report.warn(pass_name, node_name(node), f"stays as it is: {error}")
        return None
    finite = np.isfinite(inputs).all(axis=1) & np.isfinite(outputs).all(axis=1)
    inputs, outputs = inputs[finite].astype(np.float64), outputs[finite].astype(np.float64)
    return SampledLayer(experts, layer_of(node), router, inputs, outputs)


def _router(experts: ExpertSet) -> RouterProduct:
    """The router of the layer. Raises UnsupportedError if a token alone does not decide which experts it goes to."""
    spec, x = experts.routing, dialect.inputs_of(experts.node)["x"]
    if spec.selection == "expert_choice":
        raise UnsupportedError("its experts choose among all tokens of a run")
    if spec.capacity > 0:
        raise UnsupportedError(f"with its capacity of {spec.capacity}, a token's experts depend on other tokens")
    if experts.correction_bias is not None and constant(experts.correction_bias) is None:
        raise UnsupportedError("the bias of its selection is computed when the model runs")
    router = None if x is None else router_product(experts.logits, x)
    if router is None:
        raise UnsupportedError("its logits are not a product of its tokens with a constant matrix")
    return router

"""A layer of experts as it is now, on tokens of which a profile knows what the layer made when it was measured.

Passes that repair a layer whose experts were removed, merged or rounded make what it gives now more like what it gave
then. Tokens are those of the layer in the model that was measured: what layers before this one lost is not in them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.errors import UnsupportedError
from moec.ir import dialect, semantics
from moec.ir.mapped_files import release_pages
from moec.ir.names import node_name
from moec.ir.semantics import pairs_by_expert
from moec.ir.weights.stored import constant
from moec.passes.framework.base import Report
from moec.passes.graph.router_product import RouterProduct, router_product
from moec.passes.weights.calibration import profile_reading
from moec.passes.weights.expert_set import ExpertSet
from moec.passes.weights.loss import Layer, layer_of, output_of
from moec.profile import Profile

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class SampledLayer:
    """``inputs`` [n,d] and ``outputs`` [n,width] before, in float64: as all that is computed of them, so that what is
    decided by it does not hang on the last bits of a product."""

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
        """The weights [n,k] and the experts [n,k] of the tokens, as :meth:`numbered`."""
        weights, ids = semantics.route(self.experts.routing, self.router(self.inputs), self.correction_bias)
        return weights, self.numbered(ids)

    def numbered(self, ids: Array) -> Array:
        """Ids of the router as numbers of experts: those stored, behind them those that give back their input; -1 for
        pairs that contribute nothing."""
        table = range(self.experts.routed) if self.experts.table is None else self.experts.table
        return np.array([*table, -1])[ids]

    def contributions(self, weights: Array, ids: Array) -> Array:
        """What each pair [n,k] adds to the output of its token: [n,k,width]."""
        pairs = np.zeros((*ids.shape, self.outputs.shape[1]))
        before = self.experts.weights.spec.weight_on_input
        for expert, tokens, slots in pairs_by_expert(ids):
            weight = weights[tokens, slots, None]
            made = self.made_by(expert, self.inputs[tokens] * (weight if before else 1))
            pairs[tokens, slots] = made * (1 if before else weight)
        return pairs

    def made_by(self, expert: int, rows: Array) -> Array:
        """What an expert makes of rows [m,d] by itself: [m,width]."""
        if expert >= self.experts.stored:
            return rows
        made = output_of(self.layer, expert, rows)
        release_pages()
        return made


def sampled_layer(pass_name: str, node: ir.Node, profile: Profile, report: Report) -> SampledLayer | None:
    """The layer of a node that has experts; None where it cannot be computed on tokens alone, of which the report says
    why. Raises MoecError for a profile of another model, one that lacks ``sample_output``, and one that is damaged."""
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
    """Raises UnsupportedError where tokens alone do not say which experts they go to."""
    spec, x = experts.routing, dialect.inputs_of(experts.node)["x"]
    if spec.selection == "expert_choice":
        raise UnsupportedError("its experts choose among all tokens of a run")
    if spec.capacity > 0:
        raise UnsupportedError(f"with its capacity of {spec.capacity}, a token's experts depend on other tokens")
    if experts.correction_bias is not None and constant(experts.correction_bias) is None:
        raise UnsupportedError("the bias on its choice is computed when the model runs")
    router = None if x is None else router_product(experts.logits, x)
    if router is None:
        raise UnsupportedError("its logits are not a product of its tokens with a constant matrix")
    return router

"""Routing on a GPU: one kernel where tokens choose, three where experts do."""

from __future__ import annotations

from tvm import relax

from moec.ir.dialect import RouteSpec, attributes_of, spec_of
from moec.targets.cuda.kernels import capacity, route
from moec.targets.cuda.kernels.expert_choice import score_tokens, take_tokens, weigh_tokens
from moec.targets.cuda.moe_kernels import CAPACITY, ROUTE, SCORE_TOKENS, TAKE_TOKENS, WEIGH_TOKENS
from moec.targets.tvm.node_lowering import NodeLowering
from moec.targets.tvm.routing import RouteProblem, RoutingKernels, lower_route

_TOKENS_CHOOSE = RoutingKernels(ROUTE, CAPACITY, route.route, capacity.capacity)


def lower_routing(node: NodeLowering) -> tuple[relax.Expr, relax.Expr]:
    """Routing weights [T, k] and expert ids [T, k] (int32)."""
    spec = spec_of(node.node, RouteSpec)
    if spec.selection != "expert_choice":
        return lower_route(node, _TOKENS_CHOOSE)
    return _experts_choose(node, spec)


def _experts_choose(node: NodeLowering, spec: RouteSpec) -> tuple[relax.Expr, relax.Expr]:
    value = node.input("logits")
    logits, dtype = node.lowering.tensor(value), node.lowering.dtype(value)
    tokens, size = node.lowering.shape(value)
    experts, bias = int(size), node.inputs["correction_bias"]
    problem = RouteProblem(spec, experts, dtype)
    attributes = {"experts": experts, "score": spec.score, **attributes_of(spec)}
    biases = [] if bias is None else [node.cast(node.lowering.tensor(bias), "float32")]
    kernel = score_tokens(spec, experts, dtype, biased=bias is not None)
    output = relax.TensorType((experts, tokens), "uint32")
    (keys,) = node.call(node.select(SCORE_TOKENS, problem), kernel, [logits, *biases], [output], attributes)
    ids = relax.TensorType((tokens, experts), "int32")
    kernel = take_tokens(experts, spec.capacity)
    (taken,) = node.call(node.select(TAKE_TOKENS, problem), kernel, [keys], [ids], {"capacity": spec.capacity})
    outputs = [relax.TensorType((tokens, experts), dtype), ids]
    kernel = weigh_tokens(spec, experts, dtype)
    weights, chosen = node.call(node.select(WEIGH_TOKENS, problem), kernel, [logits, taken], outputs, attributes)
    return weights, chosen

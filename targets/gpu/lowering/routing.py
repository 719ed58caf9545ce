"""Routing on a GPU: one kernel if tokens choose experts (two with a capacity), three if experts choose tokens."""

from __future__ import annotations

from tvm import relax

from moec.ir.dialect import RouteSpec, attributes_of, spec_of
from moec.targets.gpu.kernels.capacity import CAPACITY
from moec.targets.gpu.kernels.expert_choice import SCORE_TOKENS, TAKE_TOKENS, WEIGH_TOKENS
from moec.targets.gpu.kernels.route import ROUTE
from moec.targets.tvm.heavy.route import RouteProblem, lower_route
from moec.targets.tvm.kernels.kernel import Kernel, KernelCall
from moec.targets.tvm.lowering.node_lowering import NodeLowering


def lower_routing(node: NodeLowering) -> tuple[relax.Expr, relax.Expr]:
    """Emit the routing of a node; return routing weights [T, k] and expert ids [T, k] (int32)."""
    spec = spec_of(node.node, RouteSpec)
    return _experts_choose(node, spec) if spec.selection == "expert_choice" else lower_route(node, ROUTE, CAPACITY)


def _experts_choose(node: NodeLowering, spec: RouteSpec) -> tuple[relax.Expr, relax.Expr]:
    value, bias = node.input("logits"), node.inputs["correction_bias"]
    logits, dtype = node.lowering.tensor(value), node.lowering.dtype(value)
    tokens, size = node.lowering.shape(value)
    experts = int(size)
    problem = RouteProblem(spec, experts, dtype, biased=bias is not None)
    attributes = {"experts": experts, "score": spec.score, **attributes_of(spec)}
    biases = [] if bias is None else [node.cast(node.lowering.tensor(bias), "float32")]

    def called(kernel: Kernel, *arguments: relax.Expr) -> KernelCall:
        said = {"capacity": spec.capacity} if kernel is TAKE_TOKENS else attributes
        return KernelCall(node.select((kernel,), problem), kernel.build(problem), arguments, said)

    (keys,) = node.call(called(SCORE_TOKENS, logits, *biases), [relax.TensorType((experts, tokens), "uint32")])
    ids = relax.TensorType((tokens, experts), "int32")
    (taken,) = node.call(called(TAKE_TOKENS, keys), [ids])
    weights, chosen = node.call(called(WEIGH_TOKENS, logits, taken), [relax.TensorType((tokens, experts), dtype), ids])
    return weights, chosen

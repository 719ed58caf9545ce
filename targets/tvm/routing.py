"""Routing on any target: logits to weights and ids, and what a capacity drops."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax

from moec.ir.dialect import RouteSpec, attributes_of, spec_of
from moec.targets.tvm.node_lowering import NodeLowering
from moec.targets.tvm.selection import Kernel


@dataclasses.dataclass(frozen=True)
class RouteProblem:
    """Routing with logits of type ``dtype`` over E experts."""

    spec: RouteSpec
    experts: int
    dtype: str


@dataclasses.dataclass(frozen=True)
class RoutingKernels:
    """A target's kernels: what the selector sees, and what makes them. ``route(spec, experts, dtype, biased=...)`` and
    ``capacity(experts, limit, dtype)``."""

    routes: Sequence[Kernel]
    capacities: Sequence[Kernel]
    route: Callable[..., Any]
    capacity: Callable[..., Any]


def lower_route(node: NodeLowering, kernels: RoutingKernels) -> tuple[relax.Expr, relax.Expr]:
    """Routing weights [T, k] and expert ids [T, k]."""
    spec = spec_of(node.node, RouteSpec)
    logits = node.input("logits")
    tokens, experts = node.lowering.shape(logits)
    dtype = node.lowering.dtype(logits)
    problem = RouteProblem(spec, int(experts), dtype)
    chosen = node.select(kernels.routes, problem)
    bias = node.inputs["correction_bias"]
    arguments = [node.lowering.tensor(logits)]
    if bias is not None:
        arguments.append(node.cast(node.lowering.tensor(bias), "float32"))
    outputs = [relax.TensorType((tokens, spec.k), dtype), relax.TensorType((tokens, spec.k), "int32")]
    kernel = kernels.route(spec, int(experts), dtype, biased=bias is not None)
    attributes = {"experts": int(experts), "score": spec.score, **attributes_of(spec)}
    weights, ids = node.call(chosen, kernel, arguments, outputs, attributes)
    if spec.capacity > 0 and spec.selection == "topk":
        kernel = kernels.capacity(int(experts), spec.capacity, dtype)
        chosen = node.select(kernels.capacities, problem)
        weights, ids = node.call(chosen, kernel, [weights, ids], outputs, {"capacity": spec.capacity})
    return weights, ids

"""Routing on any target: weights and ids from logits, and the pairs that a capacity drops."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import onnx_ir as ir
from tvm import relax

from moec.ir.dialect import RouteSpec, attributes_of, is_moec, spec_of
from moec.targets.tvm.kernels.kernel import Kernel, KernelCall
from moec.targets.tvm.lowering.node_lowering import NodeLowering


@dataclasses.dataclass(frozen=True)
class RouteProblem:
    """Routing with logits of type ``dtype`` over E experts; ``biased``: with correction biases, in float32;
    ``tolerant``, which is biased: with a tolerance of each expert, in float32."""

    spec: RouteSpec
    experts: int
    dtype: str = "float32"
    biased: bool = False
    tolerant: bool = False


def why_not_scored(spec: RouteSpec, scores: Collection[str]) -> str | None:
    """The reason why a kernel that implements ``scores`` cannot do this routing, or None."""
    return None if spec.score in scores else f"score {spec.score!r}; the kernel has {', '.join(sorted(scores))}"


def lower_route(node: NodeLowering, route: Kernel, capacity: Kernel) -> tuple[relax.Expr, relax.Expr]:
    """Routing weights [T, k] and expert ids [T, k] (int32), computed by a target's kernels.

    The function of ``route`` takes logits, and biases and tolerances if there are any; that of ``capacity`` takes
    weights and ids. Both return weights and ids."""
    spec = spec_of(node.node, RouteSpec)
    logits, bias = node.input("logits"), node.inputs["correction_bias"]
    tokens, experts = node.lowering.shape(logits)
    dtype = node.lowering.dtype(logits)
    tolerance = _tolerance(node)
    problem = RouteProblem(spec, int(experts), dtype, bias is not None or tolerance is not None, tolerance is not None)
    arguments = [node.lowering.tensor(logits)]
    if bias is not None:
        arguments.append(node.cast(node.lowering.tensor(bias), "float32"))
    if tolerance is not None:
        no_bias = [] if bias is not None else [node.lowering.emit(relax.op.zeros((int(experts),), "float32"))]
        arguments += [*no_bias, node.cast(node.lowering.tensor(tolerance), "float32")]
    outputs = [relax.TensorType((tokens, spec.k), dtype), relax.TensorType((tokens, spec.k), "int32")]
    attributes = {"experts": int(experts), "score": spec.score, **attributes_of(spec)}
    chosen = node.select((route,), problem)
    weights, ids = node.call(KernelCall(chosen, route.build(problem), arguments, attributes), outputs)
    if spec.capacity > 0 and spec.selection == "topk":
        chosen = node.select((capacity,), problem)
        called = KernelCall(chosen, capacity.build(problem), [weights, ids], {"capacity": spec.capacity})
        weights, ids = node.call(called, outputs)
    return weights, ids


def _tolerance(node: NodeLowering) -> ir.Value | None:
    """Input ``tolerance`` of a routing; None where all experts are in memory, so that none has to be replaced."""
    tolerance = node.inputs.get("tolerance")
    maker = None if tolerance is None else tolerance.producer()
    return None if maker is not None and is_moec(maker, "Absent") and not node.lowering.streams else tolerance

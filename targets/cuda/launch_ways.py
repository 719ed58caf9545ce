"""Several ways to compute one result, of which the host takes one by a size that it knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir
from tvm import relax, tirx

from moec.targets.base import SizeRange
from moec.targets.cuda.launch_conditions import launch_if
from moec.targets.tvm.heavy import LoweringContext
from moec.targets.tvm.kernel import KernelCall, Selection
from moec.targets.tvm.nodes import record_of, static_size


@dataclasses.dataclass(frozen=True)
class Way:
    """A function of the kernel that was chosen for some sizes; ``attributes``: what the artifact says about it."""

    chosen: Selection
    function: tirx.PrimFunc
    sizes: SizeRange
    attributes: dict[str, object]


def call_ways(
    lowering: LoweringContext,
    node: ir.Node,
    ways: Sequence[Way],
    axis: int,
    arguments: Sequence[relax.Expr],
    output: relax.TensorType,
    others: Sequence[relax.Var] = (),
) -> relax.Var:
    """The result of the way that is for the size of the first argument's ``axis``; some way has to be. Ways that are
    for no size there can be are left out now. ``others``: the result, if it is already one of another way."""
    size = static_size(arguments[0].ty.shape[axis])
    results = list(others)
    for way in ways:
        if not way.sizes.may_hold(size):
            continue
        function = launch_if(way.function, 0, axis, way.sizes)
        record = record_of(node, KernelCall(way.chosen, function, arguments, way.attributes))
        if results:
            results = lowering.call_kernel_on(function, arguments, results, record)
        else:
            results = lowering.call_kernel(function, arguments, [output], record)
    (result,) = results
    return result

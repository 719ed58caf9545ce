"""Alternative kernels for one result: the host launches the one that is for the size at hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir
from tvm import relax, tirx

from moec.targets.base import SizeRange
from moec.targets.cuda.launch_conditions import launch_if
from moec.targets.tvm.heavy import LoweringContext
from moec.targets.tvm.kernel import KernelCall, Selection
from moec.targets.tvm.nodes import record_of
from moec.targets.tvm.shapes import static_size


@dataclasses.dataclass(frozen=True)
class LaunchChoice:
    """A kernel's function that computes the result for some ``sizes``. ``attributes``: recorded in the artifact."""

    chosen: Selection
    function: tirx.PrimFunc
    sizes: SizeRange
    attributes: dict[str, object]


def call_ways(
    lowering: LoweringContext,
    node: ir.Node,
    ways: Sequence[LaunchChoice],
    axis: int,
    arguments: Sequence[relax.Expr],
    output: relax.TensorType,
    others: Sequence[relax.Var] = (),
) -> relax.Var:
    """Call all ways and return their common result; at run time only the one for the size of the first argument's
    ``axis`` is launched.

    The ways have to cover every size. Ways that cannot occur, since the size is static, are left out. ``others``: the
    result, if a way that was emitted before already writes it.
    """
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

"""The kernel that selects tokens, which the runtime calls behind a program with logits."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from moec.targets.gpu.kernels.sample import SAMPLE, SampleProblem
from moec.targets.tvm.kernels.kernel import KernelCall, select
from moec.targets.tvm.lowering.context import LoweringContext
from moec.targets.tvm.lowering.nodes import record_of


def export_sampler(lowering: LoweringContext, node: ir.Node, vocabulary: int, dtype: str) -> str:
    """Add the kernel for logits of a node, and return its symbol; an empty string where it cannot take them."""
    problem = SampleProblem(vocabulary, dtype)
    if SAMPLE.why_not(problem, None) is not None:
        return ""
    called = KernelCall(select((SAMPLE,), problem, None), SAMPLE.build(problem), [], dataclasses.asdict(problem))
    return lowering.export_kernel(called.function, record_of(node, called))

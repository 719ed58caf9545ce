"""From the lowered Relax module to a Relax VM executable: every phase on one page."""

from __future__ import annotations

import tvm
from tvm import relax

from moec.targets.tvm.order_bindings import OrderBindings
from moec.targets.tvm.schedule import ScheduleGenericKernels


def _keep_reshape(_builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """A reshape stays an operator: the VM makes a view of it, where a kernel would copy."""
    return call


def graph_phases() -> list[tvm.transform.Pass]:
    """Relax to Relax: operators become kernels, chains of kernels become one kernel."""
    transform = relax.transform
    return [
        # Relax operators (a target's converters may use them) become calls of generic kernels.
        transform.LegalizeOps({"relax.reshape": _keep_reshape}),
        # Find out which kernels are elementwise, broadcasting, injective or reductions, ...
        transform.AnnotateTIROpPattern(),
        # ... so that chains of them can be grouped, ...
        transform.FuseOps(fuse_opt_level=2),
        # ... and each group merged into one kernel.
        transform.FuseTIR(),
        transform.DeadCodeElimination(),
        OrderBindings(),
        # Threads for the generic kernels.
        ScheduleGenericKernels(),
    ]


def executable_phases() -> list[tvm.transform.Pass]:
    """Relax to VM instructions: explicit memory, planned so that dead tensors are reused, and explicit shapes."""
    transform = relax.transform
    return [
        transform.ToNonDataflow(),
        transform.RemovePurityChecking(),
        # Kernel calls become: allocate the results, call the kernel on them.
        transform.CallTIRRewrite(),
        transform.StaticPlanBlockMemory(),
        transform.LowerAllocTensor(),
        transform.KillAfterLastUse(),
        # Reshape, shape reads and checks become calls of the runtime's builtins.
        transform.LowerRuntimeBuiltin(),
        # Symbolic sizes become slots of a shape heap, filled from the inputs and checked against them.
        transform.ComputePrimValue(),
        transform.VMShapeLower(),
        transform.AttachGlobalSymbol(),
    ]


def optimize(module: tvm.IRModule, target: tvm.target.Target) -> tvm.IRModule:
    """Run the graph phases; the result's kernels are what ``src/`` shows as TIR."""
    with target:
        return tvm.ir.transform.Sequential(graph_phases())(module)


def build(module: tvm.IRModule, target: tvm.target.Target) -> relax.VMExecutable:
    """Generate code for an optimised module: one LLVM module for all kernels."""
    return relax.build(module, target=target, relax_pipeline=tvm.ir.transform.Sequential(executable_phases()))

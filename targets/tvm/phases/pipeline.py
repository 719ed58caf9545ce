"""All phases from the lowered Relax module to a Relax VM executable, on one page."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx

from moec.common.budgets import Budget
from moec.common.names import node_name
from moec.runtime.team import TEAM_OBJECT
from moec.targets.base import Launch
from moec.targets.tvm.phases import host_code
from moec.targets.tvm.phases.argument_alignment import LowerArgumentAlignment
from moec.targets.tvm.phases.bound_storage import BoundStorage
from moec.targets.tvm.phases.compact_buffers import CompactGenericBuffers
from moec.targets.tvm.phases.guard_parallel import GuardParallelLoops
from moec.targets.tvm.phases.limit_fusion import fused_within
from moec.targets.tvm.phases.merge_alike import merge_alike
from moec.targets.tvm.phases.order_bindings import OrderBindings
from moec.targets.tvm.phases.order_sizes import OrderSizes
from moec.targets.tvm.phases.provenance import nodes_by_call, nodes_of_kernels
from moec.targets.tvm.phases.rename_kernels import readable_names, rename_kernels
from moec.targets.tvm.phases.round_storage import RoundStorage
from moec.targets.tvm.phases.schedule import ScheduleGenericKernels
from moec.targets.tvm.phases.share_calls import ShareCalls
from moec.targets.tvm.phases.share_memory import ShareMemory
from moec.targets.tvm.phases.share_views import ShareViews
from moec.targets.tvm.phases.skip_empty_loops import SkipEmptyLoops
from moec.targets.tvm.phases.stack_buffers import StackBuffers
from moec.targets.tvm.phases.structures import TIR, LineOrigins
from moec.targets.tvm.phases.team import team_object
from moec.targets.tvm.phases.trusted_arguments import TrustArguments
from moec.targets.tvm.phases.widen_bfloat16 import WidenBFloat16
from moec.targets.tvm.text.statement_lines import FindLines, FinishLines
from moec.targets.tvm.text.steps import DropSteps

KERNEL_PIPELINE = "moec"


def _keep_reshape(_builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Keep a reshape as an operator: the VM makes a view for it, where a kernel would copy."""
    return call


def operator_phases() -> list[tvm.transform.Pass]:
    """Relax to Relax: operators become calls of kernels."""
    transform = relax.transform
    return [
        # Relax operators (a target's converters may use them) become calls of generic kernels.
        transform.LegalizeOps({"relax.reshape": _keep_reshape}),
        # Find out which kernels are elementwise, broadcasting, injective or reductions, so that FuseOps can group them.
        transform.AnnotateTIROpPattern(),
        ShareCalls(),
        # Masks whose window a kernel knows, and keys behind sinks, have no reader. FuseOps warns of such code.
        transform.DeadCodeElimination(),
    ]


def fusion_phases() -> list[tvm.transform.Pass]:
    """Relax to Relax: each group of kernels becomes one kernel."""
    transform = relax.transform
    return [transform.FuseTIR(), transform.DeadCodeElimination(), OrderBindings()]


def memory_phases() -> list[tvm.transform.Pass]:
    """Relax to Relax with explicit memory, planned so that dead tensors are reused."""
    transform = relax.transform
    return [
        transform.ToNonDataflow(),
        transform.RemovePurityChecking(),
        # Kernel calls become: allocate the results, call the kernel on them.
        transform.CallTIRRewrite(),
        ShareMemory(),
        transform.StaticPlanBlockMemory(),
        transform.LowerAllocTensor(),
    ]


def instruction_phases(*, rounds_storage: bool = False) -> list[tvm.transform.Pass]:
    """Relax with explicit memory to VM instructions with explicit shapes. ``rounds_storage``: see :class:`Backend`."""
    transform = relax.transform
    return [
        BoundStorage(),
        *([RoundStorage()] if rounds_storage else []),
        transform.KillAfterLastUse(),
        # Reshape, shape reads and checks become calls of the runtime's builtins.
        transform.LowerRuntimeBuiltin(),
        # Symbolic sizes become slots of a shape heap, filled from the inputs and checked against them.
        transform.ComputePrimValue(),
        transform.VMShapeLower(),
        OrderSizes(),
        ShareViews(),
        transform.AttachGlobalSymbol(),
    ]


def kernel_phases() -> list[tvm.transform.Pass]:
    """TIR to the form that LLVM takes: TVM's default phases for a processor, with some of ours."""
    lower, loops = s_tir.transform, tirx.transform
    return [
        DropSteps(),
        # Blocks, as schedules see them, become plain loops over flat buffers.
        lower.CanonicalizeLoop(),
        lower.LowerInitBlock(),
        lower.PlanAndUpdateBufferAllocationLocation(),
        lower.ConvertBlocksToOpaque(),
        CompactGenericBuffers(),
        lower.LowerMatchBuffer(),
        lower.StmtSimplify(),
        lower.LowerOpaqueBlock(),
        loops.FlattenBuffer(),
        # Types the processor lacks become ones it has.
        WidenBFloat16(),
        loops.BF16ComputeLegalize(),
        loops.NarrowDataType(32),
        # Loops: vectors, unrolling, invariants moved out; threads only where there is work for them.
        lower.LoopPartition(),
        loops.VectorizeLoop(True),
        loops.StorageRewrite(),
        loops.UnrollLoop(),
        lower.RenormalizeSplitPattern(),
        loops.StmtSimplify(),
        lower.RewriteUnsafeSelect(),
        SkipEmptyLoops(),
        GuardParallelLoops(),
        loops.ConvertSSA(),
        loops.CommonSubexprElim(),
        StackBuffers(),
        FindLines(),
        # The calling convention: arguments are unpacked, and their sizes checked.
        LowerArgumentAlignment(),
        loops.VerifyMemory(),
        loops.SplitHostDevice(),
        loops.MakePackedAPI(),
        TrustArguments(),
        loops.BF16StorageLegalize(),
    ]


def _cpu_pipeline() -> tuple[tvm.transform.Pass, Any, Any]:
    finish, sequence = s_tir.pipeline, tvm.ir.transform.Sequential
    finish_host = functools.partial(sequence, [finish.finalize_host_passes(), FinishLines()])
    return sequence(kernel_phases()), finish_host, finish.finalize_device_passes


@dataclasses.dataclass(frozen=True)
class Generated:
    """Code generated for the kernels of a module.

    ``objects``: object files by name; ``sources``: text by form (llvm, cuda, ...) and kernel; ``facts``: lines about a
    kernel, for the heads of its texts; ``launches``: launches of each kernel on a device; ``files``: text of no single
    kernel, by file name; ``origins``: by form and kernel the origins of a text's lines; ``device``: TVM's module with a
    device's code; ``binary``: that code, compiled."""

    objects: dict[str, bytes]
    sources: dict[str, dict[str, str]]
    facts: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    launches: dict[str, list[Launch]] = dataclasses.field(default_factory=dict)
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    origins: dict[str, dict[str, LineOrigins]] = dataclasses.field(default_factory=dict)
    device: Any = None
    binary: bytes | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Joined:
    """A module in which kernels are joined. ``parts``: by the symbol of a new kernel those that it is made from, first
    the target's own that describes it. ``launched``: of a launch of several the target's own kernel of each, or another
    name; the sizes of the second are those with ``_2`` behind their names, and so on. ``computed``: by the variable of
    a call in ``main`` those of the module before whose calls it stands for, where these are others."""

    module: tvm.IRModule
    parts: Mapping[str, Sequence[str]]
    launched: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    computed: Mapping[relax.Var, Sequence[relax.Var]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Backend:
    """The parts of compilation that differ between the kinds of machines that TVM makes code for."""

    schedule: tvm.transform.Pass
    """Pass that gives threads to generic kernels; those of a target come finished."""
    generate: Callable[[tvm.IRModule, tvm.target.Target], Generated]
    """Function that generates the code of kernels."""
    join: Callable[[tvm.IRModule], Joined] | None = None
    """Function that makes one kernel of several that the target's own kernels allow to be joined."""
    rounds_storage: bool = False
    """Whether memory of sizes known at run time is taken in powers of two, where new memory takes long."""


def _cpu_code(kernels: tvm.IRModule, target: tvm.target.Target) -> Generated:
    compiled = host_code.compile_kernels(kernels, target, KERNEL_PIPELINE)
    forms = {"llvm": host_code.LLVM, "asm": host_code.ASSEMBLY}
    team = team_object(target)
    statements = {name: json.loads(files[host_code.STATEMENTS]) for name, files in compiled.items()}
    return Generated(
        {f"{name}.o": files[host_code.OBJECT] for name, files in compiled.items()}
        | ({} if team is None else {TEAM_OBJECT: team}),
        {form: {name: files[kept].decode() for name, files in compiled.items()} for form, kept in forms.items()},
        origins={
            form: {name: LineOrigins(TIR, numbers[kept]) for name, numbers in statements.items()}
            for form, kept in forms.items()
        },
    )


tirx.compilation_pipeline.register_tir_pipeline(KERNEL_PIPELINE, _cpu_pipeline)
CPU = Backend(ScheduleGenericKernels(), _cpu_code)


@dataclasses.dataclass(frozen=True)
class Optimized:
    """A module whose kernels are final; ``src/`` shows them as TIR."""

    module: tvm.IRModule
    names: dict[str, str]
    """The kernels' names by the names they had when they were lowered or fused, in the order of their first use."""
    nodes: dict[str, list[ir.Node]]
    """The nodes a kernel computes, by its name."""
    apart: dict[str, Budget]
    """Names of the nodes that a budget kept from being fused, with that budget."""
    joined: Joined
    """The kernels that joined ones were made from, by their first names."""


def optimize(
    module: tvm.IRModule,
    target: tvm.target.Target,
    nodes: Mapping[str, ir.Node],
    backend: Backend = CPU,
    used: Collection[str] = (),
) -> Optimized:
    """Run the graph phases. ``nodes``: the node that each variable of ``main`` was made for, by the variable's name;
    ``used``: names that kernels of other functions have."""
    sequence = tvm.ir.transform.Sequential
    with target:
        called = sequence(operator_phases())(module)
        limited = fused_within(called, relax.transform.FuseOps(fuse_opt_level=2))
        whole = sequence(fusion_phases())(limited.after)
        joined = Joined(whole, {}) if backend.join is None else backend.join(whole)
        merged = merge_alike(joined.module)
        fused = backend.schedule(merged.module)
    computed: dict[str, list[ir.Node]] = {}
    by_call = nodes_by_call(limited.before, limited.after, nodes)
    for symbol, of_symbol in nodes_of_kernels(joined.module, by_call, joined.computed).items():
        computed.setdefault(merged.instead.get(symbol, symbol), []).extend(of_symbol)
    names = readable_names(fused, used)
    apart = {node_name(nodes[name]): budget for name, budget in limited.apart.items() if name in nodes}
    own = {names[old]: computed.get(old, []) for old in names}
    return Optimized(rename_kernels(fused, names), names, own, apart, joined)


@dataclasses.dataclass(frozen=True)
class Built:
    """The VM's instructions, the code of kernels, and the modules with explicit memory that the first were made of:
    ``main``, and the others by name."""

    executable: relax.VMExecutable
    generated: Generated
    main: tvm.IRModule
    others: Mapping[str, tvm.IRModule]


def build(
    module: tvm.IRModule, target: tvm.target.Target, backend: Backend = CPU, others: Mapping[str, tvm.IRModule] = {}
) -> Built:
    """Generate the VM's instructions for an optimised module, and the code of the kernels that they call.

    ``others``: further modules by name; their ``main`` becomes a function of this name."""
    with target:
        planned = {
            name: tvm.ir.transform.Sequential(memory_phases())(part)
            for name, part in {"main": module, **others}.items()
        }
        # Passes may change the module that they are given.
        phases = instruction_phases(rounds_storage=backend.rounds_storage)
        copies = {name: tvm.IRModule(part.functions, part.attrs) for name, part in planned.items()}
        parts = [_executable(part, name, phases) for name, part in copies.items()]
    builder = relax.ExecBuilder()
    whole = tvm.IRModule({symbol: function for part in parts for symbol, function in part.functions.items()})
    left = tvm.get_global_func("relax.VMCodeGen")(builder, whole)
    kernels = {symbol: function for symbol, function in left.functions.items() if isinstance(function, tirx.PrimFunc)}
    generated = backend.generate(tvm.IRModule(kernels), target)
    # TVM links instructions with a library: one without code, for the kernels' objects are made one by one.
    library = host_code.code_of(tvm.IRModule({}), target.host or target)
    if generated.device is not None:
        library.import_module(generated.device)
    linked = tvm.get_global_func("relax.VMLink")(builder, target, library, [], {})
    return Built(relax.VMExecutable(linked), generated, planned.pop("main"), planned)


def _executable(module: tvm.IRModule, name: str, phases: Sequence[tvm.transform.Pass]) -> tvm.IRModule:
    """Run the last ``phases`` on a module, and rename ``main`` and the functions that these phases add by ``name``."""
    before = {symbol.name_hint for symbol in module.functions} - {"main"}
    module = tvm.ir.transform.Sequential(phases)(module)
    if name == "main":
        return module
    own = {
        symbol: tvm.ir.GlobalVar(name if symbol.name_hint == "main" else f"{name}_{symbol.name_hint}")
        for symbol in module.functions
        if symbol.name_hint not in before
    }
    renamed: dict[tvm.ir.GlobalVar, tvm.ir.BaseFunc] = {}
    for symbol, function in module.functions.items():
        named = own.get(symbol, symbol)
        function = tvm_ffi.structural_map(function, [(tvm.ir.GlobalVar, lambda called: own.get(called, called))])
        renamed[named] = function.with_attr("global_symbol", named.name_hint)
    return tvm.IRModule(renamed)

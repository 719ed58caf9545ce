"""One launch for small kernels that do not need each other's results: some blocks of threads run one, others another.

A kernel allows it by :data:`~moec.targets.gpu.kernels.launch.BESIDE`. For few tokens such kernels take about as long as
their launch, and queries, keys and values are ready at the same time, as are the router and a shared expert. Kernels
of elements, which are not yet scheduled, join them. Kernels that are launched for some sizes only
(:mod:`.launch_conditions`) share a launch with others for the same sizes.

::

    q = call_tir(rotate, (x,))
    k = call_tir_inplace(rotate_append, (start, x, keys), inplace_indices=[2])
    v = call_tir_inplace(append, (start, x, values), inplace_indices=[2])
        ->
    b = call_tir_inplace(rotate_beside_rotate_append_beside_append, (x, start, x, keys, start, x, values),
                         inplace_indices=[-1, 3, 6])
    q, k, v = b[0], b[1], b[2]
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx
from tvm.script import tirx as T
from tvm.tirx.exec_scope import ScopeIdDef

from moec.targets.gpu.kernels.launch import ATTRIBUTES, BEGINS_EARLY, BESIDE, EARLY_ATTRIBUTES, blocks_for, indices_of
from moec.targets.gpu.lowering.calls import IN_PLACE, MemoryOfCalls, is_kernel_call, places_of, results_of
from moec.targets.gpu.lowering.element_formula import ElementFormula, formula_of
from moec.targets.gpu.lowering.inline_producers import inlined_kernel
from moec.targets.gpu.lowering.launch_conditions import LAUNCH_IF, launched_sizes
from moec.targets.tvm.kernels.te_kernels import OPAQUE
from moec.targets.tvm.phases.order_bindings import sizes_read_by
from moec.targets.tvm.phases.pipeline import Joined
from moec.targets.tvm.phases.provenance import bindings_of
from moec.targets.tvm.phases.share_views import is_call_of, variables

ELEMENT_THREADS = 256
"""Threads of a block that computes elements, unless it shares a launch with another kernel's blocks."""
_MOST = 4
"""Kernels in a launch."""
_REACH = 128
"""Bindings after a kernel among which others are looked for: those of a layer, so that time grows with the model."""


def side_by_side(module: tvm.IRModule) -> Joined:
    """The module with launches of several kernels. Kernels of rows come first, since elements are computed from their
    results; then elements join them, and last each other. Each is grouped until nothing changes, since those that wait
    for a group may form another one."""
    parts: dict[str, list[str]] = {}
    computed: dict[relax.Var, list[relax.Var]] = {}
    for phase in _Phase:
        while True:
            function = module["main"]
            grouping = _LaunchGroups(module, list(bindings_of(function)), phase)
            kept = grouping.grouped()
            if not grouping.parts:
                break
            joined = grouping.builder.get()
            block = type(function.body.blocks[0])(kept)
            body = relax.SeqExpr([block], function.body.body)
            joined["main"] = relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)
            module = relax.transform.DeadCodeElimination()(joined)
            parts |= grouping.parts
            computed |= grouping.computed
    return Joined(module, parts, computed=computed)


class _Phase(enum.Enum):
    """What is grouped: kernels of rows alone, elements with them, or kernels whose blocks have as many threads as those
    that compute elements."""

    ROWS = enum.auto()
    BOTH = enum.auto()
    ELEMENTS = enum.auto()


@dataclasses.dataclass
class _Effects:
    """The variables, those of sizes included, that bindings make and use, and the memory that they read and write."""

    results: set[Any] = dataclasses.field(default_factory=set)
    used: set[Any] = dataclasses.field(default_factory=set)
    read: set[Any] = dataclasses.field(default_factory=set)
    written: set[Any] = dataclasses.field(default_factory=set)

    def add(self, other: _Effects) -> None:
        self.results |= other.results
        self.used |= other.used
        self.read |= other.read
        self.written |= other.written

    def need(self, other: _Effects) -> bool:
        return not self.used.isdisjoint(other.results)

    def collide(self, other: _Effects) -> bool:
        """Whether one writes to memory that the other reads or writes, so that they have to stay in order."""
        return not (other.written.isdisjoint(self.read | self.written) and self.written.isdisjoint(other.read))


@dataclasses.dataclass(frozen=True)
class _SharedLaunch:
    """The properties of a kernel that can be in a launch with others. ``threads``: of a block; ``sizes``: those for
    which it is launched, None for all; ``formula``: of its elements, if it computes such."""

    threads: int
    sizes: Any = None
    formula: ElementFormula | None = None


class _LaunchGroups:
    """The calls of ``main``: of each group all are where the last one was."""

    def __init__(self, module: tvm.IRModule, bindings: Sequence[relax.VarBinding], phase: _Phase) -> None:
        self.builder, self.parts = relax.BlockBuilder(module), dict[str, list[str]]()
        self.computed: dict[relax.Var, list[relax.Var]] = {}
        self._module, self._bindings, self._phase = module, bindings, phase
        memory = MemoryOfCalls({binding.var: binding for binding in bindings})
        self._effects = [
            _Effects(
                {each.var, *sizes_read_by(each)},
                set(variables(each.value)),
                memory.read(each.value),
                memory.written(each.value),
            )
            for each in bindings
        ]
        self._formulas: dict[str, ElementFormula | None] = {}
        self._launches = [self._launch(binding) for binding in bindings]
        self._made: dict[tvm_ffi.StructuralKey, tvm.ir.GlobalVar] = {}
        self._several: dict[relax.Var, tuple[relax.Var, int]] = {}
        """For a call of a group with several results those of the launch, and the place of its first one there."""

    def grouped(self) -> list[relax.VarBinding]:
        """The bindings, in which each group is one call, followed by those between that need its results."""
        last: dict[int, tuple[list[int], list[int]]] = {}
        taken: set[int] = set()
        for start in range(len(self._bindings)):
            if start in taken or not self._begins_group(start):
                continue
            group, waiting = self._group(start, taken)
            if len(group) > 1 and any(self._may_share(self._bindings[at]) for at in group):
                last[group[-1]] = (group, waiting)
                taken.update(group, waiting)
        kept: list[relax.VarBinding] = []
        for at, binding in enumerate(self._bindings):
            if at in last:
                group, waiting = last[at]
                kept += self._call(group)
                kept += [self._bindings[each] for each in waiting]
            elif at not in taken:
                kept.append(binding)
        return [self._item(binding) for binding in kept]

    def _group(self, start: int, taken: set[int]) -> tuple[list[int], list[int]]:
        """The calls from ``start`` on that can wait for the last of them, and the bindings that wait for their
        results."""
        group, waiting, before = [start], list[int](), _Effects()
        before.add(self._effects[start])
        for at in range(start + 1, min(start + _REACH, len(self._bindings))):
            effects = self._effects[at]
            is_needing = effects.need(before)
            ends = is_needing and self._keeps_waiting(group, at)
            if len(group) == _MOST or at in taken or ends or (not is_needing and before.collide(effects)):
                break
            if not is_needing and not self._fits(group, at):
                continue
            (waiting if is_needing else group).append(at)
            before.add(effects)
        return group, [at for at in waiting if at < group[-1]]

    def _begins_group(self, at: int) -> bool:
        launch = self._launches[at]
        if launch is None:
            return False
        if self._phase is _Phase.BOTH and launch.formula is not None:
            return True
        return (launch.threads == ELEMENT_THREADS) == (self._phase is _Phase.ELEMENTS)

    def _keeps_waiting(self, group: Sequence[int], at: int) -> bool:
        """Whether a binding that needs the group's results would be kept waiting by early kernels of elements, which
        others can compute, too."""
        if self._phase is _Phase.ELEMENTS:
            return True
        only_elements = all(launch.formula is not None for launch in self._members(group))
        return only_elements and is_kernel_call(self._bindings[at].value)

    def _fits(self, group: Sequence[int], at: int) -> bool:
        """Whether a call can be in the launch of others. Elements can be computed by any number of threads."""
        other, members = self._launches[at], self._members(group)
        if other is None or any(launch.sizes != other.sizes for launch in members):
            return False
        if self._phase is not _Phase.BOTH:
            return members[0].threads == other.threads
        kernels = {launch.threads for launch in (*members, other) if launch.formula is None}
        return kernels <= {other.threads} - {ELEMENT_THREADS} if other.formula is None else len(kernels) <= 1

    def _members(self, group: Sequence[int]) -> list[_SharedLaunch]:
        return [launch for launch in (self._launches[at] for at in group) if launch is not None]

    def _may_share(self, binding: relax.VarBinding) -> bool:
        return BESIDE in self._module[binding.value.args[0]].attrs

    def _launch(self, binding: relax.VarBinding) -> _SharedLaunch | None:
        """The properties of the called kernel; None where it has a launch of its own."""
        value = binding.value
        if not is_kernel_call(value):
            return None
        symbol = value.args[0].name_hint
        kernel = self._module[value.args[0]]
        if BESIDE in kernel.attrs:
            types = [*(argument.ty for argument in value.args[1]), *results_of(value)]
            return _SharedLaunch(_ThreadBlocks.of(kernel).threads, launched_sizes(kernel, types))
        if symbol not in self._formulas:
            self._formulas[symbol] = formula_of(kernel)
        formula = self._formulas[symbol]
        return None if formula is None else _SharedLaunch(ELEMENT_THREADS, formula=formula)

    def _call(self, members: Sequence[int]) -> list[relax.VarBinding]:
        """The call of all kernels of the group, those that allow it first, and their results."""
        members = sorted(members, key=lambda at: not self._may_share(self._bindings[at]))
        group = [self._bindings[at] for at in members]
        inputs = [len(binding.value.args[1]) for binding in group]
        kernel = kernels_beside([self._kernel(at, members[0]) for at in members], inputs)
        names = [binding.value.args[0].name_hint for binding in group]
        key = tvm_ffi.StructuralKey(kernel)
        if key not in self._made:
            self._made[key] = self.builder.add_func(kernel, "_".join(name.rpartition("_")[2] for name in names))
            self.parts[self._made[key].name_hint] = names
        arguments: list[Any] = []
        places: list[int] = []
        for binding in group:
            places += [place + len(arguments) if place >= 0 else -1 for place in places_of(binding.value)]
            arguments += list(binding.value.args[1])
        types = [kind for binding in group for kind in results_of(binding.value)]
        called = (
            relax.op.call_tir_inplace(self._made[key], arguments, places, types)
            if any(is_call_of(binding.value, IN_PLACE) for binding in group)
            else relax.call_tir(self._made[key], arguments, types)
        )
        called = self.builder.normalize(called)
        results = relax.DataflowVar("beside", called.ty)
        self.computed[results] = [binding.var for binding in group]
        kept, place = [relax.VarBinding(results, called)], 0
        for binding in group:
            count = len(results_of(binding.value))
            if count == 1:
                kept.append(relax.VarBinding(binding.var, relax.TupleGetItem(results, place)))
            else:
                self._several[binding.var] = results, place
            place += count
        return kept

    def _kernel(self, at: int, first: int) -> tirx.PrimFunc:
        """The kernel of a call, with as many threads in a block as that of another."""
        launch, other = self._launches[at], self._launches[first]
        assert launch is not None and other is not None, "a call of a group may share a launch"
        if launch.formula is None:
            return self._module[self._bindings[at].value.args[0]]
        return element_kernel(launch.formula, other.threads)

    def _item(self, binding: relax.VarBinding) -> relax.VarBinding:
        """The binding, of an item of the launch's results where it was one of a kernel that is now in a launch."""
        value = binding.value
        if not isinstance(value, relax.TupleGetItem) or value.tuple_value not in self._several:
            return binding
        results, place = self._several[value.tuple_value]
        return relax.VarBinding(binding.var, relax.TupleGetItem(results, place + value.index))


@dataclasses.dataclass(frozen=True)
class _ThreadBlocks:
    """The blocks of a kernel that is written for threads: ``block`` of ``count``, ``thread`` of ``threads``, and the
    statements of a thread."""

    block: Any
    count: Any
    thread: Any
    threads: int
    steps: tuple[tirx.Stmt, ...]

    @staticmethod
    def of(kernel: tirx.PrimFunc) -> _ThreadBlocks:
        block, thread, *steps = kernel.body.body.seq
        of_block, of_thread = getattr(block, "def"), getattr(thread, "def")
        return _ThreadBlocks(
            of_block.def_ids[0],
            of_block.extents[0],
            of_thread.def_ids[0],
            int(of_thread.extents[0]),
            tuple(steps),
        )


def element_kernel(formula: ElementFormula, threads: int = ELEMENT_THREADS) -> tirx.PrimFunc:
    """A kernel that computes an element in each thread, of which a block has ``threads``."""
    shape, dtype = formula.shape, str(formula.value.ty.dtype)

    @T.prim_func
    def copy(source_handle: T.handle, result_handle: T.handle):
        T.func_attr(EARLY_ATTRIBUTES)
        source = T.match_buffer(source_handle, shape, dtype)
        result = T.match_buffer(result_handle, shape, dtype)
        T.device_entry()
        count = T.meta_var(_product(shape))
        block = T.cta_id([T.cast(blocks_for(count, threads), "int32")])
        thread = T.thread_id([threads])
        index: T.let = T.cast(block, "int64") * threads + thread
        if index < count:
            at = T.meta_var(tuple(indices_of(index, [T.cast(size, "int64") for size in shape])))
            result[at] = source[at]

    kernel = inlined_kernel(copy, 0, formula, is_viewed=False)
    assert kernel is not None, "the result has all sizes"
    return kernel


def _product(sizes: Sequence[Any]) -> Any:
    count: Any = tirx.IntImm("int64", 1)
    for size in sizes:
        count = count * size
    return count


def kernels_beside(kernels: Sequence[tirx.PrimFunc], inputs: Sequence[int]) -> tirx.PrimFunc:
    """One kernel of several with blocks of the same number of threads, for the sizes of the first. ``inputs``: how many
    parameters of each come before new results; those of all kernels come first."""
    own = [_renamed(kernel, position) for position, kernel in enumerate(kernels)]
    parts = [_ThreadBlocks.of(kernel) for kernel in own]
    block, thread = (tirx.Var(name, "int32") for name in ("block", "thread"))
    ends: list[Any] = []
    for part in parts:
        ends.append(part.count if not ends else ends[-1] + part.count)
    body: tirx.Stmt | None = None
    for position in reversed(range(len(parts))):
        steps = _steps(parts[position], block - ends[position - 1] if position else block, thread)
        body = steps if body is None else tirx.IfThenElse(block < ends[position], steps, body)
    ids = [
        tirx.ScopeIdDefStmt(ScopeIdDef([block], [ends[-1]], "kernel", "cta")),
        tirx.ScopeIdDefStmt(ScopeIdDef([thread], [tirx.IntImm("int32", parts[0].threads)], "cta", "thread")),
    ]
    entry = own[0].body
    whole = tirx.AttrStmt(entry.node, entry.attr_key, entry.value, tirx.SeqStmt([*ids, body]))
    parameters = [each for kernel, count in zip(own, inputs, strict=True) for each in kernel.params[:count]]
    parameters += [each for kernel, count in zip(own, inputs, strict=True) for each in kernel.params[count:]]
    attributes: dict[str, Any] = dict(
        EARLY_ATTRIBUTES if all(BEGINS_EARLY in kernel.attrs for kernel in kernels) else ATTRIBUTES
    )
    asked = kernels[0].attrs.get(LAUNCH_IF)
    if asked is not None:
        place = int(asked["parameter"])
        attributes[LAUNCH_IF] = {**asked, "parameter": place if place < inputs[0] else place + sum(inputs[1:])}
    return tirx.PrimFunc(parameters, whole, None).with_attrs({**attributes, "op_pattern": OPAQUE})


def _steps(part: _ThreadBlocks, block: Any, thread: Any) -> tirx.Stmt:
    """The statements of a kernel's thread, in which its block and thread have other numbers."""
    instead = {part.block: block, part.thread: thread}
    steps = tirx.SeqStmt(part.steps) if len(part.steps) > 1 else part.steps[0]
    return tvm_ffi.structural_map(steps, [(tvm.ir.Var, lambda variable: instead.get(variable, variable))])


def _renamed(kernel: tirx.PrimFunc, position: int) -> tirx.PrimFunc:
    """The kernel with names of its own for parameters, and for the sizes that only its tensors have, which are int32;
    others are sizes of the model."""
    if position == 0:
        return kernel
    kernel = s_tir.renew_defs(kernel)  # the same kernel may be in a launch twice
    suffix, instead = f"_{position + 1}", dict[Any, Any]()
    for parameter in kernel.params:
        for size in getattr(parameter.ty, "shape", ()):
            if isinstance(size, tirx.Var) and str(size.ty.dtype) == "int32" and size not in instead:
                instead[size] = tirx.Var(f"{size.name}{suffix}", "int32")
    sizes = dict(instead)

    def mapped(value: Any) -> Any:
        return tvm_ffi.structural_map(value, [(tvm.ir.Var, lambda variable: sizes.get(variable, variable))])

    for parameter in kernel.params:
        kind = parameter.ty
        if isinstance(kind, tirx.BufferType):
            shape = [mapped(size) for size in kind.shape]
            instead[parameter] = tirx.decl_buffer(shape, str(kind.dtype), f"{parameter.name}{suffix}")
    body = tvm_ffi.structural_map(kernel.body, [(tvm.ir.Var, lambda variable: instead.get(variable, variable))])
    parameters = [instead.get(parameter, parameter) for parameter in kernel.params]
    return tirx.PrimFunc(parameters, body, kernel.ret_type, kernel.attrs)

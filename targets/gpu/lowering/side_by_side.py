"""One launch for small kernels that do not need each other's results: some blocks of threads run one, others another.

A kernel allows it by :data:`~moec.targets.gpu.kernels.launch.BESIDE`. For few tokens such kernels take about as long as
their launch, and queries, keys and values are ready at the same time, as are the router and a shared expert. Kernels
of elements, which are not yet scheduled, join them. Kernels that are launched for some sizes only
(:mod:`.launch_conditions`) share a launch with others for the same sizes. One kernel that is launched below a number,
which the host reads at run time, also shares a launch with kernels up to a constant size: experts of few tokens and the
shared expert's second product. The launch is for sizes within both limits, and each kernel has one alone for the rest.

::

    q = call_tir(rotate, (x,))
    k = call_tir_inplace(rotate_append, (start, x, keys), inplace_indices=[2])
    v = call_tir_inplace(append, (start, x, values), inplace_indices=[2])
        ->
    b = call_tir_inplace(rotate_beside_rotate_append_beside_append, (x, start, x, keys, start, x, values),
                         inplace_indices=[-1, 3, 6])
    q, k, v = b[0], b[1], b[2]

    y = call_tir(experts, (number, x, matrices))   # where T < number
    z = call_tir(product, (x, matrix))             # where T <= 16
        ->
    b = call_tir(experts_beside_product, (number, x, matrices, x, matrix))         # where T < number and T <= 16
    y = call_tir_inplace(experts, (number, x, matrices, b[0]), inplace_indices=[3])       # where 17 <= T < number
    z = call_tir_inplace(product, (number, x, matrix, b[1]), inplace_indices=[3])         # where number <= T <= 16
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

import tvm
import tvm_ffi
from tvm import relax, tirx

from moec.targets.gpu.kernels.launch import BESIDE
from moec.targets.gpu.lowering.calls import MemoryOfCalls, is_kernel_call, places_of, results_of
from moec.targets.gpu.lowering.element_formula import ElementFormula, formula_of
from moec.targets.gpu.lowering.launch_conditions import LaunchSizes, launch_beyond, launch_up_to
from moec.targets.gpu.lowering.shared_launches import ELEMENT_THREADS, ThreadBlocks, element_kernel, kernels_beside
from moec.targets.tvm.phases.order_bindings import sizes_read_by
from moec.targets.tvm.phases.pipeline import Joined
from moec.targets.tvm.phases.provenance import bindings_of
from moec.targets.tvm.phases.share_views import variables

_MOST = 4
"""Kernels in a launch."""
_REACH = 128
"""Bindings after a kernel among which others are looked for: those of a layer, so that time grows with the model."""


def side_by_side(module: tvm.IRModule) -> Joined:
    """The module with launches of several kernels. Kernels of rows come first, since elements are computed from their
    results; then elements join them, and last each other. Each is grouped until nothing changes, since those that wait
    for a group may form another one, and a group may grow."""
    launches: dict[str, list[_Member]] = {}
    apart: dict[str, list[str]] = {}
    computed: dict[relax.Var, list[relax.Var]] = {}
    for phase in _Phase:
        while True:
            function = module["main"]
            grouping = _LaunchGroups(module, list(bindings_of(function)), phase, launches, apart)
            kept = grouping.grouped()
            if not grouping.computed:
                break
            joined = grouping.builder.get()
            block = type(function.body.blocks[0])(kept)
            body = relax.SeqExpr([block], function.body.body)
            joined["main"] = relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)
            module = relax.transform.DeadCodeElimination()(joined)
            for results, calls in grouping.computed.items():
                computed[results] = [each for call in calls for each in computed.get(call, [call])]
    symbols = {symbol.name_hint for symbol in module.functions}
    parts = {symbol: [member.name for member in members] for symbol, members in launches.items()}
    parts = {symbol: names for symbol, names in (parts | apart).items() if symbol in symbols}
    return Joined(module, parts, computed=computed)


class _Phase(enum.Enum):
    """Calls that are grouped: of kernels of rows alone, of elements with them, or of kernels whose blocks have as many
    threads as those that compute elements."""

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
    """The properties of a call that can be in a launch with others. ``threads``: of a block; ``sizes``: those for which
    it is launched, None for all; ``formula``: of its elements, if it computes such; ``kernels``: those in it already.
    """

    threads: int
    sizes: LaunchSizes | None = None
    formula: ElementFormula | None = None
    kernels: int = 1


class _Member(NamedTuple):
    """A kernel in a launch: its name, its function, and how many arguments its calls have."""

    name: str
    kernel: tirx.PrimFunc
    inputs: int


class _LaunchGroups:
    """The calls of ``main``: of each group all are where the last one was. ``launches``: the kernels in launches that
    were made before, to which new ones are added; ``apart``: the same of kernels that launch some of them alone."""

    def __init__(
        self,
        module: tvm.IRModule,
        bindings: Sequence[relax.VarBinding],
        phase: _Phase,
        launches: dict[str, list[_Member]],
        apart: dict[str, list[str]],
    ) -> None:
        self.builder, self._shared, self._apart = relax.BlockBuilder(module), launches, apart
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
            if self._count(group) == _MOST or at in taken or ends or (not is_needing and before.collide(effects)):
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
        if other is None or not all(_meet(launch.sizes, other.sizes) for launch in members):
            return False
        if self._count(group) + other.kernels > _MOST:
            return False
        if self._phase is not _Phase.BOTH:
            return members[0].threads == other.threads
        kernels = {launch.threads for launch in (*members, other) if launch.formula is None}
        return kernels <= {other.threads} - {ELEMENT_THREADS} if other.formula is None else len(kernels) <= 1

    def _members(self, group: Sequence[int]) -> list[_SharedLaunch]:
        return [launch for launch in (self._launches[at] for at in group) if launch is not None]

    def _count(self, group: Sequence[int]) -> int:
        return sum(launch.kernels for launch in self._members(group))

    def _may_share(self, binding: relax.VarBinding) -> bool:
        symbol = binding.value.args[0]
        return BESIDE in self._module[symbol].attrs or symbol.name_hint in self._shared

    def _launch(self, binding: relax.VarBinding) -> _SharedLaunch | None:
        """The properties of the called kernel; None where it has a launch of its own."""
        value = binding.value
        if not is_kernel_call(value):
            return None
        symbol = value.args[0].name_hint
        kernel = self._module[value.args[0]]
        if self._may_share(binding):
            sizes = LaunchSizes.of(kernel, value.args[1], results_of(value))
            count = len(self._shared.get(symbol, [symbol]))
            return _SharedLaunch(ThreadBlocks.of(kernel).threads, sizes, kernels=count)
        if symbol not in self._formulas:
            self._formulas[symbol] = formula_of(kernel)
        formula = self._formulas[symbol]
        return None if formula is None else _SharedLaunch(ELEMENT_THREADS, formula=formula)

    def _call(self, members: Sequence[int]) -> list[relax.VarBinding]:
        """The call of all kernels of the group, and their results. Those that allow it come first, and before others
        the one that takes numbers."""
        members = sorted(members, key=lambda at: (not self._may_share(self._bindings[at]), not self._numbers(at)))
        group = [self._bindings[at] for at in members]
        arguments: list[Any] = []
        places: list[int] = []
        for binding in group:
            places += [place + len(arguments) if place >= 0 else -1 for place in places_of(binding.value)]
            arguments += list(binding.value.args[1])
        types = [kind for binding in group for kind in results_of(binding.value)]
        kernel = self._kernel_of_group(members)
        results = self._bound("beside", _called(self._symbol_of(kernel), arguments, places, types))
        self.computed[results.var] = [binding.var for binding in group]
        numbers, kept, place = self._numbers(members[0]), [results], 0
        for binding in group:
            count = len(results_of(binding.value))
            alone = launch_beyond(self._module[binding.value.args[0]], kernel) if numbers else None
            if alone is not None:
                items = [self._bound("item", relax.TupleGetItem(results.var, place + item)) for item in range(count)]
                kept += [*items, self._call_on(binding, alone, [item.var for item in items], numbers)]
            elif count == 1:
                kept.append(relax.VarBinding(binding.var, relax.TupleGetItem(results.var, place)))
            else:
                self._several[binding.var] = results.var, place
            place += count
        return kept

    def _kernel_of_group(self, members: Sequence[int]) -> tirx.PrimFunc:
        """The kernel of a launch of several, for the sizes for which each of them is launched."""
        parts = [part for at in members for part in self._parts(at, members[0])]
        kernel = kernels_beside([part.kernel for part in parts], [part.inputs for part in parts])
        if self._numbers(members[0]):
            sizes = [launch.sizes for launch in self._members(members)]
            kernel = launch_up_to(kernel, min(each.most for each in sizes if each is not None))
        symbol = self._symbol_of(kernel, "_".join(part.name.rpartition("_")[2] for part in parts))
        self._shared[symbol.name_hint] = parts
        return kernel

    def _call_on(
        self, binding: relax.VarBinding, kernel: tirx.PrimFunc, items: Sequence[relax.Var], numbers: Sequence[Any]
    ) -> relax.VarBinding:
        """The call of a kernel of a group alone, which writes its results to ``items``, where the group would."""
        value, before = binding.value, binding.value.args[0]
        symbol = self._symbol_of(kernel.without_attr(BESIDE) if BESIDE in kernel.attrs else kernel, before.name_hint)
        parts = [part.name for part in self._shared.get(before.name_hint, [])]
        self._apart[symbol.name_hint] = parts or [before.name_hint]
        more = len(kernel.params) - len(self._module[before].params)
        arguments, places = [*numbers[:more], *value.args[1]], list[int]()
        for item, place in zip(items, places_of(value), strict=True):
            places.append(place + more if place >= 0 else len(arguments))
            arguments[places[-1] : places[-1] + 1] = [item]
        called = self.builder.normalize(_called(symbol, arguments, places, results_of(value)))
        return relax.VarBinding(binding.var, called)

    def _numbers(self, at: int) -> tuple[Any, ...]:
        launch = self._launches[at]
        return () if launch is None or launch.sizes is None else launch.sizes.numbers

    def _symbol_of(self, kernel: tirx.PrimFunc, name: str = "beside") -> tvm.ir.GlobalVar:
        key = tvm_ffi.StructuralKey(kernel)
        if key not in self._made:
            self._made[key] = self.builder.add_func(kernel, name)
        return self._made[key]

    def _bound(self, name: str, value: relax.Expr) -> relax.VarBinding:
        value = self.builder.normalize(value)
        return relax.VarBinding(relax.DataflowVar(name, value.ty), value)

    def _parts(self, at: int, first: int) -> Sequence[_Member]:
        """The kernels of a call, with as many threads in a block as that of another."""
        launch, other, value = self._launches[at], self._launches[first], self._bindings[at].value
        assert launch is not None and other is not None, "a call of a group may share a launch"
        name = value.args[0].name_hint
        if name in self._shared:
            return self._shared[name]
        formula = launch.formula
        kernel = self._module[value.args[0]] if formula is None else element_kernel(formula, other.threads)
        return [_Member(name, kernel, len(value.args[1]))]

    def _item(self, binding: relax.VarBinding) -> relax.VarBinding:
        """The binding, of an item of the launch's results where it was one of a kernel that is now in a launch."""
        value = binding.value
        if not isinstance(value, relax.TupleGetItem) or value.tuple_value not in self._several:
            return binding
        results, place = self._several[value.tuple_value]
        return relax.VarBinding(binding.var, relax.TupleGetItem(results, place + value.index))


def _meet(first: LaunchSizes | None, second: LaunchSizes | None) -> bool:
    return first is second if first is None or second is None else first.meet(second)


def _called(
    symbol: tvm.ir.GlobalVar, arguments: Sequence[Any], places: Sequence[int], types: Sequence[relax.TensorType]
) -> relax.Call:
    """A call with results of these types, some in place of arguments."""
    if any(place >= 0 for place in places):
        return relax.op.call_tir_inplace(symbol, list(arguments), list(places), list(types))
    return relax.call_tir(symbol, list(arguments), list(types))

"""Compute an operand in the kernel that reads it, where that kernel reads each element for itself.

A kernel that is written for threads declares such an operand (``TAKES`` of :mod:`moec.targets.gpu.kernels.launch`).
What makes the operand, elementwise operators and operators that move elements, then needs no launch: the rotary
embedding of new keys is computed as they are appended. A kernel that reads elements several times, such as a
normalisation, also has a form that stores them first (``STORING``): the sum of a residual connection is computed and
stored by the kernel that normalises it.

::

    s = call_tir(add, (x, y))
    a = reshape(s, [T, 64])
    n = call_tir(rms_norm, (a, scale))
    z = call_tir(multiply, (s, n))
        ->
    b = call_tir(add_rms_norm, (x, y, scale))    # b[0][row] = x[row] + y[row], b[1][row] = norm of b[0][row]
    s = reshape(b[0], [T, 8, 8])
    n = b[1]
    z = call_tir(multiply, (s, n))

The results are the same bits. An operand with another reader, or with arithmetic, is stored before it is read again, so
it is rounded as before and no multiplication joins an addition of the kernel. Without a form that stores, an operand
has one reader, which only copies it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx

from moec.targets.gpu.kernels.launch import STORING, TAKES
from moec.targets.gpu.lowering.calls import IN_PLACE, KERNEL, VIEW, MemoryOfCalls, is_kernel_call, places_of
from moec.targets.gpu.lowering.element_formula import ElementFormula, formula_of
from moec.targets.tvm.phases.pipeline import Joined
from moec.targets.tvm.phases.provenance import bindings_of
from moec.targets.tvm.phases.share_views import is_call_of, variables


def inline_producers(module: tvm.IRModule) -> Joined:
    """Inline into the kernels that ``main`` calls. Runs when kernels are fused and not yet scheduled."""
    function = module["main"]
    bindings = list(bindings_of(function))
    inlining = _Inlining(module, bindings, function.body.body)
    for binding in bindings:
        inlining.add(binding)
    joined = inlining.builder.get()
    block = type(function.body.blocks[0])(inlining.kept)
    body = relax.SeqExpr([block], function.body.body)
    joined["main"] = relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)
    joined = relax.transform.DeadCodeElimination()(joined)
    return Joined(joined, inlining.parts, computed=inlining.computed)


@dataclasses.dataclass(frozen=True)
class _Operand:
    """The operand of a reader. ``maker``: the binding of the call that makes it; ``views``: those between."""

    maker: relax.VarBinding
    views: tuple[relax.VarBinding, ...]
    elements: ElementFormula


class _Inlining:
    """The bindings of ``main``, one after another. ``kept``: those of the result."""

    def __init__(self, module: tvm.IRModule, bindings: Sequence[relax.VarBinding], result: relax.Expr) -> None:
        self.builder, self.kept, self.parts = relax.BlockBuilder(module), list[relax.VarBinding](), dict[str, Any]()
        self.computed: dict[relax.Var, list[relax.Var]] = {}
        self._module, self._result = module, variables(result)
        self._binding_of = {binding.var: binding for binding in bindings}
        self._readers: dict[Any, list[relax.VarBinding]] = {}
        for binding in bindings:
            for variable in variables(binding.value):
                self._readers.setdefault(variable, []).append(binding)
        self._memory = MemoryOfCalls(self._binding_of)
        self._elements: dict[str, ElementFormula | None] = {}
        self._made: dict[tvm_ffi.StructuralKey, tvm.ir.GlobalVar] = {}

    def add(self, binding: relax.VarBinding) -> None:
        operand = self._operand_of(binding.value)
        if operand is None or not self._inline(binding, operand):
            self.kept.append(binding)

    def _operand_of(self, value: relax.Expr) -> _Operand | None:
        """The operand that the called kernel takes, if a kernel of elements makes it."""
        taken = self._taken(value)
        if taken is None:
            return None
        variable, views = value.args[1][taken], []
        while variable in self._binding_of and is_call_of(self._binding_of[variable].value, VIEW):
            views.append(self._binding_of[variable])
            variable = self._binding_of[variable].value.args[0]
        maker = self._binding_of.get(variable)
        if maker is None or not is_call_of(maker.value, KERNEL) or len(maker.value.args) > 2:
            return None
        symbol = maker.value.args[0].name_hint
        if symbol in self.parts:  # it computes an operand of its own, so it is written for threads
            return None
        if symbol not in self._elements:
            self._elements[symbol] = formula_of(self._module[symbol])
        elements = self._elements[symbol]
        return None if elements is None else _Operand(maker, tuple(views), elements)

    def _taken(self, value: relax.Expr) -> int | None:
        if not is_kernel_call(value):
            return None
        index = self._module[value.args[0]].attrs.get(TAKES)
        return None if index is None else int(index)

    def _inline(self, reader: relax.VarBinding, operand: _Operand) -> bool:
        """Emit the reader with its operand inlined, if that is possible."""
        value, moved = reader.value, [operand.maker, *operand.views]
        kernel = self._module[value.args[0]]
        between = self.kept[self.kept.index(operand.maker) + 1 :]
        own = {binding.var for binding in moved}
        waiting = self._views_of(own, between)
        others = [each for variable in own for each in self._readers[variable] if each not in (*moved, reader)]
        is_shared = bool(others) or not own.isdisjoint(self._result)
        stores = STORING in kernel.attrs and (is_shared or not operand.elements.moves)
        taken = int(kernel.attrs[TAKES])
        if (is_shared and not stores) or _reads_besides(value, taken, own):
            return False
        if self._memory.is_written(self._memory.read(operand.maker.value), [*between, reader]):
            return False
        if any(own & set(variables(each.value)) for each in between if each not in waiting):
            return False
        form = kernel.attrs[STORING] if stores else kernel
        inlined = inlined_kernel(form, taken, operand.elements, is_viewed=bool(operand.views))
        if inlined is None:
            return False
        self.kept = [each for each in self.kept if each is not operand.maker and each not in waiting]
        symbol = self._added(inlined, operand.maker.value.args[0].name_hint, value.args[0].name_hint)
        arguments = [*value.args[1]]
        arguments[taken : taken + 1] = list(operand.maker.value.args[1])
        self._call(reader, operand, symbol, arguments, stores=stores)
        self.kept += waiting
        return True

    def _views_of(self, own: set[Any], between: Sequence[relax.VarBinding]) -> list[relax.VarBinding]:
        """The views of the operand, and views of these, which can be made behind the reader."""
        seen, waiting = set(own), []
        for binding in between:
            if is_call_of(binding.value, VIEW) and binding.value.args[0] in seen:
                seen.add(binding.var)
                own.add(binding.var)
                waiting.append(binding)
        return waiting

    def _added(self, kernel: tirx.PrimFunc, maker: str, reader: str) -> tvm.ir.GlobalVar:
        key = tvm_ffi.StructuralKey(kernel)
        if key not in self._made:
            self._made[key] = self.builder.add_func(kernel, f"{maker}_{reader}")
            self.parts[self._made[key].name_hint] = (reader, maker)
        return self._made[key]

    def _call(
        self,
        reader: relax.VarBinding,
        operand: _Operand,
        symbol: tvm.ir.GlobalVar,
        arguments: Sequence[relax.Expr],
        *,
        stores: bool,
    ) -> None:
        value, types, maker = reader.value, list(reader.value.ty_args), operand.maker.var
        calls = [*self.computed.pop(maker, [maker]), reader.var]
        more = len(arguments) - len(value.args[1])
        if is_call_of(value, IN_PLACE):
            places = [place + more if place >= 0 else -1 for place in places_of(value)]
            self._bind(reader.var, relax.op.call_tir_inplace(symbol, list(arguments), places, types))
            self.computed[reader.var] = calls
            return
        if not stores:
            self._bind(reader.var, relax.call_tir(symbol, list(arguments), types if len(types) > 1 else types[0]))
            self.computed[reader.var] = calls
            return
        taken = value.args[1][int(self._module[value.args[0]].attrs[TAKES])]
        both = self._new("both", relax.call_tir(symbol, list(arguments), [taken.ty, *types]))
        self.computed[both] = calls
        if operand.views:
            stored = self._new("stored", relax.TupleGetItem(both, 0))
            self._bind(maker, relax.op.reshape(stored, list(maker.ty.shape)))
        else:
            self._bind(maker, relax.TupleGetItem(both, 0))
        self._bind(reader.var, relax.TupleGetItem(both, 1))

    def _new(self, name: str, value: relax.Expr) -> relax.Var:
        value = self.builder.normalize(value)
        variable = relax.DataflowVar(name, value.ty)
        self._bind(variable, value)
        return variable

    def _bind(self, variable: relax.Var, value: relax.Expr) -> None:
        """Bind the variable in the result, where a later reader finds the stored operand instead of its maker."""
        self.kept.append(relax.VarBinding(variable, self.builder.normalize(value)))
        self._binding_of[variable] = self.kept[-1]


def _reads_besides(call: relax.Call, taken: int, variables_of_operand: set[Any]) -> bool:
    """Whether the call has its operand ``taken`` as another operand too, such as a row that is its own scale."""
    others = [argument for index, argument in enumerate(call.args[1]) if index != taken]
    return any(variables_of_operand & set(variables(other)) for other in others)


def inlined_kernel(
    kernel: tirx.PrimFunc, taken: int, elements: ElementFormula, *, is_viewed: bool
) -> tirx.PrimFunc | None:
    """The kernel with the parameters of the operand's maker, except its result, in the place of parameter ``taken``.
    ``is_viewed``: whether the operand has another shape than that result, and the same order of elements. None where
    the kernel needs a size of the operand that is not found elsewhere."""
    operand = kernel.params[taken]
    others = [*kernel.params[:taken], *kernel.params[taken + 1 :]]
    sizes = _sizes_of(operand, others, elements, is_viewed)
    if sizes is None:
        return None

    def element(load: Any) -> Any:
        if not load.source.same_as(operand):
            return load
        indices = [index.astype("int64") for index in load.indices]
        if is_viewed:
            indices = _indices_in(elements.shape, [size.astype("int64") for size in operand.ty.shape], indices)
        return elements.at(indices)

    def one_by_one(loop: tirx.For) -> tirx.For:
        """Unroll a vectorised loop over elements that are computed with conditions or other types."""
        if loop.kind != tirx.ForKind.VECTORIZED or elements.may_be_vectors or not _loads(loop, operand):
            return loop
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.UNROLLED, loop.body)

    body = tvm_ffi.structural_map(kernel.body, [(tirx.For, one_by_one)])
    rules = [(tvm.ir.TensorLoad, element), (tvm.ir.Var, lambda variable: sizes.get(variable, variable))]
    body = tvm_ffi.structural_map(body, rules)
    parameters = [*kernel.params[:taken], *elements.inputs, *kernel.params[taken + 1 :]]
    inlined = tirx.PrimFunc(parameters, body, kernel.ret_type, kernel.attrs)
    for mark in (TAKES, STORING):
        inlined = inlined.without_attr(mark) if mark in inlined.attrs else inlined
    return inlined


def _loads(statement: tirx.Stmt, operand: Any) -> bool:
    loads: list[Any] = []
    tvm_ffi.structural_walk(statement, [(tvm.ir.TensorLoad, loads.append)])
    return any(load.source.same_as(operand) for load in loads)


def _sizes_of(operand: Any, others: Sequence[Any], elements: ElementFormula, is_viewed: bool) -> dict[Any, Any] | None:
    """Expressions for the sizes of the operand that no other parameter has."""
    bound = {size for other in others for size in getattr(other.ty, "shape", ()) if isinstance(size, tirx.Var)}
    sizes: dict[Any, Any] = {}
    for size, own in zip(operand.ty.shape, elements.shape, strict=False):
        if isinstance(size, tirx.Var) and size not in bound:
            if is_viewed:
                return None
            sizes[size] = own.astype(str(size.ty.dtype))
    return sizes


def _indices_in(shape: Sequence[Any], viewed: Sequence[Any], indices: Sequence[Any]) -> list[Any]:
    """The indices of an element in a tensor of ``shape``. ``indices``: in a view of it, of sizes ``viewed``."""
    shape, viewed, indices = list(shape), list(viewed), list(indices)
    last: list[Any] = []
    while shape and viewed and _is_equal(shape[-1], viewed[-1]):
        last.insert(0, indices.pop())
        shape.pop()
        viewed.pop()
    place: Any = tirx.IntImm("int64", 0)
    for size, index in zip(viewed, indices, strict=True):
        place = place * size + index
    first: list[Any] = []
    for position, size in reversed(list(enumerate(shape))):
        first.insert(0, place % size if position else place)
        place = place // size
    return [*first, *last]


def _is_equal(first: Any, second: Any) -> bool:
    return isinstance(first, tirx.IntImm) and isinstance(second, tirx.IntImm) and int(first) == int(second)

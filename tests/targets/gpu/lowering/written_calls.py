"""Programs of a few calls of kernels, for phases that join kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax, te, tirx

from moec.ir.dialect import RouteSpec
from moec.targets.gpu.kernels.append import append
from moec.targets.gpu.kernels.normalization import normalize
from moec.targets.gpu.kernels.route import route
from moec.targets.gpu.kernels.row_share import RowLayout
from moec.targets.tvm.heavy.route import RouteProblem
from moec.targets.tvm.lowering.paged_tensors import AppendProblem


@functools.cache
def _norm() -> tirx.PrimFunc:
    return normalize(RowLayout(512, "float32"), 1e-5, False, "float32")


class Calls:
    """Calls of kernels on the variables of ``main``, written as the lowering does. A state has pages of 16 entries."""

    def __init__(self) -> None:
        self.builder, self.given = relax.BlockBuilder(), dict[str, relax.Var]()
        shapes = {"x": [4, 2, 64], "y": [4, 2, 64], "scale": [512], "state": [3, 4, 16, 64], "other": [3, 4, 16, 64]}
        for name, shape in shapes.items():
            self.given[name] = relax.Var(name, relax.TensorType(shape, "float32"))
        self.given["logits"] = relax.Var("logits", relax.TensorType([4, 8], "float32"))
        self.given["start"] = relax.Var("start", relax.TensorType([1], "int64"))
        self._norm = self.builder.add_func(_norm(), "norm")
        self._route = self.builder.add_func(route(RouteProblem(RouteSpec(k=2), 8)), "route")
        self._append = self.builder.add_func(append(AppendProblem((4,), (64,), "float32", "float32")), "append")

    def __getattr__(self, name: str) -> relax.Var:
        return self.given[name]

    def elements(self, name: str, element: Any, *inputs: relax.Var) -> relax.Var:
        """Compute [4, 2, 64] by ``element(inputs, indices)``."""
        sources = [te.placeholder([int(size) for size in each.ty.shape], "float32") for each in inputs]
        result = te.compute((4, 2, 64), lambda *indices: element(*sources, indices))
        kernel = te.create_prim_func([*sources, result], "int64").without_attr("global_symbol")
        symbol = self.builder.add_func(kernel, name)
        return self.builder.emit(relax.call_tir(symbol, list(inputs), relax.TensorType([4, 2, 64], "float32")))

    def add(self, x: relax.Var, y: relax.Var) -> relax.Var:
        return self.elements("add", lambda x, y, at: x[at] + y[at], x, y)

    def first(self, state: relax.Var) -> relax.Var:
        """The first two entries of the state."""
        return self.elements("first", lambda state, at: state[(0, *at)], state)

    def norm(self, x: relax.Var, scale: relax.Var) -> relax.Var:
        row = self.builder.emit(relax.op.reshape(x, [1, 512]))
        return self.builder.emit(relax.call_tir(self._norm, [row, scale], row.ty))

    def route(self, logits: relax.Var) -> list[relax.Var]:
        """Weights and experts [4, 2] of four tokens."""
        types = [relax.TensorType([4, 2], dtype) for dtype in ("float32", "int32")]
        both = self.builder.emit(relax.call_tir(self._route, [logits], types))
        return [self.builder.emit(relax.TupleGetItem(both, place)) for place in range(2)]

    def append(self, new: relax.Var, state: relax.Var) -> relax.Var:
        called = relax.op.call_tir_inplace(self._append, [self.start, new, state], [2], [state.ty])
        return self.builder.emit(called)


def kernels_after(join: Callable[[tvm.IRModule], tvm.IRModule], write: Callable[[Calls], list[relax.Var]]) -> list[str]:
    """The kernels that ``main`` calls, in order, once ``join`` has changed what ``write`` writes; it gives results."""
    calls = Calls()
    with calls.builder.function("main", list(calls.given.values())):
        with calls.builder.dataflow():
            result = calls.builder.emit_output(relax.Tuple(write(calls)))
        calls.builder.emit_func_output(result)
    module = join(calls.builder.get())
    relax.analysis.well_formed(relax.transform.Normalize()(module))  # raises where it is not
    values = [binding.value for binding in module["main"].body.blocks[0].bindings]
    called = [value for value in values if isinstance(value, tvm.ir.Call) and "call_tir" in value.op.name]
    return [value.args[0].name_hint for value in called]

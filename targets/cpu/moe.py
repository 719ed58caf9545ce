"""The moec operators on a CPU: which kernels they become, with which weights and intermediate results.

======================  ==============================================================================================
``moec.Route``          route (, capacity)
``moec.Experts``        dispatch, gather, grouped_gemm with the activation, grouped_gemm back to pair order, combine
``moec.GroupedMatMul``  dispatch, gather, grouped_gemm back to pair order, separate
``moec.MoE``            those of Route, then those of Experts
======================  ==============================================================================================

One artifact serves every number of tokens: the kernels read the number of rows of each expert when they run and choose
the height of their register tiles by it, down to the matrix-vector product of a single row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, tirx

from moec.errors import UnsupportedError
from moec.ir.dialect import EXPERT_WEIGHTS, ExpertsSpec, RouteSpec, attributes_of, inputs_of, spec_of
from moec.ir.names import node_name
from moec.targets.cpu.kernels import capacity, combine, dispatch, gather, grouped_gemm, pack_experts, route
from moec.targets.cpu.kernels.activation import experts_epilogue
from moec.targets.cpu.machine import Machine
from moec.targets.cpu.moe_kernels import (
    CAPACITY,
    DISPATCH,
    GATHER,
    PRODUCTS,
    RESULTS,
    ROUTE,
    RouteProblem,
    RowsProblem,
    unusable_weights,
)
from moec.targets.cpu.nodes import record_of
from moec.targets.cpu.selection import Kernel, Selection, select
from moec.targets.tvm.heavy import HeavyConverter, LoweringContext


class MoeOps:
    """Converters of the moec domain for one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def converters(self) -> Mapping[str, HeavyConverter]:
        return {
            "moec.Route": lambda lowering, node: _NodeLowering(lowering, node, self._machine).route(),
            "moec.Experts": lambda lowering, node: _NodeLowering(lowering, node, self._machine).experts(),
            "moec.GroupedMatMul": lambda lowering, node: _NodeLowering(lowering, node, self._machine).grouped_matmul(),
            "moec.MoE": lambda lowering, node: _NodeLowering(lowering, node, self._machine).moe(),
        }


@dataclasses.dataclass(frozen=True)
class _Sorted:
    """The results of dispatch."""

    order: relax.Expr
    offsets: relax.Expr
    blocks: relax.Expr
    block_count: relax.Expr


def _activation_of(spec: ExpertsSpec) -> str:
    extras = [
        f"{name} {getattr(spec, name):g}" for name in ("alpha", "limit", "up_offset") if name in attributes_of(spec)
    ]
    return ", ".join([spec.activation, *extras])


class _NodeLowering:
    """The lowering of one node: its inputs by name, and kernel calls recorded under its name."""

    def __init__(self, lowering: LoweringContext, node: ir.Node, machine: Machine) -> None:
        self._lowering = lowering
        self._node = node
        self._machine = machine
        self._inputs = inputs_of(node)

    # Operators

    def route(self) -> tuple[relax.Expr, relax.Expr]:
        spec = spec_of(self._node, RouteSpec)
        logits = self._input("logits")
        tokens, experts = self._lowering.shape(logits)
        dtype = self._lowering.dtype(logits)
        problem = RouteProblem(spec, int(experts), dtype)
        chosen = self._select(ROUTE, problem)
        bias = self._inputs["correction_bias"]
        arguments = [self._lowering.tensor(logits)]
        if bias is not None:
            arguments.append(self._cast(self._lowering.tensor(bias), dtype))
        outputs = [relax.TensorType((tokens, spec.k), dtype), relax.TensorType((tokens, spec.k), "int32")]
        kernel = route.route(spec, int(experts), dtype, biased=bias is not None)
        attributes = {"experts": int(experts), "score": spec.score, **attributes_of(spec)}
        weights, ids = self._call(chosen, kernel, arguments, outputs, attributes)
        if spec.capacity > 0 and spec.selection == "topk":
            kernel = capacity.capacity(int(experts), spec.capacity, dtype)
            chosen = self._select(CAPACITY, problem)
            weights, ids = self._call(chosen, kernel, [weights, ids], outputs, {"capacity": spec.capacity})
        return weights, ids

    def moe(self) -> relax.Expr:
        return self._experts(*self.route())

    def experts(self) -> relax.Expr:
        weights, ids = (self._lowering.tensor(self._input(name)) for name in ("weights", "experts"))
        return self._experts(weights, self._cast(ids, "int32"))

    def grouped_matmul(self) -> relax.Expr:
        x, weights = self._input("x"), self._input("weights")
        self._require_constants()
        experts, inner, width = (int(size) for size in self._lowering.shape(weights))
        problem = self._problem(weights, experts, inner, width, gated=False)
        ids = self._cast(self._lowering.tensor(self._input("experts")), "int32")
        tokens, slots = ids.ty.shape
        ordered = self._dispatch(ids, experts)
        unused_weights = self._lowering.emit(relax.op.zeros((tokens, slots), "float32"))
        rows = self._gather(x, unused_weights, ordered, inner, weighted=False)
        packed = self._weight(weights, problem, lambda: pack_experts.pack_columns(problem, self._data("weights"), True))
        bias = self._bias("bias", problem, lambda: pack_experts.pack_bias(problem, self._optional_data("bias")))
        pairs = self._multiply(problem, None, rows, ordered, packed, bias)
        dtype = self._lowering.dtype(x)
        kernel = combine.separate(experts, width, gather.row_width(problem.padded_width), dtype)
        output = relax.TensorType((tokens, slots, width), dtype)
        chosen = self._select(RESULTS, RowsProblem(width, dtype, summed=False))
        return self._call(chosen, kernel, [ids, pairs], [output], {})[0]

    # Steps

    def _experts(self, weights: relax.Expr, ids: relax.Expr) -> relax.Expr:
        spec = spec_of(self._node, ExpertsSpec)
        x, up, down = self._input("x"), self._input("up"), self._input("down")
        self._require_constants()
        experts, inner, hidden = self._sizes(up, spec.up_transposed)
        if spec.gated and spec.gate_layout != "separate":
            hidden //= 2
        width = self._sizes(down, spec.down_transposed)[2]
        first = self._problem(up, experts, inner, hidden, gated=spec.gated)
        second = self._problem(down, experts, hidden, width, gated=False)
        ordered = self._dispatch(ids, experts)
        rows = self._gather(x, weights, ordered, inner, weighted=spec.weight_on_input)
        packed_up, up_bias = self._packed_up(first, spec)
        hidden_rows = self._multiply(first, spec, rows, ordered, packed_up, up_bias)
        packed_down, down_bias = self._packed_down(second, spec)
        pairs = self._multiply(second, None, hidden_rows, ordered, packed_down, down_bias)
        return self._combine(spec, second, x, weights, ids, pairs)

    def _dispatch(self, ids: relax.Expr, experts: int) -> _Sorted:
        tokens, slots = ids.ty.shape
        pairs = tokens * slots
        outputs = [
            relax.TensorType((pairs,), "int32"),
            relax.TensorType((experts + 1,), "int32"),
            relax.TensorType((dispatch.most_blocks(experts, pairs), 3), "int32"),
            relax.TensorType((1,), "int32"),
        ]
        attributes = {"experts": experts, "block_rows": dispatch.BLOCK_ROWS}
        chosen = self._select(DISPATCH, experts)
        return _Sorted(*self._call(chosen, dispatch.dispatch(experts), [ids], outputs, attributes))

    def _gather(self, x: ir.Value, weights: relax.Expr, ordered: _Sorted, width: int, *, weighted: bool) -> relax.Expr:
        dtype = self._lowering.dtype(x)
        kernel = gather.gather(width, dtype, weighted=weighted, weight_dtype=str(weights.ty.dtype))
        arguments = [self._lowering.tensor(x), weights, ordered.order, ordered.offsets]
        output = relax.TensorType((ordered.order.ty.shape[0], gather.row_width(width)), "float32")
        chosen = self._select(GATHER, RowsProblem(width, dtype))
        return self._call(chosen, kernel, arguments, [output], {"weighted": weighted})[0]

    def _multiply(
        self,
        problem: grouped_gemm.GroupedProblem,
        spec: ExpertsSpec | None,
        rows: relax.Expr,
        ordered: _Sorted,
        weights: relax.Expr,
        bias: relax.Expr,
    ) -> relax.Expr:
        """The first product of experts applies the activation of ``spec`` and keeps rows sorted by expert; a product
        without a spec brings its rows back to the order of the pairs."""
        chosen = self._select(PRODUCTS, problem)
        epilogue = experts_epilogue(spec) if spec else lambda total: total
        kernel = grouped_gemm.grouped_gemm(problem, epilogue, input_width=int(rows.ty.shape[1]), scattered=spec is None)
        arguments = [rows, ordered.order, ordered.blocks, ordered.block_count, weights, bias]
        output = relax.TensorType((ordered.order.ty.shape[0], gather.row_width(problem.padded_width)), "float32")
        attributes = {
            "experts": problem.experts,
            "inner": problem.inner,
            "width": problem.width,
            "weight_layout": "[expert, column tile, inner, column]",
            "weight_dtype": problem.weight_dtype,
            "column_tile": problem.columns,
            "row_tiles": f"1 to {self._machine.row_tile}, chosen at run time by the rows of each expert",
            "activation": _activation_of(spec) if spec else "none",
            "rows_out": "sorted by expert" if spec else "in the order of the pairs",
        }
        return self._call(chosen, kernel, arguments, [output], attributes)[0]

    def _combine(
        self,
        spec: ExpertsSpec,
        problem: grouped_gemm.GroupedProblem,
        x: ir.Value,
        weights: relax.Expr,
        ids: relax.Expr,
        pairs: relax.Expr,
    ) -> relax.Expr:
        dtype = self._lowering.dtype(x)
        kernel = combine.combine(
            problem.experts,
            problem.width,
            gather.row_width(problem.padded_width),
            dtype,
            weighted=not spec.weight_on_input,
            identity_experts=spec.identity_experts,
            weight_dtype=str(weights.ty.dtype),
        )
        output = relax.TensorType((ids.ty.shape[0], problem.width), dtype)
        arguments = [self._lowering.tensor(x), weights, ids, pairs]
        chosen = self._select(RESULTS, RowsProblem(problem.width, dtype))
        return self._call(chosen, kernel, arguments, [output], {"weighted": not spec.weight_on_input})[0]

    # Weights

    def _packed_up(self, problem: grouped_gemm.GroupedProblem, spec: ExpertsSpec) -> tuple[relax.Expr, relax.Expr]:
        def load() -> np.ndarray:
            return pack_experts.pack_up(problem, spec, self._data("up"), self._optional_data("gate"))

        def load_bias() -> np.ndarray:
            biases = self._optional_data("up_bias"), self._optional_data("gate_bias")
            return pack_experts.pack_up_bias(problem, spec, *biases)

        return self._weight(self._input("up"), problem, load), self._bias("up_bias", problem, load_bias)

    def _packed_down(self, problem: grouped_gemm.GroupedProblem, spec: ExpertsSpec) -> tuple[relax.Expr, relax.Expr]:
        def load() -> np.ndarray:
            return pack_experts.pack_columns(problem, self._data("down"), spec.down_transposed)

        def load_bias() -> np.ndarray:
            return pack_experts.pack_bias(problem, self._optional_data("down_bias"))

        return self._weight(self._input("down"), problem, load), self._bias("down_bias", problem, load_bias)

    def _problem(
        self, weights: ir.Value, experts: int, inner: int, width: int, *, gated: bool
    ) -> grouped_gemm.GroupedProblem:
        dtype = self._lowering.dtype(weights)
        return grouped_gemm.GroupedProblem(experts, inner, width, gated, self._machine, dtype)

    def _weight(
        self, value: ir.Value, problem: grouped_gemm.GroupedProblem, load: Callable[[], np.ndarray]
    ) -> relax.Expr:
        name = f"{self._name}.{value.name}.tiles"
        return self._lowering.add_weight(name, problem.weight_shape, problem.weight_dtype, load)

    def _bias(self, role: str, problem: grouped_gemm.GroupedProblem, load: Callable[[], np.ndarray]) -> relax.Expr:
        return self._lowering.add_weight(f"{self._name}.{role}.tiles", problem.bias_shape, "float32", load)

    # Helpers

    def _require_constants(self) -> None:
        names = EXPERT_WEIGHTS if self._node.op_type != "GroupedMatMul" else ("weights", "bias")
        values = [value for name, value in self._inputs.items() if name in names and value is not None]
        known = all(self._lowering.is_constant(value) for value in values)
        dtypes = [self._lowering.dtype(value) for value in (*values, self._input("x"))]
        reason = unusable_weights(known, dtypes)
        if reason is not None:
            raise UnsupportedError(f"no CPU kernel can compute it: {reason}")

    @property
    def _name(self) -> str:
        return node_name(self._node)

    def _input(self, name: str) -> ir.Value:
        value = self._inputs[name]
        if value is None:
            raise UnsupportedError(f"input {name!r} is absent; the operator needs it")
        return value

    def _sizes(self, value: ir.Value, transposed: bool) -> tuple[int, int, int]:
        """E, in and out of a stack of weights."""
        experts, second, third = (int(size) for size in self._lowering.shape(value))
        return (experts, second, third) if transposed else (experts, third, second)

    def _data(self, name: str) -> np.ndarray:
        data = self._lowering.constant(self._input(name))
        assert data is not None  # checked by _require_constants
        return data

    def _optional_data(self, name: str) -> np.ndarray | None:
        return None if self._inputs[name] is None else self._data(name)

    def _cast(self, tensor: relax.Expr, dtype: str) -> relax.Expr:
        return tensor if str(tensor.ty.dtype) == dtype else self._lowering.emit(relax.op.astype(tensor, dtype))

    def _select(self, kernels: Sequence[Kernel], problem: Any) -> Selection:
        return select(kernels, problem, self._machine)

    def _call(
        self,
        chosen: Selection,
        kernel: tirx.PrimFunc,
        arguments: Sequence[relax.Expr],
        outputs: Sequence[relax.TensorType],
        attributes: dict[str, Any],
    ) -> list[relax.Var]:
        record = record_of(self._node, chosen, attributes, prefix="moe_")
        return self._lowering.call_kernel(kernel, arguments, outputs, record)

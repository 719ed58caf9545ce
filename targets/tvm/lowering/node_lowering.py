"""Lowering of one moec node: access to its inputs by name, and kernel calls recorded under its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax

from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.ir.dialect import inputs_of
from moec.ir.weights.stored import StoredWeight
from moec.targets.base import KernelRecord
from moec.targets.tvm.kernels.kernel import STORAGE_TYPES, Kernel, KernelCall, Selection, select
from moec.targets.tvm.lowering.context import LoweringContext
from moec.targets.tvm.lowering.nodes import record_of


class NodeLowering:
    """A moec node together with the machine that the target selects kernels for."""

    def __init__(self, lowering: LoweringContext, node: ir.Node, machine: Any) -> None:
        self.lowering = lowering
        self.node = node
        self.machine = machine
        self.name = node_name(node)
        self.inputs = inputs_of(node)

    def input(self, name: str) -> ir.Value:
        value = self.inputs[name]
        if value is None:
            raise UnsupportedError(f"input {name!r} is absent; the operator needs it")
        return value

    def tensor(self, name: str) -> relax.Expr:
        """The input as a Relax tensor. Raises UnsupportedError if it is ``x``, of a type that kernels do not load."""
        value = self.input(name)
        dtype = self.lowering.dtype(value)
        if name == "x" and dtype not in STORAGE_TYPES:
            raise UnsupportedError(f"no kernel takes {dtype} tokens; expected {', '.join(STORAGE_TYPES)}")
        return self.lowering.tensor(value)

    def needed_weight(self, name: str) -> StoredWeight:
        return StoredWeight.of(self.input(name))

    def bias(self, name: str) -> np.ndarray | None:
        """The numbers of a bias; None where it is absent. Raises UnsupportedError for a bias computed at run time."""
        value = self.inputs[name]
        if value is None:
            return None
        data = self.lowering.constant(value)
        if data is None:
            raise UnsupportedError(f"{name} is computed at run time; expected a constant, which can be packed")
        return data

    def cast(self, tensor: relax.Expr, dtype: str) -> relax.Expr:
        return tensor if str(tensor.ty.dtype) == dtype else self.lowering.emit(relax.op.astype(tensor, dtype))

    def select(self, kernels: Sequence[Kernel], problem: Any) -> Selection:
        return select(kernels, problem, self.machine)

    def call(self, called: KernelCall, outputs: Sequence[relax.TensorType]) -> list[relax.Var]:
        return self.lowering.call_kernel(called.function, called.arguments, outputs, self._record(called))

    def call_on(self, called: KernelCall, outputs: Sequence[relax.Var]) -> list[relax.Var]:
        """Call a kernel that updates ``outputs``, results of other kernels, in place."""
        return self.lowering.call_kernel_on(called.function, called.arguments, outputs, self._record(called))

    def _record(self, called: KernelCall) -> KernelRecord:
        return record_of(self.node, called, prefix="moe_")

"""Compute the sizes of tensors in the order of their slots.

VMShapeLower makes functions that compute symbolic sizes from some slots of the shape heap and store them in others. It
orders the stores by addresses in the compiler's memory, which differ from process to process. No store of a function
reads the result of another one, so every order computes the same, and a fixed order makes the code reproducible.

::

    H[5] = H[0] * 8
    H[3] = H[0] * H[1]
        ->
    H[3] = H[0] * H[1]
    H[5] = H[0] * 8
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx


@tvm.ir.transform.module_pass(opt_level=0, name="OrderSizes")
class OrderSizes:
    """Runs after VMShapeLower."""

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        for symbol, function in module.functions.items():
            stores = _independent_stores(function) if isinstance(function, tirx.PrimFunc) else None
            if stores is not None:
                ordered = sorted(stores, key=lambda store: store.indices[0].value)
                module[symbol] = function.with_body(tirx.SeqStmt(ordered))
        return module


def _independent_stores(function: tirx.PrimFunc) -> list[tirx.BufferStore] | None:
    """The stores of a function that only stores to different constant places of one buffer, and reads none of them.

    None for any other function."""
    if not isinstance(function.body, tirx.SeqStmt):
        return None
    stores = list(function.body.seq)
    if not all(isinstance(store, tirx.BufferStore) and store.buffer.same_as(stores[0].buffer) for store in stores):
        return None
    written, read = [_place(store) for store in stores], [_place(load) for store in stores for load in _loads(store)]
    if None in written or None in read or len(set(written)) < len(written) or not set(written).isdisjoint(read):
        return None
    return stores


def _place(access: tirx.BufferStore | tvm.ir.TensorLoad) -> tuple[int, ...] | None:
    """The place in the buffer; None where it is computed."""
    constant = all(isinstance(index, tirx.IntImm) for index in access.indices)
    return tuple(index.value for index in access.indices) if constant else None


def _loads(store: tirx.BufferStore) -> list[tvm.ir.TensorLoad]:
    loads: list[tvm.ir.TensorLoad] = []
    tvm_ffi.structural_walk(store.value, [(tvm.ir.TensorLoad, loads.append)])
    return loads

"""Kernels from tensor expressions (TE)."""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import s_tir, te, tirx

OPAQUE = 8
"""Relax's operator pattern of a kernel that is never fused."""


def prim_func(inputs: list[te.Tensor], outputs: list[te.Tensor]) -> tuple[tirx.PrimFunc, list[tirx.Var]]:
    """The kernel of a TE computation, and the sizes it needs that are not themselves a dim of a tensor."""
    kernel = te.create_prim_func([*inputs, *outputs], "int64").without_attr("global_symbol")
    bound = {size for tensor in (*inputs, *outputs) for size in tensor.shape if isinstance(size, tirx.Var)}
    bound |= _loop_variables(kernel.body)
    used = set(tirx.analysis.undefined_vars(kernel.body, []))
    for tensor in (*inputs, *outputs):
        for size in tensor.shape:
            used.update(tirx.analysis.undefined_vars(size))
    used = {variable for variable in used if tvm.ir.is_prim_var(variable)}
    extra = sorted(used - bound, key=lambda variable: variable.name)
    if extra:
        # FuseTIR cannot merge kernels that take sizes as arguments of their own.
        kernel = te.create_prim_func([*inputs, *extra, *outputs], "int64").without_attr("global_symbol")
        kernel = kernel.with_attr("op_pattern", OPAQUE)
    # Kernels with variables of their own: FuseTIR maps them to sizes of the caller, and must not map one to itself.
    return s_tir.renew_defs(kernel), extra


def _loop_variables(body: tirx.Stmt) -> set[tirx.Var]:
    found: set[tirx.Var] = set()

    tvm_ffi.structural_walk(
        body,
        [
            (tirx.For, lambda loop: found.add(loop.loop_var)),
            (s_tir.SBlock, lambda block: found.update(variable.var for variable in block.iter_vars)),
        ],
    )
    return found

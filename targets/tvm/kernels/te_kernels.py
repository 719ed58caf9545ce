"""Kernels from tensor expressions (TE)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import tvm
import tvm_ffi
from tvm import s_tir, te, tirx
from tvm.ir import StringImm

OPAQUE = 8
"""Relax's operator pattern of a kernel that is never fused."""


@dataclasses.dataclass(frozen=True)
class Requirement:
    """A condition on sizes that a kernel checks when it runs, before it computes any element.

    Where it does not hold, the kernel raises a ValueError with ``message``."""

    condition: tirx.Expr
    message: str


def prim_func(
    inputs: list[te.Tensor],
    outputs: list[te.Tensor],
    requirements: Sequence[Requirement] = (),
    rewritten: Callable[[tirx.PrimFunc], tirx.PrimFunc] = lambda kernel: kernel,
) -> tuple[tirx.PrimFunc, list[tirx.Var]]:
    """The kernel of a TE computation, ``rewritten`` by a function that keeps its parameters, and the sizes it needs
    that are not a dim of any of its tensors."""
    kernel = rewritten(te.create_prim_func([*inputs, *outputs], "int64").without_attr("global_symbol"))
    bound = {size for tensor in (*inputs, *outputs) for size in tensor.shape if isinstance(size, tirx.Var)}
    bound |= _loop_variables(kernel.body)
    used = set(tirx.analysis.undefined_vars(kernel.body, []))
    for tensor in (*inputs, *outputs):
        for size in tensor.shape:
            used.update(tirx.analysis.undefined_vars(size))
    for requirement in requirements:
        used.update(tirx.analysis.undefined_vars(requirement.condition))
    used = {variable for variable in used if tvm.ir.is_prim_var(variable)}
    extra = sorted(used - bound, key=lambda variable: variable.name)
    if extra:
        # FuseTIR cannot merge kernels that take sizes as arguments of their own.
        before, after = kernel.params[: len(inputs)], kernel.params[len(inputs) :]
        kernel = tirx.PrimFunc([*before, *extra, *after], kernel.body, kernel.ret_type, kernel.attrs)
    if extra or requirements:
        kernel = kernel.with_attr("op_pattern", OPAQUE)
    kernel = checked(kernel, requirements)
    # Kernels with variables of their own: FuseTIR maps them to sizes of the caller, and must not map one to itself.
    return s_tir.renew_defs(kernel), extra


def checked(kernel: tirx.PrimFunc, requirements: Sequence[Requirement]) -> tirx.PrimFunc:
    """The kernel, preceded by checks of the requirements."""
    return checking(kernel, [_assertion(requirement) for requirement in requirements])


def _assertion(requirement: Requirement) -> tirx.AssertStmt:
    kind, message = StringImm("ValueError"), StringImm(requirement.message)
    return tirx.AssertStmt(requirement.condition, kind, [message])  # type: ignore[arg-type]  # TVM's names are swapped


def checking(function: tirx.PrimFunc, assertions: Sequence[tirx.Stmt]) -> tirx.PrimFunc:
    """The function, preceded by assertions about its arguments; the host checks these where a device runs the rest."""
    return function.with_body(tirx.SeqStmt([*assertions, function.body])) if assertions else function


def without_checks(function: tirx.PrimFunc) -> tuple[tirx.PrimFunc, list[tirx.Stmt]]:
    """The function in the form that schedules take, without assertions, and the assertions that preceded it."""
    body = function.body
    if not isinstance(body, tirx.SeqStmt) or not isinstance(body[0], tirx.AssertStmt):
        return function, []
    *assertions, rest = body
    return function.with_body(rest), assertions


def _loop_variables(body: tirx.Stmt) -> set[tirx.Var]:
    variables: set[tirx.Var] = set()

    tvm_ffi.structural_walk(
        body,
        [
            (tirx.For, lambda loop: variables.add(loop.loop_var)),
            (s_tir.SBlock, lambda block: variables.update(variable.var for variable in block.iter_vars)),
        ],
    )
    return variables

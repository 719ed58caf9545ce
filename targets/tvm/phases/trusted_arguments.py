"""Check the sizes of a kernel's arguments, and not their types.

TVM's calling convention checks nine more facts about each tensor: rank, type, device, strides and so on. The virtual
machine guarantees these: it checks the parameters of ``main`` when it is called, and allocates every other tensor
itself. Their checks are most of the code of a small kernel, and generating them takes a third of its time. Sizes that
must agree are known only when the kernel runs, so their checks stay::

    assert x.ndim == 2, ("Mismatched ", "x", ".ndim on argument #", "0", ...)
    assert x.shape[0] == z.shape[0], ("Mismatched ", "z.shape[0]", " on argument #", "1", ...)
        ->
    assert x.shape[0] == z.shape[0], "Mismatched z.shape[0] on argument #1..."
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import StringImm

_SIZE = ".shape["
"""Part of the name of a size in messages of TVM's calling convention."""
_NOTHING = tirx.Evaluate(0)


@tirx.transform.prim_func_pass(opt_level=0, name="TrustArguments")
class TrustArguments:
    """Runs behind MakePackedAPI."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        rules = [(tirx.AssertStmt, _trusted), (tirx.IfThenElse, _without_empty_branch)]
        return function.with_body(tvm_ffi.structural_map(function.body, rules))


def _trusted(check: tirx.AssertStmt) -> tirx.Stmt:
    """The check itself where a kernel asks for it, with its message in one part if it is about a size, else nothing."""
    parts = [part.value for part in check.message_parts]
    if len(parts) == 1:  # a kernel's own requirement
        return check
    if not parts[1].count(_SIZE):
        return _NOTHING
    return tirx.AssertStmt(check.condition, check.error_kind, [StringImm("".join(parts))])


def _without_empty_branch(branch: tirx.IfThenElse) -> tirx.Stmt:
    """Nothing in place of a branch that checked strides only."""
    return _NOTHING if branch.else_case is None and branch.then_case.same_as(_NOTHING) else branch

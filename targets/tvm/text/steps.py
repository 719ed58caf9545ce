"""Names of a kernel's steps: its author names a step, and each text of the kernel has the name as a comment there.

A step is a statement that calls a function which does not exist. Printed TIR and CUDA C have a comment in its place;
code for processors is generated without it.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.script import tirx as T

STEP = "moec_step"


def begin_step(name: str) -> None:
    """Emit, in a kernel, the name of the step that begins here."""
    T.evaluate(T.call_extern("void", STEP, name))


def name_of_step(statement: Any) -> str | None:
    """The name, if a statement is the beginning of a step."""
    call = statement.value if isinstance(statement, tirx.Evaluate) else None
    if not isinstance(call, tvm.ir.Call) or len(call.args) != 2 or not isinstance(call.args[0], tvm.ir.StringImm):
        return None
    return call.args[1].value if call.args[0].value == STEP else None


@tirx.transform.prim_func_pass(opt_level=0, name="DropSteps")
class DropSteps:
    """Remove the names of steps."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        named: list[tirx.Evaluate] = []

        def drop(statement: tirx.Evaluate) -> tirx.Evaluate:
            if name_of_step(statement) is None:
                return statement
            named.append(statement)
            return tirx.Evaluate(0)

        body = tvm_ffi.structural_map(function.body, [(tirx.Evaluate, drop)])
        return function.with_body(body) if named else function

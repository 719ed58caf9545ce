"""The memory that a program takes for intermediate values and results, as planned: blocks by their number of bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from moec.targets.tvm.phases.bound_storage import ALLOCATE
from moec.targets.tvm.sizes.c_expressions import in_c


def planned_blocks(main: tvm.IRModule, instead: Mapping[str, Any]) -> dict[str, int]:
    """Numbers of blocks that ``main`` with explicit memory takes, by their bytes as an expression of sizes in C.
    ``instead``: expressions in place of sizes that no input tells, by their names. A size that depends on a condition,
    as that of a broadcast axis does, counts as the larger of both."""
    blocks: Counter[str] = Counter()

    def count(call: tvm.ir.Call) -> None:
        if call.op == tvm.ir.Op.get(ALLOCATE):
            (size,) = call.args[0].values
            blocks[in_c(_replaced(size, instead))] += 1

    tvm_ffi.structural_walk(main["main"], [(tvm.ir.Call, count)])
    return dict(blocks)


def _replaced(size: Any, instead: Mapping[str, Any]) -> Any:
    if not isinstance(size, tirx.Expr):
        return size
    changes = [
        (tvm.ir.Var, lambda variable: instead.get(variable.name, variable)),
        (tirx.Select, lambda choice: tirx.Max(choice.true_value, choice.false_value)),
    ]
    return tvm_ffi.structural_map(size, changes)

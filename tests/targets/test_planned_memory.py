"""Blocks of memory that a program takes, by their bytes as expressions of sizes."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, tirx

from moec.common.kernel_sizes import evaluate
from moec.targets.tvm.phases.planned_memory import planned_blocks

M, N = tirx.Var("m", "int64"), tirx.Var("n", "int64")


def blocks(*sizes: tirx.Expr, instead: dict[str, Any] | None = None) -> dict[str, int]:
    """Plan a program that allocates these bytes."""
    bindings = []
    for number, size in enumerate(sizes):
        storage = relax.op.memory.alloc_storage(relax.ShapeExpr([size]), 0, "global", "uint8")
        bindings.append(relax.VarBinding(relax.Var(f"storage{number}", relax.AnyType()), storage))
    body = relax.SeqExpr([relax.BindingBlock(bindings)], bindings[-1].var)
    main = relax.Function([relax.Var("sizes", relax.ShapeType([M, N]))], body, relax.AnyType(), is_pure=False)
    return planned_blocks(tvm.IRModule({"main": main.with_attr("global_symbol", "main")}), instead or {})


def test_blocks_of_equal_bytes_are_counted_together():
    assert blocks(M * 4, M * N, M * 4) == {"m * 4": 2, "m * n": 1}


def test_a_size_that_no_input_tells_is_replaced():
    assert blocks(M * N, instead={"n": M + 1}) == {"m * (m + 1)": 1}


def test_a_size_by_a_condition_counts_as_the_larger_of_both():
    size = tirx.Select(M.equal(1), N, M) * 4
    (text,) = blocks(size)
    assert [evaluate(text, {"m": m, "n": 5}, "here") for m in (1, 3, 9)] == [20, 20, 36]
    (told,) = blocks(size, instead={"n": M + 7})
    assert evaluate(told, {"m": 3}, "here") == 40

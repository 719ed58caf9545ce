"""Memory in powers of two, where a size is known only at run time."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import relax, te, tirx

from moec.targets.tvm.phases.bound_storage import TOO_MUCH, BoundStorage
from moec.targets.tvm.phases.round_storage import RoundStorage


def rounded(size: tirx.Expr) -> tirx.Expr:
    """The size in bytes that a program allocates in place of ``size``, after both passes."""
    storage = relax.op.memory.alloc_storage(relax.ShapeExpr([size]), 0, "global", "uint8")
    variable = relax.Var("storage", relax.AnyType())
    body = relax.SeqExpr([relax.BindingBlock([relax.VarBinding(variable, storage)])], variable)
    sizes = [relax.Var("sizes", relax.ShapeType([size]))]
    main = relax.Function(sizes, body, relax.AnyType(), is_pure=False).with_attr("global_symbol", "main")
    after = tvm.ir.transform.Sequential([BoundStorage(), RoundStorage()])(tvm.IRModule({"main": main}))["main"]
    return after.body.blocks[0].bindings[0].value.args[0].values[0]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, 4096),
        (1, 4096),
        (4096, 4096),
        (4097, 8192),
        ((1 << 30) - 5, 1 << 30),
        (1 << 30, 1 << 30),
        (1 << 60, TOO_MUCH),
    ],
)
def test_sizes_known_at_run_time_become_powers_of_two(size, expected, compute):
    assert compute(size) == expected


@pytest.fixture(scope="module")
def compute():
    """A function of the number of bytes to those that are allocated, compiled as the host's part is."""
    sizes = te.placeholder([1], "int64", name="sizes")
    n = tirx.Var("n", "int64")

    def element(_index: tirx.Var) -> tirx.Expr:
        return tvm_ffi.structural_map(rounded(n), [(tvm.ir.Var, lambda variable: sizes[0])])

    kernel = te.create_prim_func([sizes, te.compute([1], element, name="rounded")], "int64")
    code = tvm.compile(tvm.IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")}), target="llvm")["kernel"]

    def computed(size: int) -> int:
        result = tvm.runtime.tensor(np.zeros(1, np.int64))
        code(tvm.runtime.tensor(np.array([size])), result)
        return int(result.numpy()[0])

    return computed


def test_sizes_known_at_compile_time_stay():
    assert int(rounded(tirx.IntImm("int64", 5000))) == 5000

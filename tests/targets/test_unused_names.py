"""Names that nothing uses are dropped, and only those."""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx
from tvm.script import tirx as T

from moec.targets.tvm.text.unused_names import DropUnusedNames


def names_after(kernel: tirx.PrimFunc) -> list[str]:
    bound: list[str] = []
    body = DropUnusedNames()(tvm.IRModule({"kernel": kernel}))["kernel"].body
    tvm_ffi.structural_walk(body, [(tirx.Bind, lambda bind: bound.append(bind.var.name))])
    return bound


def test_a_name_goes_with_those_that_only_it_uses():
    @T.prim_func
    def kernel(x: T.Buffer((8,), "int32"), n: T.int32):
        used: T.let = n + 1
        base: T.let = n * 2
        unused: T.let = base + x[used]  # noqa: F841
        x[0] = used

    assert names_after(kernel) == ["used"]


def test_a_value_with_an_effect_stays_unless_it_is_an_exchange_in_a_warp():
    @T.prim_func
    def kernel(x: T.Buffer((8,), "int32"), n: T.int32):
        status: T.let = T.call_extern("int32", "send", x[0])  # noqa: F841
        warp: T.let = T.cuda.__shfl_sync(T.uint32(0xFFFFFFFF), n, 0, 32)  # noqa: F841
        x[0] = 1

    assert names_after(kernel) == ["status"]

"""The element that a thread of a generic kernel is for has a name where its number stands more than once."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.lowering.schedule import in_order
from moec.targets.tvm.text import printed
from moec.targets.tvm.text.elements import NameElements


def code(kernel: tirx.PrimFunc) -> list[str]:
    named = NameElements()(tvm.IRModule({"kernel": kernel}))["kernel"]
    return [line.strip() for line in printed(named).splitlines() if " = T.launch_thread" not in line][3:]


def test_a_number_that_stands_twice_has_a_name():
    @T.prim_func(s_tir=True)
    def kernel(x: T.Buffer((1024,), "float32"), y: T.Buffer((1024,), "float32")):
        b = T.launch_thread("blockIdx.x", 4)
        t = T.launch_thread("threadIdx.x", 256)
        y[b * 256 + t] = x[b * 256 + t]

    assert code(kernel) == ["element: T.let = block * 256 + thread", "y[element] = x[element]"]


def test_a_number_that_stands_once_has_none():
    @T.prim_func(s_tir=True)
    def kernel(x: T.Buffer((1024,), "float32"), y: T.Buffer((1024,), "float32")):
        b = T.launch_thread("blockIdx.x", 4)
        t = T.launch_thread("threadIdx.x", 256)
        y[b * 256 + t] = x[t * 4 + b]

    assert code(kernel) == ["y[block * 256 + thread] = x[thread * 4 + block]"]


def test_a_kernel_without_threads_stays():
    @T.prim_func(s_tir=True)
    def kernel(x: T.Buffer((1024,), "float32")):
        for b, t in T.grid(4, 256):
            x[b * 256 + t] = x[b * 256 + t] + T.float32(1)

    assert "element" not in printed(kernel)
    assert "element" not in printed(in_order(kernel.with_attr("tirx.is_scheduled", True)))

"""Names of a kernel's steps: comments in its texts, and nothing in its code."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels.softmax import SOFTMAX
from moec.targets.cuda.text.step_comments import with_step_comments
from moec.targets.tvm.phases.pipeline import KERNEL_PIPELINE
from moec.targets.tvm.text import printed
from moec.targets.tvm.text.steps import DropSteps, begin_step


def kernel_with_steps(*names: str) -> tirx.PrimFunc:
    def begin():
        for name in names:
            begin_step(name)

    @T.prim_func(s_tir=True)
    def kernel(x_handle: T.handle):
        T.func_attr({"global_symbol": "kernel"})
        x = T.match_buffer(x_handle, (8,), "float32")
        for i in range(8):
            begin()
            x[i] = x[i] + T.float32(1)

    return kernel


def machine_code(kernel: tirx.PrimFunc) -> str:
    target = tvm.target.Target(Machine.for_name("sse4").llvm)
    return tvm.tirx.build(tvm.IRModule({"kernel": kernel}), target, KERNEL_PIPELINE).inspect_source("asm")


def test_printed_kernels_have_them_as_comments():
    lines = [line.strip() for line in printed(kernel_with_steps("first", "second")).splitlines()]
    assert lines[-4:] == ["for i in range(8):", "# first", "# second", "x[i] = x[i] + 1.0"]
    assert "moec_step" not in printed(kernel_with_steps("first"))


def test_machine_code_is_the_same():
    assert machine_code(kernel_with_steps("first")) == machine_code(kernel_with_steps())


def test_other_calls_stay():
    @T.prim_func
    def kernel(x: T.Buffer((8,), "float32")):
        T.evaluate(T.call_extern("void", "moec_other", "first"))
        begin_step("first")
        x[0] = T.float32(1)

    text = DropSteps()(tvm.IRModule({"kernel": kernel}))["kernel"].script()
    assert "moec_other" in text and "moec_step" not in text


def test_cuda_has_them_as_comments():
    source = '  moec_step("the largest");\n  x = moec_step("no statement of its own") + 1;\n'
    assert with_step_comments(source) == source.replace('moec_step("the largest");', "// the largest")


def test_a_kernel_is_described_by_its_file():
    assert SOFTMAX.description.startswith("Softmax over the last axis")
    assert "\n" not in SOFTMAX.description and "``" not in SOFTMAX.description

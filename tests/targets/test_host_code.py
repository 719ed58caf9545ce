"""LLVM's level of optimisation for a kernel: lower for those that only map elements."""

from __future__ import annotations

import resource

import pytest
import tvm
from tvm import te, tirx

from moec.targets.cpu.hardware.machine import Machine
from moec.targets.tvm.kernels.te_kernels import prim_func
from moec.targets.tvm.phases.host_code import ASSEMBLY, code_of, compile_kernels, is_mapping, object_of
from moec.targets.tvm.phases.pipeline import KERNEL_PIPELINE
from moec.targets.tvm.phases.schedule import GENERIC, scheduled


@pytest.fixture(scope="module")
def mapping() -> tirx.PrimFunc:
    """A kernel over rows of 24 numbers."""
    x = te.placeholder((tirx.Var("n", "int64"), 24), name="x")
    function, _ = prim_func([x], [te.compute(x.shape, lambda i, j: te.sigmoid(x[i, j]) * x[i, j], name="y")])
    return scheduled(function)


def test_generic_kernels_without_reductions_map_elements(mapping):
    assert is_mapping(mapping)
    assert is_mapping(mapping.without_attr("tirx.is_scheduled")), "a function of sizes has no schedule"
    assert not is_mapping(mapping.without_attr(GENERIC)), "it came finished from a target"


def test_a_reduction_maps_no_elements():
    x, axis = te.placeholder((tirx.Var("n", "int64"), 24), name="x"), te.reduce_axis((0, 24))
    function, _ = prim_func([x], [te.compute(x.shape[:1], lambda i: te.max(x[i, axis], axis=axis), name="y")])
    assert not is_mapping(scheduled(function))


def test_loops_that_map_elements_are_not_unrolled_completely(mapping, monkeypatch):
    monkeypatch.setenv("MOEC_KERNEL_CACHE", "off")
    kernels = {"mapping": mapping, "finished": mapping.without_attr(GENERIC)}
    module = tvm.IRModule({name: one.with_attr("global_symbol", name) for name, one in kernels.items()})
    compiled = compile_kernels(module, tvm.target.Target(Machine.for_name("avx512").llvm), KERNEL_PIPELINE)
    divisions = {name: files[ASSEMBLY].count(b"vdivps") for name, files in compiled.items()}
    assert 0 < divisions["mapping"] < divisions["finished"]


def test_no_file_that_cannot_be_written_ends_the_process():
    """LLVM would end it; sizes of files are limited, as by ulimit -f."""
    empty = code_of(tvm.IRModule({}), tvm.target.Target(Machine.for_name("avx2").llvm))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            object_of(empty)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert object_of(empty).startswith(b"\x7fELF")


def test_rows_are_written_as_vectors_and_not_scattered(monkeypatch):
    """A whole row of 24 numbers is unrolled, and the loop over rows would be vectorised instead."""
    monkeypatch.setenv("MOEC_KERNEL_CACHE", "off")
    x = te.placeholder((tirx.Var("n", "int64"), 24), name="x")
    function, _ = prim_func([x], [te.compute(x.shape, lambda i, j: x[i, j] * tirx.const(2.0), name="y")])
    module = tvm.IRModule({"doubled": scheduled(function).with_attr("global_symbol", "doubled")})
    target = Machine.for_name("avx512").llvm
    scattering = {**target, "mattr": [one for one in target["mattr"] if one != "+prefer-no-scatter"]}
    scatters = [
        compile_kernels(module, tvm.target.Target(one), KERNEL_PIPELINE)["doubled"][ASSEMBLY].count(b"scatter")
        for one in (target, scattering)
    ]
    assert scatters[0] == 0 < scatters[1]
    assert "+prefer-no-scatter" not in Machine.for_name("avx2").llvm["mattr"]

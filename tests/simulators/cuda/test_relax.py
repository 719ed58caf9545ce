"""Generic kernels, scheduled by TVM's own rules for GPUs, run in the Relax virtual machine with emulated kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes  # gives numpy the type bfloat16  # noqa: F401
import numpy as np
import tvm
from tvm import relax
from tvm.s_tir import dlight

from moec.runtime.library import load_objects
from moec.simulators.cuda.device import emulated_device
from moec.targets.tvm.phases.host_code import object_of
from moec.targets.tvm.program import instructions_of

from ...products import thinned

TARGET = {"kind": "cuda", "arch": "sm_80"}
TOLERANCES = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 2e-1}
LOCK_STEP = {(name, "bfloat16") for name in ("softmax", "sum", "argmax")}
"""Kernels with wrong results: TVM reduces bfloat16 through shared memory without barriers between the lanes of a warp,
which independent thread scheduling of CUDA forbids. The emulator runs lanes one after the other."""
ROWS, DEPTH, COLUMNS = 5, 64, 96


def _softmax(x: np.ndarray) -> np.ndarray:
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


OPERATORS: dict[str, tuple[Callable[..., Any], Callable[..., np.ndarray]]] = {
    "exp": (lambda x, w: relax.op.exp(x), lambda x, w: np.exp(x)),
    "softmax": (lambda x, w: relax.op.nn.softmax(x), lambda x, w: _softmax(x)),
    "sum": (lambda x, w: relax.op.sum(x, axis=1), lambda x, w: x.sum(1)),
    "matmul": (lambda x, w: relax.op.matmul(x, w), lambda x, w: x @ w),
    "argmax": (lambda x, w: relax.op.argmax(x, axis=1), lambda x, w: x.argmax(1)),
}


def _program(operator: Callable[..., Any], dtype: str) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    rows = tvm.tirx.Var("rows", "int64")
    x = relax.Var("x", relax.TensorType([rows, DEPTH], dtype))
    w = relax.Var("w", relax.TensorType([DEPTH, COLUMNS], dtype))
    with builder.function("main", [x, w]):
        with builder.dataflow():
            result = builder.emit_output(operator(x, w))
        builder.emit_func_output(result)
    return builder.get()


def _run(module: tvm.IRModule, folder: Any, *arrays: np.ndarray) -> np.ndarray:
    target = tvm.target.Target(TARGET, host={"kind": "llvm"})
    rules = (dlight.gpu.Matmul(), dlight.gpu.GEMV(), dlight.gpu.Reduction(), dlight.gpu.GeneralReduction())
    with target:
        passes = [relax.transform.LegalizeOps(), relax.transform.AnnotateTIROpPattern(), relax.transform.FuseOps()]
        module = tvm.ir.transform.Sequential([*passes, relax.transform.FuseTIR()])(module)
        executable = relax.build(dlight.ApplyDefaultSchedule(*rules, dlight.gpu.Fallback())(module), target=target)
    (library,) = executable.mod.imports
    (folder / "library.o").write_bytes(object_of(library))
    (folder / "instructions.o").write_bytes(instructions_of(executable))
    device = emulated_device()
    with device.loading():
        machine = load_objects(sorted(folder.iterdir()), "test").get_function("vm_load_executable")()
    machine.get_function("vm_initialization")(device.number, 0, 2, 1, 0, 2)
    return device.fetch(machine.get_function("main")(*map(device.place, arrays)))


CASES = [(name, dtype) for name in OPERATORS for dtype in TOLERANCES if (name, dtype) not in LOCK_STEP]


@thinned(("name", "dtype"), CASES, 6)
def test_generic_kernels(tmp_path, monkeypatch, name, dtype):
    monkeypatch.setattr(tvm.support.nvcc, "compile_cuda", lambda *_, **__: b"")
    operator, expected = OPERATORS[name]
    random = np.random.default_rng(0)
    x, w = (random.standard_normal(shape).astype(np.dtype(dtype)) for shape in ((ROWS, DEPTH), (DEPTH, COLUMNS)))
    result = _run(_program(operator, dtype), tmp_path, x, w)
    wide = [array.astype(np.float32) for array in (x, w)]
    tolerance = TOLERANCES[dtype]
    np.testing.assert_allclose(result.astype(np.float32), expected(*wide), rtol=tolerance, atol=tolerance)

"""Kernels that begin before the one before them has ended: programmatic dependent launches (compute capability 9.0).

A GPU needs about a microsecond from the end of a kernel to the begin of the next one. A kernel with the attribute
:data:`BEGINS_EARLY` is launched so that its blocks of threads begin as soon as all of the kernel before have begun and
there is room; then they wait, and that time has passed meanwhile (CUDA Programming Guide, "Programmatic Dependent
Launch and Synchronization"; PTX ISA, ``griddepcontrol``)::

    # "moec.begins_early": True
    y[i] = x[i] + 1
        ->
    griddepcontrol.wait                # all that kernels before have written can be read now, and overwritten
    griddepcontrol.launch_dependents   # the next one may begin, and will wait here, too
    y[i] = x[i] + 1

1. Every thread waits before it does anything. So a kernel has ended only when those before it have, and what comes next
   need not look further back than one kernel.
2. Tensors may overlap for all that nvcc knows (no ``__restrict__``): else it may read what is only read in a kernel by
   ``ld.global.nc``, which no barrier keeps in its place, and so before the wait.
3. On older GPUs, and in any other program that launches the kernel without the attribute, nothing changes.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx
from tvm.script import tirx as T

from moec.runtime.device_module import BEGINS_EARLY_TAG
from moec.targets.cuda.kernels.launch import BEGINS_EARLY

_TAGS = "tirx.kernel_launch_params"
_EXTENT = "thread_extent"


def has_early_launches(architecture: str) -> bool:
    """Whether GPUs of ``architecture`` (``sm_90a``) let a kernel begin before the one before has ended."""
    return int(architecture.removeprefix("sm_").rstrip("a")) >= 90


@tirx.transform.prim_func_pass(opt_level=0, name="AskForEarlyLaunches")
class AskForEarlyLaunches:
    """Before SplitHostDevice, which hands tags on to the launch."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        return function.with_attr(_TAGS, [BEGINS_EARLY_TAG]) if function.attrs.get(BEGINS_EARLY) else function


@tirx.transform.prim_func_pass(opt_level=0, name="WaitForKernelsBefore")
class WaitForKernelsBefore:
    """Behind SplitHostDevice, on the functions of the device that are launched early."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        if not function.attrs or BEGINS_EARLY_TAG not in function.attrs.get(_TAGS, ()):
            return function
        return function.with_body(_waiting(function.body)).with_attr("tirx.noalias", False)


def _waiting(body: tirx.Stmt) -> tirx.Stmt:
    """Inside of all that says how many threads there are."""
    begin = [tirx.Evaluate(T.ptx.griddepcontrol.wait()), tirx.Evaluate(T.ptx.griddepcontrol.launch_dependents())]

    def with_wait(statement: tirx.AttrStmt) -> tirx.AttrStmt:
        if statement.attr_key != _EXTENT or _has_extents(statement.body):
            return statement
        inside = tirx.SeqStmt([*begin, statement.body])
        return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, inside)

    return tvm_ffi.structural_map(body, [(tirx.AttrStmt, with_wait)])


def _has_extents(body: tirx.Stmt) -> bool:
    found: list[str] = []
    tvm_ffi.structural_walk(body, [(tirx.AttrStmt, lambda statement: found.append(statement.attr_key))])
    return _EXTENT in found

"""Programmatic dependent launches: kernels that begin before the preceding kernel has ended (compute capability 9.0).

A GPU needs about a microsecond from the end of a kernel to the start of the next one. A kernel with the attribute
:data:`BEGINS_EARLY` hides that time: its blocks of threads start as soon as all blocks of the preceding kernel have
started and there is room, and then wait for that kernel to end (CUDA Programming Guide, "Programmatic Dependent Launch
and Synchronization"; PTX ISA, ``griddepcontrol``)::

    # "moec.begins_early": True
    y[i] = x[i] + 1
        ->
    griddepcontrol.wait                # from here on, results of earlier kernels can be read and overwritten
    griddepcontrol.launch_dependents   # the next kernel may start; it waits at its own griddepcontrol.wait
    y[i] = x[i] + 1

1. Every thread waits before it does anything else. A kernel therefore ends only after all kernels before it, and each
   kernel needs to wait only for its direct predecessor.
2. nvcc must assume that tensors overlap (no ``__restrict__``). Otherwise it may load tensors that the kernel only reads
   by ``ld.global.nc``, which no barrier keeps in place, and move these loads before the wait.
3. Nothing changes on older GPUs, or in a program that launches the kernel without the attribute.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx
from tvm.script import tirx as T

from moec.runtime.device_module import BEGINS_EARLY_TAG
from moec.targets.gpu.kernels.launch import BEGINS_EARLY

_TAGS = "tirx.kernel_launch_params"
_EXTENT = "thread_extent"


def has_early_launches(architecture: str) -> bool:
    """Whether GPUs of ``architecture`` (``sm_90a``) support programmatic dependent launches."""
    return int(architecture.removeprefix("sm_").rstrip("a")) >= 90


@tirx.transform.prim_func_pass(opt_level=0, name="AskForEarlyLaunches")
class AskForEarlyLaunches:
    """Tag kernels that have the attribute, so that they are launched early. Runs before SplitHostDevice, which passes
    tags on to the launch."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        return function.with_attr(_TAGS, [BEGINS_EARLY_TAG]) if function.attrs.get(BEGINS_EARLY) else function


@tirx.transform.prim_func_pass(opt_level=0, name="WaitForKernelsBefore")
class WaitForKernelsBefore:
    """Insert the wait into functions of the device that are launched early. Runs after SplitHostDevice."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        if not function.attrs or BEGINS_EARLY_TAG not in function.attrs.get(_TAGS, ()):
            return function
        return function.with_body(_waiting(function.body)).with_attr("tirx.noalias", False)


def _waiting(body: tirx.Stmt) -> tirx.Stmt:
    """The body with the wait inserted inside all statements that bind threads."""
    begin = [tirx.Evaluate(T.ptx.griddepcontrol.wait()), tirx.Evaluate(T.ptx.griddepcontrol.launch_dependents())]

    def with_wait(statement: tirx.AttrStmt) -> tirx.AttrStmt:
        if statement.attr_key != _EXTENT or _has_extents(statement.body):
            return statement
        inside = tirx.SeqStmt([*begin, statement.body])
        return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, inside)

    return tvm_ffi.structural_map(body, [(tirx.AttrStmt, with_wait)])


def _has_extents(body: tirx.Stmt) -> bool:
    keys: list[str] = []
    tvm_ffi.structural_walk(body, [(tirx.AttrStmt, lambda statement: keys.append(statement.attr_key))])
    return _EXTENT in keys

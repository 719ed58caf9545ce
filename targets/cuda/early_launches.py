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

1. Every thread waits before it does anything else, except statements with the attribute :data:`BEFORE_WAIT`, which only
   fetch into the cache what will be read. A kernel therefore ends only after all kernels before it, and each
   kernel needs to wait only for its direct predecessor.
2. nvcc must assume that tensors overlap (no ``__restrict__``). Otherwise it may load tensors that the kernel only reads
   by ``ld.global.nc``, which no barrier keeps in place, and move these loads before the wait.
3. Nothing changes on older GPUs, or in a program that launches the kernel without the attribute. Statements with
   :data:`BEFORE_WAIT` are left out there.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
import tvm_ffi
from tvm import tirx
from tvm.script import tirx as T

from moec.runtime.device_module import BEGINS_EARLY_TAG
from moec.targets.gpu.kernels.launch import BEFORE_WAIT, BEGINS_EARLY

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
        if not _begins_early(function):
            return function
        return function.with_body(_waiting(function.body)).with_attr("tirx.noalias", False)


@tirx.transform.prim_func_pass(opt_level=0, name="LeaveOutBeforeWait")
class LeaveOutBeforeWait:
    """Leave out what stands before the wait in functions of the device that are not launched early."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        if _begins_early(function) or BEFORE_WAIT not in _keys(function.body):
            return function
        return function.with_body(_with(function.body, BEFORE_WAIT, lambda _: tirx.Evaluate(0)))


def _begins_early(function: tirx.PrimFunc) -> bool:
    return bool(function.attrs) and BEGINS_EARLY_TAG in function.attrs.get(_TAGS, ())


def _waiting(body: tirx.Stmt) -> tirx.Stmt:
    """The body with the wait behind what stands before it, otherwise inside all statements that bind threads."""
    wait = [tirx.Evaluate(T.ptx.griddepcontrol.wait()), tirx.Evaluate(T.ptx.griddepcontrol.launch_dependents())]
    if BEFORE_WAIT in _keys(body):
        return _with(body, BEFORE_WAIT, lambda statement: tirx.SeqStmt([statement.body, *wait]))

    def with_wait(statement: tirx.AttrStmt) -> tirx.AttrStmt:
        if _EXTENT in _keys(statement.body):
            return statement
        inside = tirx.SeqStmt([*wait, statement.body])
        return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, inside)

    return _with(body, _EXTENT, with_wait)


def _with(body: tirx.Stmt, key: str, change: Callable[[tirx.AttrStmt], tirx.Stmt]) -> tirx.Stmt:
    """The body with the statements of an attribute changed."""
    return tvm_ffi.structural_map(
        body, [(tirx.AttrStmt, lambda statement: change(statement) if statement.attr_key == key else statement)]
    )


def _keys(body: tirx.Stmt) -> list[str]:
    """The attributes of the statements in a body."""
    keys: list[str] = []
    tvm_ffi.structural_walk(body, [(tirx.AttrStmt, lambda statement: keys.append(statement.attr_key))])
    return keys

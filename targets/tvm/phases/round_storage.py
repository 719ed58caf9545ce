"""Round the bytes of an allocation up to a power of two where their number is known only at run time.

The runtime's pool gives a block only to an allocation of the same size, rounded up to a page. A session whose prompts
have many lengths would keep blocks of each size until the device has no memory left, and then free all of them, for
which the device waits. Blocks of powers of two serve many lengths: all together have at most four times the bytes of
the largest run, because those of each power of two are at most twice too large, and smaller powers add up to as much.

::

    storage = memory.alloc_storage(R.shape([N * 4]), ...)
        ->
    storage = memory.alloc_storage(R.shape([1 << (64 - clz(max(N * 4, 4096) - 1))]), ...)
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx

from moec.runtime.run_memory import LEAST_BLOCK
from moec.targets.tvm.phases.bound_storage import with_sizes


@tvm.ir.transform.module_pass(opt_level=0, name="RoundStorage")
class RoundStorage:
    """Runs behind :class:`~moec.targets.tvm.phases.bound_storage.BoundStorage`, whose bound is a power of two."""

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        return with_sizes(module, _rounded)


def _rounded(size: Any) -> tirx.Expr:
    bits = tirx.IntImm("int64", 64) - tirx.clz(tirx.max(size, tirx.IntImm("int64", LEAST_BLOCK)) - 1)
    return tirx.IntImm("int64", 1) << bits

"""The matrix tiles of x86-64 (AMX): Linux grants their 8 KiB of registers only to processes that ask for them."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys

_SYS_ARCH_PRCTL = 158  # on x86-64
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18


@functools.cache
def refusal_of_matrix_tiles() -> str | None:
    """Request matrix tiles permanently, for all threads of this process. Returns None, or the reason of a refusal.

    Without the request, the first instruction on a tile ends the process.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"{platform.system()} on {platform.machine()} has no matrix tiles; they need Linux on x86-64"
    system = ctypes.CDLL(None, use_errno=True)
    arguments = (
        ctypes.c_long(_SYS_ARCH_PRCTL),
        ctypes.c_long(_ARCH_REQ_XCOMP_PERM),
        ctypes.c_long(_XFEATURE_XTILEDATA),
    )
    if system.syscall(*arguments) == 0:
        return None
    return f"the system does not permit matrix tiles ({os.strerror(ctypes.get_errno())})"

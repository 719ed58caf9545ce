"""A stand-in for XRT's Python module: the part that generated host programs call, with a test's own kernel."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np

COMPLETED = "completed"


class Buffer:
    normal = "normal"

    def __init__(self, _device, size, _flags, _group):
        self.data = bytearray(size)

    def write(self, data, at):
        self.data[at : at + len(data)] = data

    def read(self, size, at):
        return np.frombuffer(bytes(self.data[at : at + size]), np.int8)

    def sync(self, _direction, _size, _offset):
        pass


def module(run: Callable[..., str], group: Callable[[int], int] = lambda _: 1) -> Any:
    """The module ``pyxrt``. ``run``: takes the kernel's arguments and returns the state in which it ends; ``group``:
    the memory of an argument, by its index."""

    class Kernel:
        shared = "shared"
        group_id = staticmethod(group)

        def __init__(self, *_):
            pass

        def __call__(self, *arguments):
            state = run(*arguments)
            return types.SimpleNamespace(wait=lambda: state)

    return types.SimpleNamespace(
        bo=Buffer,
        kernel=Kernel,
        xclbin=str,
        device=lambda _: types.SimpleNamespace(load_xclbin=str),
        ert_cmd_state=types.SimpleNamespace(ERT_CMD_STATE_COMPLETED=COMPLETED),
        xclBOSyncDirection=types.SimpleNamespace(XCL_BO_SYNC_BO_TO_DEVICE=0, XCL_BO_SYNC_BO_FROM_DEVICE=1),
    )

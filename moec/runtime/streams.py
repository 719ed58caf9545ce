"""The order of what runs on a GPU.

Work goes to the stream that is current where a model is called. All models of a process take memory from one pool,
which hands a block on as soon as the host has let go of it, though its last kernel may not have run yet. That is right
only if everything runs in one order. So one thread at a time puts work on the GPU, and a stream first waits for all
others that were used before.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from moec.runtime.library import load_ffi

DEFAULT = 0
"""CUDA's legacy default stream, to which copies from and to the host go."""

_turn = threading.RLock()
_used = {DEFAULT}


def current_stream() -> int:
    """The stream that the calling thread's work goes to."""
    ffi = load_ffi()
    return int(ffi.get_raw_stream(ffi.device("cuda", 0)))


@contextlib.contextmanager
def working_on(stream: int) -> Iterator[None]:
    """Inside, the calling thread's work goes to ``stream``, behind all that any model has put on the GPU."""
    ffi = load_ffi()
    with _turn:
        for other in _used - {stream}:
            let_wait(stream, other)
        _used.add(stream)
        with ffi.use_raw_stream(ffi.device("cuda", 0), stream):
            yield


def let_wait(stream: int, other: int) -> None:
    """What is put on ``stream`` from now on starts when all that is on ``other`` now is done. The host goes on."""
    ffi = load_ffi()
    ffi.get_global_func("runtime.Device_StreamSyncFromTo")(ffi.device("cuda", 0), other, stream)


def finish(stream: int) -> None:
    """Have the host wait until all that is on the stream is done."""
    ffi = load_ffi()
    ffi.get_global_func("runtime.Device_StreamSync")(ffi.device("cuda", 0), stream)

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
from typing import Any

from moec.runtime.library import load_ffi

DEFAULT = 0
"""The default stream, to which copies from and to the host go."""


class Streams:
    """Those of the first device of a kind, as DLPack counts kinds. There is to be one object for all models."""

    def __init__(self, kind: int) -> None:
        self._kind, self._turn, self._used = kind, threading.RLock(), {DEFAULT}

    def current(self) -> int:
        """The stream that the calling thread's work goes to."""
        return int(load_ffi().get_raw_stream(self._device))

    @contextlib.contextmanager
    def working_on(self, stream: int) -> Iterator[None]:
        """Inside, the calling thread's work goes to ``stream``, behind all that any model has put on the GPU."""
        with self._turn:
            for other in self._used - {stream}:
                self.let_wait(stream, other)
            self._used.add(stream)
            with self.switched_to(stream):
                yield

    def switched_to(self, stream: int) -> contextlib.AbstractContextManager[None]:
        """Inside, the calling thread's work goes to ``stream``, with nothing waited for."""
        found: contextlib.AbstractContextManager[None] = load_ffi().use_raw_stream(self._device, stream)
        return found

    def let_wait(self, stream: int, other: int) -> None:
        """What is put on ``stream`` from now on starts when all that is on ``other`` now is done. The host goes on."""
        load_ffi().get_global_func("runtime.Device_StreamSyncFromTo")(self._device, other, stream)

    def finish(self, stream: int) -> None:
        """Have the host wait until all that is on the stream is done."""
        load_ffi().get_global_func("runtime.Device_StreamSync")(self._device, stream)

    @property
    def _device(self) -> Any:
        return load_ffi().device(self._kind, 0)

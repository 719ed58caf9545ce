"""The order of work on a GPU.

Work goes to the stream that is current where a model is called. All models of a process take memory from one pool,
which reuses a block as soon as the host has released it, although its last kernel may not have run yet. That is correct
only if everything runs in one order. So one thread at a time submits work to the GPU, and a stream first waits for all
streams that were used before.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from moec.runtime.library import load_ffi

DEFAULT = 0
"""The default stream, used by copies from and to the host."""


class Streams:
    """Streams of the first device of a kind, by DLPack's numbers. All models share one object."""

    def __init__(self, kind: int) -> None:
        self._kind, self._turn, self._used = kind, threading.RLock(), {DEFAULT}

    def current(self) -> int:
        """Return the stream of the calling thread's work."""
        return int(load_ffi().get_raw_stream(self._device))

    @contextlib.contextmanager
    def working_on(self, stream: int, *, is_captured: bool = False) -> Iterator[None]:
        """Context in which the calling thread's work goes to ``stream``, after all work that any model has submitted.
        Work of a stream that ``is_captured`` runs later, in an order that is the caller's, and cannot wait for other
        streams."""
        with self._turn:
            if not is_captured:
                for other in self._used - {stream}:
                    self._let_wait_if_there(stream, other)
                self._used.add(stream)
            with self.switched_to(stream):
                yield

    def switched_to(self, stream: int) -> contextlib.AbstractContextManager[None]:
        """Context in which the calling thread's work goes to ``stream``, without waiting."""
        context: contextlib.AbstractContextManager[None] = load_ffi().use_raw_stream(self._device, stream)
        return context

    def let_wait(self, stream: int, other: int) -> None:
        """Let later work on ``stream`` start after the present work on ``other``. The host does not wait."""
        load_ffi().get_global_func("runtime.Device_StreamSyncFromTo")(self._device, other, stream)

    def _let_wait_if_there(self, stream: int, other: int) -> None:
        """Do the same, and forget ``other`` where it cannot be waited for, because its owner destroyed it. What it had
        left to do ends before the default stream's work does, for which the host waits instead."""
        try:
            self.let_wait(stream, other)
        except Exception:  # each kind of device has its own
            self._used.discard(other)
            self.finish(DEFAULT)

    def finish(self, stream: int) -> None:
        """Let the host wait for all work on the stream."""
        load_ffi().get_global_func("runtime.Device_StreamSync")(self._device, stream)

    @property
    def _device(self) -> Any:
        return load_ffi().device(self._kind, 0)

"""The run of a program in the calling thread, for the functions of this process that programs call between kernels.

Those functions are the same for all programs (:mod:`moec.runtime.expert_calls`, :mod:`moec.runtime.loops`,
:mod:`moec.runtime.rank_calls`). The thread's run says whose weights, ranks and loops they refer to. It also keeps the
error of such a function, because the runtime replaces it by one of its own on the way to the caller.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from moec.common.errors import MoecError, RoomError
from moec.runtime.ranks import OneRank, Ranks, ReceivedRows

if TYPE_CHECKING:
    from moec.runtime.ended_loop import EndedLoop
    from moec.runtime.streamed_weights import StreamedWeights


class RowsDevice(Protocol):
    """The part of :class:`moec.runtime.device.Device` that the exchange of rows needs."""

    def view_of(self, tensor: Any) -> Any:
        """View a tensor of the program, for the exchange of its rows."""
        ...

    def exchanging(self) -> contextlib.AbstractContextManager[None]:
        """Context in which such views are used."""
        ...


@dataclasses.dataclass
class ProgramRun:
    """One run of a program.

    ``machine``: the virtual machine, which has the bodies of loops as functions. ``ranks``: those with which rows of
    tensors on the ``device`` are exchanged. ``streamed``: weights that are read meanwhile; None where all are in
    memory. ``received``: rows from other ranks by layer. ``loops``: those that have ended. ``error``: the first that
    a function of this process raised.
    """

    machine: Any
    ranks: Ranks
    device: RowsDevice
    streamed: StreamedWeights | None = None
    received: dict[int, ReceivedRows] = dataclasses.field(default_factory=dict)
    loops: list[EndedLoop] = dataclasses.field(default_factory=list)
    error: BaseException | None = None

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of the program in this run. An error of a function of this process is raised as it was. On
        several ranks RoomError becomes MoecError: a rank alone cannot run fewer tokens."""
        before, _thread.run = _thread.run, self
        try:
            self.ranks.begin_run()
            if self.streamed is not None:
                self.streamed.experts.begin_run()
            return function(*arguments)
        except Exception as error:
            own = self.error or error
            if isinstance(own, RoomError) and not isinstance(self.ranks, OneRank):
                raise MoecError(str(own)) from own
            if own is error:
                raise
            raise own from None
        finally:
            _thread.run = before

    def keep_error(self, error: BaseException) -> None:
        """Keep the first error of a function of this process; interruptions, too."""
        self.error = self.error or error


class _Thread(threading.local):
    run: ProgramRun | None = None


_thread = _Thread()


def current_run() -> ProgramRun:
    """Return the run in the calling thread."""
    assert _thread.run is not None, "a program runs"
    return _thread.run

"""The process group of a distributed run: its start from torchrun's environment, its collectives, its end.

Whatever fails in a collective becomes one line that names this rank, its layer and collective, and the rank to blame.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moec.common.errors import LostRankError, MoecError, RoomError, one_line
from moec.common.last_words import last_words
from moec.distributed.handshake import ranks_in_words, shake_hands
from moec.distributed.patience import within
from moec.distributed.roll_call import COMPUTING, RollCall, RollVerdict
from moec.runtime.device import GLOO

TIMEOUT_SECONDS = 60.0
TIMEOUT_VARIABLE = "MOEC_RANKS_TIMEOUT"
_starts = itertools.count()
"""Numbers of the groups that this process joined, one after the other, as all ranks do."""


class RankGroup:
    """A rank's view of a process group of torch.distributed, ``processes``, None for the default one.

    ``whole``: the group of which this is a part (:meth:`part`); failures are about ranks of it. ``members``: the
    numbers of this group's ranks there."""

    def __init__(
        self,
        rank: int,
        size: int,
        seconds: float = TIMEOUT_SECONDS,
        processes: Any = None,
        whole: RankGroup | None = None,
        members: Sequence[int] = (),
    ) -> None:
        self.rank, self.size, self.processes = rank, size, processes
        self.members = members or range(size)
        self.roll: RollCall | None = None
        self._whole = whole
        self._seconds = seconds
        self._place = COMPUTING

    @property
    def place(self) -> str:
        """The collective that this rank takes part in, or that it computes."""
        return self._place

    def part(self, parts: Sequence[Sequence[int]]) -> RankGroup:
        """Divide the group into ``parts``, ranks that have one another alone, and return that of this rank. All ranks
        call this with the same parts."""
        from torch import distributed

        timeout = datetime.timedelta(seconds=self._seconds)
        with self.collective("start"):
            groups = [distributed.new_group(list(members), timeout=timeout) for members in parts]
        number = next(number for number, members in enumerate(parts) if self.rank in members)
        members = parts[number]
        return RankGroup(members.index(self.rank), len(members), self._seconds, groups[number], self, members)

    @contextlib.contextmanager
    def collective(self, name: str, layer: int | None = None) -> Iterator[None]:
        """Context of calls to torch.distributed. Raises LostRankError where one fails because of another rank, and
        RoomError for lack of memory."""
        if self._whole is not None:
            with self._whole.collective(name, layer):
                yield
            return
        self._place = name if layer is None else f"layer {layer}, {name}"
        try:
            yield
            self._place = COMPUTING
        except MemoryError as error:
            raise RoomError(f"{self._place}: there is not enough memory ({one_line(error)})") from error
        except (RuntimeError, TimeoutError) as error:  # torch's own errors are of the first kind
            raise LostRankError(f"{self._name()}: {self._blame(error)}") from error

    def most(self, number: int) -> int:
        """Find the largest of the numbers, int32, that the ranks have."""
        import torch
        from torch import distributed

        with self.collective("flag of work"):
            numbers = torch.tensor([number], dtype=torch.int32)
            distributed.all_reduce(numbers, distributed.ReduceOp.MAX, self.processes)
            return int(numbers.item())

    def last_words(self) -> str | None:
        """Find the line to say when the launcher ends this rank: which other rank is lost, if one is."""
        if self.roll is None:
            return None
        verdict = self.roll.call("ended")
        return f"{self._name()}: {self._fault(verdict)}" if verdict.is_guilty else None

    def _name(self) -> str:
        return f"rank {self.rank} of {self.size} ({self._place})"

    def _blame(self, error: Exception) -> str:
        text = one_line(error).partition(". This is typically")[0]
        late = f"did not answer within {self._seconds:g} s"
        how = late if re.search("timed out|timeout", text, re.IGNORECASE) else "closed its connection"
        if self.roll is None:
            return f"another rank {'did not answer in time' if how == late else how} ({text})"
        verdict = self.roll.call(how, is_cause=how == late)
        if verdict.is_guilty:
            return self._fault(verdict)
        if verdict.how == late:
            busy = f"{ranks_in_words(verdict.busy)} computed for more than" if verdict.busy else "ranks waited for"
            return f"{busy} {self._seconds:g} s: set {TIMEOUT_VARIABLE} to a longer timeout"
        return f"all ranks are there, but the connection failed: {text}"

    def _fault(self, verdict: RollVerdict) -> str:
        if verdict.failed is not None:
            return f"rank {verdict.failed} ended: {verdict.message}"
        if verdict.missing:
            return f"{ranks_in_words(verdict.missing)} {verdict.how}"
        return f"{'the launcher' if _launcher_holds_store() else 'rank 0'}, which holds the store, {verdict.how}"


@contextlib.contextmanager
def joined(
    ranks: int, facts: Mapping[str, str], seconds: float | None = None, *, backend: str = GLOO
) -> Iterator[RankGroup]:
    """Context of a run on ``ranks`` ranks that torchrun started: a process group over ``backend``, ended with the
    block.

    ``facts``: what all ranks must have in common (artifact, version, placement, transport). ``seconds``: timeout of
    the start and of every collective, by default MOEC_RANKS_TIMEOUT or 60. Raises MoecError where the environment is
    not torchrun's, where ranks differ, and LostRankError where one is lost. An error in the block ends the other
    ranks, too, with a line that says this rank's."""
    rank, size = _environment("RANK"), _environment("WORLD_SIZE")
    if size != ranks:
        raise MoecError(
            f"the artifact is for {ranks} ranks, and {size} were started; start {ranks}, or compile it anew"
        )
    seconds = _timeout() if seconds is None else seconds
    _load_torch()
    group = RankGroup(rank, size, seconds)
    is_lost = True
    try:
        with last_words(group.last_words):
            with group.collective("start"):
                within(seconds + 0.2, lambda: _start(group, facts, seconds, backend))
            yield group
            group.most(0)  # nobody leaves while another rank still needs it
        is_lost = False
    except BaseException as error:
        raise _told(group, error) from error.__cause__
    finally:
        _leave(group, is_lost)


def _load_torch() -> None:
    if "torch" not in sys.modules:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # its errors are ours to report
    try:
        from torch import distributed
    except ImportError as error:
        raise MoecError('several ranks need PyTorch: pip install "moec[torch]"') from error
    if distributed.is_initialized():
        raise MoecError("torch.distributed has a process group already; expected none: moec starts its own")


def _start(group: RankGroup, facts: Mapping[str, str], seconds: float, backend: str) -> None:
    from torch import distributed

    timeout = datetime.timedelta(seconds=seconds)
    try:
        plain: Any = next(distributed.rendezvous("env://", timeout=timeout))[0]
    except ValueError as error:  # a variable is missing, or is no number
        raise MoecError(f"expected the environment of torchrun: {one_line(error)}") from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the launcher's store keeps what earlier ones said
    store: Any = distributed.PrefixStore(f"moec/{attempt}/{next(_starts)}", plain)
    holds_store = group.rank == 0 and not _launcher_holds_store()
    group.roll = RollCall(store.clone(), group.rank, group.size, holds_store, lambda: group.place)
    shake_hands(store, group.rank, group.size, facts, seconds)
    if backend != GLOO:
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # a wait fails by itself, and the roll call says why
    distributed.init_process_group(backend, store=store, rank=group.rank, world_size=group.size, timeout=timeout)


def _told(group: RankGroup, error: BaseException) -> BaseException:
    """Tell the other ranks about an error, and name this rank in it."""
    if isinstance(error, LostRankError):
        return error
    if group.roll is not None:
        group.roll.report(one_line(error) or type(error).__name__)
    if isinstance(error, MoecError):
        return type(error)(f"rank {group.rank} of {group.size}: {error}")
    return error


def _leave(group: RankGroup, is_lost: bool) -> None:
    if group.roll is None:
        return
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
    if is_lost:
        group.roll.linger()
    group.roll.close()


def _environment(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise MoecError(f"{name} is {text!r}; expected the environment of torchrun: start ranks with torchrun -m moec")
    return int(text)


def _timeout() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE, str(TIMEOUT_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise MoecError(f"{TIMEOUT_VARIABLE} is {text!r}; expected a number of seconds above 0")
    return seconds


def _launcher_holds_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"

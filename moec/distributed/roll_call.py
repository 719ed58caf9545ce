"""Roll call of ranks: when a collective fails, all ranks learn from the store which of them is to blame.

A collective that fails says at most that some connection is closed, which may be that of a rank that noticed the
failure earlier. So each rank has a thread that answers when the roll is called, whatever the rank computes, and that
keeps the verdict for the time when the rank's own collective fails; a rank that does not answer was killed or stopped.
A rank that ends by an error of its own leaves its message first.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from moec.distributed.patience import within

Result = TypeVar("Result")

ANSWER_SECONDS = 2.0
"""Time in which every rank that lives answers."""
STORE_SECONDS = 2.0
"""Time for the calls to the store around that, which a busy machine makes slow."""
LINGER_SECONDS = 0.8
"""Time that the process with the store waits for others to read it, and what is left of the other two. A job lasts at
most all three longer than the timeout of its process group."""
COMPUTING = "computing"
"""Place of a rank that is in no collective."""
_POLL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class RollVerdict:
    """Ranks that are ``missing``, and those that are ``busy`` computing; ``how``: what the first rank noticed.
    ``failed``: the rank that ended by an error of its own, with its ``message``. ``unreachable``: nobody can ask."""

    missing: tuple[int, ...] = ()
    busy: tuple[int, ...] = ()
    how: str = ""
    failed: int | None = None
    message: str = ""
    unreachable: bool = False

    @property
    def is_guilty(self) -> bool:
        """Whether somebody is to blame."""
        return bool(self.missing) or self.failed is not None or self.unreachable


class RollCall:
    """The roll call of ``size`` ranks over a store of torch.distributed. ``holds_store``: whether this process does,
    so that nobody can read it afterwards. ``place``: where this rank is, in words."""

    def __init__(self, store: Any, rank: int, size: int, holds_store: bool, place: Callable[[], str]) -> None:
        self._store, self._rank, self._ranks = store, rank, range(size)
        self._holds_store, self._place = holds_store, place
        self._begun: float | None = None
        self._heard: RollVerdict | None = None
        self._over = threading.Event()
        self._listener = threading.Thread(target=self._listen, args=(store.clone(),), name="moec-roll", daemon=True)
        self._listener.start()

    def close(self) -> None:
        """Answer no more."""
        self._over.set()
        self._listener.join(5 * _POLL_SECONDS)  # it does not end where the store's process was stopped

    def report(self, message: str) -> None:
        """Leave the message of the error that ends this rank. The first rank that does is the one that failed."""
        self._begin()
        failure = json.dumps({"failed": self._rank, "message": message})
        self._within(lambda: self._store.compare_set("failure", "", failure) and self._store.set("roll", "ended"))

    def call(self, how: str, is_cause: bool = False) -> RollVerdict:
        """Find out who is to blame. All ranks that call get the verdict of the first one. ``is_cause``: whether what
        this rank noticed cannot follow from another rank's end, as a closed connection does; it is then what the
        verdict says."""
        self._begin()
        verdict = self._heard or self._within(lambda: self._verdict(how, is_cause)) or self._heard
        return verdict or RollVerdict(how=how, unreachable=True)

    def linger(self) -> None:
        """Wait until the other ranks have their verdicts, if the store ends with this process."""
        if self._holds_store:
            others = [f"done/{rank}" for rank in self._ranks if rank != self._rank]
            seconds = self._begin() + ANSWER_SECONDS + STORE_SECONDS + LINGER_SECONDS - time.monotonic()
            self._within(lambda: self._wait_for(others, "missing", seconds))

    def _begin(self) -> float:
        """Return the time when this rank began to say that something failed."""
        if self._begun is None:
            self._begun = time.monotonic()
        return self._begun

    def _within(self, ask: Callable[[], Result]) -> Result | None:
        """Return ``ask()``, or None if the store does not answer: that of a stopped process lets its clients wait."""
        try:
            return within(ANSWER_SECONDS + STORE_SECONDS, ask)
        except (RuntimeError, TimeoutError):
            return None

    def _verdict(self, how: str, is_cause: bool) -> RollVerdict:
        store = self._store
        if is_cause:
            store.compare_set("cause", "", how)
        if not store.check(["failure"]):
            how = store.compare_set("roll", "", how).decode()
            store.set(f"here/{self._rank}", self._place())
            everybody = [f"here/{rank}" for rank in self._ranks]
            self._wait_for(everybody, "verdict", ANSWER_SECONDS)
            if not store.check(["failure"]):
                self._agree(how)
        verdict = _read(store)
        for rank in (self._rank, *verdict.missing):
            store.set(f"done/{rank}", "")
        return verdict

    def _agree(self, how: str) -> None:
        """Write a verdict, unless another rank has."""
        here = [rank for rank in self._ranks if self._store.check([f"here/{rank}"])]
        missing = sorted({*self._ranks} - {*here})
        how = self._store.get("cause").decode() if self._store.check(["cause"]) else how
        asked = () if missing else here
        busy = [rank for rank in asked if self._store.get(f"here/{rank}").decode() == COMPUTING]
        self._store.compare_set("verdict", "", json.dumps({"missing": missing, "busy": busy, "how": how}))

    def _wait_for(self, keys: list[str], or_key: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._store.check(keys) and not self._store.check([or_key]) and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)

    def _listen(self, store: Any) -> None:
        """Answer when the roll is called, and keep the verdict: the store may have gone when this rank needs it."""
        try:
            if self._waited(lambda: store.check(["roll"])):
                store.set(f"here/{self._rank}", self._place())
                if self._waited(lambda: store.check(["failure"]) or store.check(["verdict"])):
                    self._heard = _read(store)
                    store.set(f"done/{self._rank}", "")
        except RuntimeError:  # the process that holds the store has ended: who needs an answer sees that, too
            return

    def _waited(self, is_there: Callable[[], bool]) -> bool:
        """Wait until something is there, or this rank answers no more."""
        while not self._over.wait(_POLL_SECONDS):
            if is_there():
                return True
        return False


def _read(store: Any) -> RollVerdict:
    """Read what all ranks were told: that a rank failed, or the verdict of the first one that called."""
    data: dict[str, Any] = json.loads(store.get("failure" if store.check(["failure"]) else "verdict"))
    missing, busy = (tuple(data.pop(name, ())) for name in ("missing", "busy"))
    return RollVerdict(missing, busy, **data)

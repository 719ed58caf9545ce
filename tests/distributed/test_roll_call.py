"""Verdicts of a roll call, and the time that the process with the store waits for others to read them."""

from __future__ import annotations

import concurrent.futures
import datetime
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from moec.distributed import roll_call
from moec.distributed.roll_call import RollCall, RollVerdict

ANSWER, STORE, LINGER = 0.4, 2.0, 0.2


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from torch.distributed import TCPStore

    for name, seconds in (("ANSWER", ANSWER), ("STORE", STORE), ("LINGER", LINGER)):
        monkeypatch.setattr(roll_call, f"{name}_SECONDS", seconds)
    yield TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=datetime.timedelta(seconds=20))


def rolls(store: Any, size: int, there: list[int]) -> list[RollCall]:
    return [RollCall(store.clone(), rank, size, rank == 0, lambda: "somewhere") for rank in there]


@pytest.mark.parametrize(
    ("notices", "expected"),
    [
        ([("closed", False), ("late", True)], "late"),
        ([("closed", False), ("other", False)], "closed"),
        ([("late", True), ("closed", False)], "late"),
    ],
)
def test_a_time_out_outweighs_the_connections_that_it_closed(
    store: Any, notices: list[tuple[str, bool]], expected: str
) -> None:
    """Rank 2 is lost. Whoever notices a closed connection first may have seen the end of a rank that waited longer."""
    own = rolls(store, 3, [0, 1])
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        calls = []
        for roll, notice in zip(own, notices, strict=True):
            calls.append(pool.submit(roll.call, *notice))
            time.sleep(ANSWER / 4)
        assert [call.result() for call in calls] == [RollVerdict((2,), (), expected)] * 2
    for roll in own:
        roll.close()


def test_a_rank_that_notices_nothing_has_the_verdict_when_the_store_is_gone(store: Any) -> None:
    """Rank 2 is lost. Rank 1 waits for rank 0, which has told it, and ends with the store."""
    own = rolls(store, 3, [0, 1])
    assert own[0].call("closed").missing == (2,)
    own[0].linger()
    own[1]._store = mock.Mock(check=mock.Mock(side_effect=RuntimeError))
    assert own[1].call("closed") == RollVerdict((2,), (), "closed")
    for roll in own:
        roll.close()


def test_the_message_of_a_failure_is_told_to_all(store: Any) -> None:
    own = rolls(store, 2, [0, 1])
    own[0].report("no prompts")
    own[0].linger()
    own[1]._store = mock.Mock(check=mock.Mock(side_effect=RuntimeError))
    assert own[1].call("closed") == RollVerdict(failed=0, message="no prompts")
    for roll in own:
        roll.close()


def test_a_store_that_is_gone_says_nothing(store: Any) -> None:
    (own,) = rolls(store, 2, [1])
    own._store = mock.Mock(check=mock.Mock(side_effect=RuntimeError))
    assert own.call("closed").unreachable
    own.close()


@pytest.mark.parametrize("is_there", [True, False])
def test_the_store_waits_for_a_slow_rank_in_the_time_that_is_left(store: Any, is_there: bool) -> None:
    """Rank 1, whose thread does not run, reads its verdict later than LINGER says, or never. Rank 2 is lost."""
    own = rolls(store, 3, [0, 1])
    own[1].close()
    store.set("here/1", "somewhere")
    start = time.monotonic()
    assert own[0].call("closed").missing == (2,)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        lingering = pool.submit(own[0].linger)
        time.sleep(3 * LINGER)
        assert not lingering.done()
        if is_there:
            assert own[1].call("closed").missing == (2,)
        lingering.result()
    assert (time.monotonic() - start < ANSWER + STORE) == is_there
    for roll in own:
        roll.close()

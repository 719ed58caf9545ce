"""Events on their way from the scheduler's thread to the loops of requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moec.runtime.sampling import Sampling
from moec.runtime.text_codec import TextCodec
from moec.serving.limits import ServerLimits
from moec.serving.metrics import Metrics
from moec.serving.running_text import EndedText, Event, TextJob
from moec.serving.scheduler import Scheduler

from .served import wait_for

pytest.importorskip("prometheus_client")


class Loop:
    """A loop that counts what is called on it, or has ended."""

    def __init__(self, *, has_ended: bool = False) -> None:
        self.calls, self.has_ended = 0, has_ended

    def call_soon_threadsafe(self, function: Callable[..., None], *arguments: Any) -> None:
        if self.has_ended:
            raise RuntimeError("the loop is closed")
        self.calls += 1
        function(*arguments)


def ask(scheduler: Scheduler, loop: Any, count: int) -> list[Event]:
    """Ask for texts of 3 tokens after one prompt. Returns the list that gets their events."""
    events: list[Event] = []
    scheduler.start(scheduler.enter(loop, events.append), TextJob([1, 2], Sampling(), 3, [], count))
    return events


def ends(events: list[Event]) -> int:
    return sum(isinstance(event, EndedText) for event in events)


@pytest.fixture
def scheduler(model) -> Scheduler:
    return Scheduler(model, TextCodec(model.artifact), ServerLimits(), Metrics())


def test_events_of_a_step_are_one_call(scheduler):
    loop = Loop()
    events = ask(scheduler, loop, 4)
    wait_for(lambda: ends(events) == 4)
    assert loop.calls <= 3 < len(events)


def test_a_loop_that_has_ended_does_not_stop_others(scheduler):
    lost, events = ask(scheduler, Loop(has_ended=True), 1), ask(scheduler, Loop(), 1)
    wait_for(lambda: ends(events) == 1)
    assert not lost

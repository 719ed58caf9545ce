"""Streams whose events have all come when a client goes."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from moec.runtime.prompt_row import Generation
from moec.serving.event_stream import EventStream
from moec.serving.parameters import request_of
from moec.serving.replies import DONE, Reply
from moec.serving.running_text import EndedText, NewText

TOKENS = 20
TEXT = Generation("b", TOKENS * "a", TOKENS * [2], 1, "length", 0.1, 0.1)
EVENTS = [*[NewText(0, "a", [])] * TOKENS, EndedText(0, TEXT, 0)]
PARTS = len(EVENTS) + len((DONE,))


@pytest.mark.parametrize(
    ("read", "sent", "status"), [(0, 1, 499), (3, 4, 499), (PARTS - 1, PARTS, 499), (None, PARTS, 200)]
)
def test_what_a_client_that_went_has_not_read_is_not_sent_and_its_status_is_499(read, sent, status):
    """``read``: parts that the client reads before it goes; one more may be on the way."""
    pytest.importorskip("starlette")
    with ThreadPoolExecutor(1) as thread:  # a browser of other tests may have a loop in this one
        parts, told = thread.submit(asyncio.run, streamed(read)).result()
    assert len(parts) <= sent and told == [status]
    assert (DONE in parts) == (status == 200)


async def streamed(read: int | None) -> tuple[list[bytes], list[int]]:
    """Parts that are sent to a client, and statuses that are counted."""
    parts: list[bytes] = []
    told: list[int] = []
    events: asyncio.Queue = asyncio.Queue()
    gone = asyncio.Event()
    for event in EVENTS[1:]:
        events.put_nowait(event)

    async def receive() -> dict[str, str]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        if message.get("body"):
            parts.append(message["body"])
        if read is not None and len(parts) >= read:
            gone.set()

    asked = request_of(b'{"model": "a", "prompt": "b", "stream": true}', chat=False)
    reply = Reply("a", asked, lambda token: b"")
    stream = EventStream(EVENTS[0], events, reply, contextlib.ExitStack(), told.append, 20)
    await stream({"type": "http"}, receive, send)
    return parts, told

"""Responses that are streams of events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from moec.serving.refusals import GONE, RequestError
from moec.serving.replies import DONE, Reply, event_of
from moec.serving.running_text import Event


class EventStream:
    """A response that streams the events of a request, the first of which has come already.

    ``stack`` is closed at the end, also where the response is interrupted before its first part; ``on_end`` then gets
    the status of the outcome, which is not the one in the response's head where the text failed or the client went.
    After ``seconds`` the connection ends, however little the client has read: it would hold its place for ever."""

    def __init__(
        self,
        first: Event,
        events: asyncio.Queue[Event],
        reply: Reply,
        stack: contextlib.ExitStack,
        on_end: Callable[[int], None],
        seconds: float,
    ) -> None:
        self._first, self._events, self._reply, self._stack, self._on_end = first, events, reply, stack, on_end
        self._seconds = seconds
        self._outcome = self._status = GONE

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import StreamingResponse

        async def send_if_connected(message: Any) -> None:
            await asyncio.sleep(0)  # the event loop hears that the client went; sending does not wait for the loop
            await send(message)
            if not message.get("more_body", True):
                self._status = self._outcome

        response = StreamingResponse(self._parts(), media_type="text/event-stream")
        with self._stack:
            try:
                await asyncio.wait_for(response(scope, receive, send_if_connected), self._seconds)
            except asyncio.TimeoutError:
                self._status = GONE
            finally:
                self._on_end(self._status)

    async def _parts(self) -> AsyncIterator[bytes]:
        """Parts of the stream. One that fails ends with the error, as OpenAI's clients expect."""
        for part in self._reply.begin():
            yield part
        event = self._first
        while not isinstance(event, RequestError):
            for part in self._reply.event(event):
                yield part
            if self._reply.is_whole:
                for part in self._reply.end():
                    yield part
                self._outcome = 200
                return
            event = await self._events.get()
        yield event_of(event.body())
        yield DONE
        self._outcome = event.status

"""The application: addresses of OpenAI's API, and what happens between a request and its answer."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from moec.common.errors import DefectError, MoecError, one_line
from moec.runtime.prompts import encoded_prompts
from moec.runtime.text_codec import TextCodec
from moec.serving.chat_page import chat_page
from moec.serving.event_stream import EventStream
from moec.serving.grammars import Grammars
from moec.serving.limits import ServerLimits
from moec.serving.metrics import Metrics
from moec.serving.parameters import Request, request_of
from moec.serving.refusals import GONE, RequestError, wrong
from moec.serving.replies import Reply, to_json
from moec.serving.running_text import Event, TextJob
from moec.serving.scheduler import Scheduler, Ticket
from moec.serving.tool_calls import BEGIN

if TYPE_CHECKING:
    import starlette.applications
    import starlette.requests
    import starlette.responses

_BODY_SECONDS = 30
"""Seconds until a body has arrived."""
_TAIL_SECONDS = 30
"""Seconds that a stream may take beyond the time of its text, for a client that reads slowly."""
_TEMPLATES = 2
"""Prompts that are encoded at once: each chat template takes a process."""


class Application:
    """Answers of a server. ``name``: of the model. ``key``: that requests have to give, or None."""

    def __init__(
        self,
        scheduler: Scheduler,
        codec: TextCodec,
        limits: ServerLimits,
        metrics: Metrics,
        name: str,
        key: str | None,
    ) -> None:
        self._scheduler, self._codec, self._limits, self._metrics = scheduler, codec, limits, metrics
        self._name, self._key = name, key
        self._grammars = Grammars(codec)
        self._created = int(time.time())
        self._encoding = asyncio.Semaphore(_TEMPLATES)

    def routes(self) -> starlette.applications.Starlette:
        """Make the application of starlette."""
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.routing import Route

        return Starlette(
            routes=[
                Route("/", _page),
                Route("/health", self._health),
                Route("/metrics", self._checked(self._shown_metrics)),
                Route("/v1/models", self._checked(self._models)),
                Route("/v1/models/{name:path}", self._checked(self._model)),
                Route("/v1/completions", self._counted(self._checked(self._completion)), methods=["POST"]),
                Route("/v1/chat/completions", self._counted(self._checked(self._chat)), methods=["POST"]),
            ],
            exception_handlers={RequestError: _refusal, HTTPException: _other_refusal, Exception: _defect},
        )

    def _checked(self, answer: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Let a function answer only requests with the key."""

        async def checked(request: starlette.requests.Request) -> Any:
            actual = request.headers.get("authorization", "").encode("latin-1")
            if self._key is not None and not hmac.compare_digest(actual, f"Bearer {self._key}".encode()):
                message = "the API key is missing or wrong; send it as: Authorization: Bearer KEY"
                raise RequestError(401, message, code="invalid_api_key")
            return await answer(request)

        return checked

    def _counted(self, answer: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Count the answers of a function by their status; streams are counted at their end."""

        async def counted(request: starlette.requests.Request) -> Any:
            try:
                response = await answer(request)
            except Exception as error:
                self._metrics.answered(error.status if isinstance(error, RequestError) else 500)
                raise
            if not isinstance(response, EventStream):
                self._metrics.answered(response.status_code)
            return response

        return counted

    async def _shown_metrics(self, request: starlette.requests.Request) -> starlette.responses.Response:
        from starlette.responses import Response

        text, kind = self._metrics.text(self._scheduler.load)
        return Response(text, media_type=kind)

    async def _health(self, request: starlette.requests.Request) -> starlette.responses.Response:
        is_stopping = self._scheduler.is_stopping
        return _json({"status": "stopping" if is_stopping else "ok"}, 503 if is_stopping else 200)

    async def _models(self, request: starlette.requests.Request) -> starlette.responses.Response:
        return _json({"object": "list", "data": [self._description()]})

    async def _model(self, request: starlette.requests.Request) -> starlette.responses.Response:
        self._check_model(request.path_params["name"])
        return _json(self._description())

    async def _completion(self, request: starlette.requests.Request) -> Any:
        return await self._answered(request, chat=False)

    async def _chat(self, request: starlette.requests.Request) -> Any:
        if not self._codec.has_chat_template:
            raise RequestError(400, f"model {self._name!r} has no chat template; use /v1/completions")
        return await self._answered(request, chat=True)

    async def _answered(self, request: starlette.requests.Request, *, chat: bool) -> Any:
        asked = request_of(await self._body(request), chat=chat)
        self._check_model(asked.model)
        if asked.tools and not self._codec.mentions("tools"):
            raise wrong("tools", "cannot be shown to this model: its chat template has no place for them")
        reads_calls = bool(asked.tools) and self._codec.mentions(BEGIN)
        if asked.forces_call and not reads_calls:
            raise wrong("tool_choice", f"cannot force calls here: the model's chat template does not mention {BEGIN}")
        reply = Reply(self._name, asked, self._codec.bytes_of, reads_calls=reads_calls)
        events: asyncio.Queue[Event] = asyncio.Queue()
        with contextlib.ExitStack() as stack:
            ticket = self._scheduler.enter(asyncio.get_running_loop(), events.put_nowait)
            stack.callback(self._scheduler.leave, ticket)
            await self._start(ticket, asked)
            if not asked.streams:
                return _json(await _while_connected(request, _result(events, reply)))
            first = await _while_connected(request, events.get())
            if isinstance(first, RequestError):  # while it can still be the answer's status
                raise first
            left = ticket.deadline - time.monotonic() + _TAIL_SECONDS
            return EventStream(first, events, reply, stack.pop_all(), self._metrics.answered, left)

    async def _start(self, ticket: Ticket, asked: Request) -> None:
        """Encode the prompt and hand it to the scheduler."""
        async with self._encoding:
            try:
                (prompt,) = await asyncio.to_thread(
                    encoded_prompts, self._codec, [asked.prompt], False, None, asked.tools
                )
            except DefectError:
                raise
            except MoecError as error:
                raise RequestError(400, str(error)) from error
            matcher = None
            if asked.grammar is not None:
                matcher = await asyncio.to_thread(self._grammars.matcher, asked.grammar)
        job = TextJob(prompt, asked.sampling, asked.new_tokens, asked.stops, asked.count, asked.top_logprobs, matcher)
        self._scheduler.start(ticket, job)

    async def _body(self, request: starlette.requests.Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # browsers let pages of others send different types without asking
            raise RequestError(415, f"the content type is {kind[:60]!r}; expected application/json")
        try:
            return await asyncio.wait_for(self._read(request), _BODY_SECONDS)
        except asyncio.TimeoutError as error:
            raise RequestError(408, f"the body did not arrive within {_BODY_SECONDS} s") from error

    async def _read(self, request: starlette.requests.Request) -> bytes:
        from starlette.requests import ClientDisconnect

        body, most = bytearray(), self._limits.body_bytes
        try:
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise RequestError(413, f"the body has more than {most} bytes, which is the most here")
        except ClientDisconnect as error:
            raise _gone() from error
        return bytes(body)

    def _check_model(self, name: str) -> None:
        if name != self._name:
            message = f"there is no model {name[:100]!r}; this server has {self._name!r}"
            raise RequestError(404, message, parameter="model", code="model_not_found")

    def _description(self) -> dict[str, Any]:
        return {"id": self._name, "object": "model", "created": self._created, "owned_by": "moec"}


async def _result(events: asyncio.Queue[Event], reply: Reply) -> dict[str, Any]:
    """The whole answer, or the refusal as an exception."""
    while not reply.is_whole:
        event = await events.get()
        if isinstance(event, RequestError):
            raise event
        reply.take(event)
    return reply.whole()


async def _while_connected(request: starlette.requests.Request, work: Coroutine[Any, Any, Any]) -> Any:
    """Wait for work, or end it when the client has gone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise _gone()
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


def _gone() -> RequestError:
    return RequestError(GONE, "the client has gone")


async def _page(request: starlette.requests.Request) -> starlette.responses.Response:
    from starlette.responses import Response

    content, headers = chat_page()
    return Response(content, headers=headers, media_type="text/html")


def _json(value: Any, status: int = 200) -> starlette.responses.Response:
    from starlette.responses import Response

    return Response(to_json(value), status, media_type="application/json")


async def _refusal(request: starlette.requests.Request, error: Exception) -> starlette.responses.Response:
    assert isinstance(error, RequestError)
    response = _json(error.body(), error.status)
    if error.status in (429, 503):
        response.headers["retry-after"] = "1"
    return response


async def _other_refusal(request: starlette.requests.Request, error: Exception) -> starlette.responses.Response:
    """Answer addresses and methods that are not served."""
    status = getattr(error, "status_code", 500)
    where = f"{request.method} {request.url.path[:100]}"
    return _json(RequestError(status, f"{where} is not served; docs/serving.md lists what is").body(), status)


async def _defect(request: starlette.requests.Request, error: Exception) -> starlette.responses.Response:
    return _json(RequestError(500, f"moec failed: {one_line(error)}").body(), 500)

"""The server: a socket, uvicorn, and an end that lets texts finish."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from moec.common.errors import MoecError
from moec.runtime.model import CompiledModel
from moec.runtime.text_codec import TextCodec
from moec.serving.app import Application
from moec.serving.limits import ServerLimits
from moec.serving.metrics import Metrics
from moec.serving.scheduler import Scheduler

if TYPE_CHECKING:
    import asyncio

    import starlette.applications

Heard = Callable[[Callable[[], None]], AbstractContextManager[None]]
"""Context in which the function that it gets is called when the server shall stop."""
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Reasons for which a connection cannot be accepted now; asyncio tries again after a second."""
_UNREAD_SECONDS = 30
"""Seconds for which a client may read nothing of what is sent to it; then its connection ends."""


def serve(
    model: CompiledModel,
    *,
    name: str,
    host: str,
    port: int,
    key: str | None,
    limits: ServerLimits,
    told_to_stop: Heard,
    on_start: Callable[[str], None],
) -> None:
    """Answer requests until told to stop; texts in progress then have ``limits.grace_seconds`` to end.

    ``name``: of the model in requests. ``port``: 0 for a free one. ``key``: that requests have to give, or None.
    ``on_start`` is called with the server's address as soon as it answers. Raises MoecError for a missing package, an
    address that cannot be used, a key that a header cannot hold, an artifact without tokenizer, and UnsupportedError
    for one without a program for batches.
    """
    with _listening(host, port) as listener:
        application, scheduler = asgi_application(model, name=name, key=key, limits=limits)
        import uvicorn

        config = uvicorn.Config(
            application,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            log_level="error",
            timeout_graceful_shutdown=limits.grace_seconds + 5,
        )
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # told_to_stop hears them
        _run(server, listener, scheduler, told_to_stop, on_start)


def asgi_application(
    model: CompiledModel, *, name: str, key: str | None, limits: ServerLimits
) -> tuple[starlette.applications.Starlette, Scheduler]:
    """Make the application of a server, for :func:`serve` and for other servers of ASGI, and its scheduler, whose
    ``stop`` refuses further requests. Raises as :func:`serve`."""
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MoecError(f'moec serve needs the package {error.name}: pip install "moec[serve]"') from error

    if key is not None and not (key and key.isascii() and key.isprintable()):
        raise MoecError("the API key is empty or has characters beyond ASCII; headers hold printable ASCII")
    codec, metrics = TextCodec(model.artifact), Metrics()
    scheduler = Scheduler(model, codec, limits, metrics)
    return Application(scheduler, codec, limits, metrics, name, key).routes(), scheduler


def _run(
    server: Any, listener: socket.socket, scheduler: Scheduler, told_to_stop: Heard, on_start: Callable[[str], None]
) -> None:
    import asyncio

    def stop() -> None:
        server.force_exit = server.should_exit  # the second time
        server.should_exit = True
        scheduler.stop()

    async def answer() -> None:
        asyncio.get_running_loop().set_exception_handler(_HeardOnce())
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        while not (server.started or serving.done()):
            await asyncio.sleep(0.01)
        if not serving.done():
            on_start(_address(listener))
        await serving

    with told_to_stop(stop):
        asyncio.run(answer())


class _HeardOnce:
    """Handler of errors that the event loop meets where no request waits for them. asyncio logs a traceback for each of
    the 2,048 connections that it tries to accept, each second, while the process has no file for them: that is said
    once."""

    def __init__(self) -> None:
        self._is_said = False

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _NO_ROOM):
            loop.default_exception_handler(context)
        elif not self._is_said:
            self._is_said = True
            reason = f"{error.strerror}; clients wait until others have gone (ulimit -n sets the most)"
            print(f"note: connections cannot be accepted: {reason}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        is_used = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        advice = "is in use; choose another with --port, or 0 for a free one" if is_used else f"cannot be used: {error}"
        raise MoecError(f"port {port} of {host} {advice}") from error
    with listener:
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux; connections take it from their listener
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _UNREAD_SECONDS)
        yield listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"

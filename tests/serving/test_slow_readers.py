"""Clients that read a stream slowly or not at all: nobody waits for them, and their connections end."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from moec.serving import app, server
from moec.serving.metrics import Metrics

from .served import NAME, Served, served, wait_for

LONG = {"model": NAME, "prompt": "hello there", "max_tokens": 200, "temperature": 1.0, "seed": 1}
"""Text of 200 tokens: its stream is some 40 kB for each choice."""
_BUFFER = 4096
"""Bytes of the kernel's buffers, which by themselves hold megabytes."""


@pytest.fixture
def small_buffers(monkeypatch):
    """Let servers' connections have small buffers."""
    create = socket.create_server

    def created(*arguments, **options):
        listener = create(*arguments, **options)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        return listener

    monkeypatch.setattr(socket, "create_server", created)


@contextlib.contextmanager
def stream(server: Served, **options: object) -> Iterator[socket.socket]:
    """Connection that has asked for a stream, of which nothing is read yet."""
    body = json.dumps({**LONG, "stream": True, **options}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        connection.settimeout(20)
        host, port = urlsplit(server.url).netloc.split(":")
        connection.connect((host, int(port)))
        connection.sendall(f"{head}\r\n\r\n".encode() + body)
        yield connection


def everything(connection: socket.socket) -> bytes:
    """Bytes that are still to be read before the connection ends."""
    parts = []
    with contextlib.suppress(OSError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def statuses(monkeypatch) -> list[int]:
    """Statuses of all answers from here on."""
    told: list[int] = []
    monkeypatch.setattr(Metrics, "answered", lambda self, status: told.append(status))
    return told


def test_who_reads_nothing_holds_up_nobody_and_is_ended(model, small_buffers, monkeypatch):
    told = statuses(monkeypatch)
    monkeypatch.setattr(server, "_UNREAD_SECONDS", 1)
    with served(model, sequences=8) as running, stream(running, n=6) as idle:
        wait_for(lambda: running.scheduler._open == 1 and not running.scheduler._running)
        assert running.send("POST", "/v1/completions", {**LONG, "max_tokens": 5})[0] == 200 and told == [200]
        wait_for(lambda: running.scheduler._open == 0)
        assert b"[DONE]" not in everything(idle)


def test_who_reads_byte_by_byte_holds_up_nobody_and_gets_all(model, small_buffers, monkeypatch):
    told = statuses(monkeypatch)
    monkeypatch.setattr(server, "_UNREAD_SECONDS", 1)
    with served(model, sequences=8) as running, stream(running, n=6) as slow:
        for _ in range(30):
            assert len(slow.recv(1)) == 1
            assert running.send("POST", "/v1/completions", {**LONG, "max_tokens": 1})[0] == 200
        content = b""
        while not content.endswith(b"[DONE]\n\n\r\n0\r\n\r\n"):
            content += slow.recv(2000)
    assert content.count(b'"finish_reason":"') == 6 and told == 31 * [200]


def test_who_reads_too_slowly_is_ended(model, small_buffers, monkeypatch):
    told = statuses(monkeypatch)
    monkeypatch.setattr(app, "_TAIL_SECONDS", 0)
    with served(model, sequences=8, seconds=1) as running, stream(running, n=6) as slow:
        deadline = time.monotonic() + 20
        while not told:
            assert time.monotonic() < deadline and slow.recv(500)
            time.sleep(0.05)
        assert told == [499] and running.scheduler._open == 0

"""A server that may open no more files lets clients wait, and says so in one line."""

from __future__ import annotations

import asyncio
import errno
import socket

from moec.serving.server import _HeardOnce

from .served import served


def test_connections_that_cannot_be_accepted_are_said_once_and_accepted_later(model, monkeypatch, capsys):
    accept, refused = socket.socket.accept, iter(range(3))

    def accepted(listener):
        if next(refused, None) is not None:
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(listener)

    with served(model) as server:
        monkeypatch.setattr(socket.socket, "accept", accepted)
        assert server.send("GET", "/health")[0] == 200
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: connections cannot be accepted: Too many open files; clients wait")


def test_other_errors_are_logged_as_before(caplog):
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(_HeardOnce())
    for error in (ValueError("b"), OSError(errno.EIO, "c")):
        loop.call_exception_handler({"message": "a", "exception": error})
    loop.close()
    assert [record.exc_info[1].args[-1] for record in caplog.records] == ["b", "c"]

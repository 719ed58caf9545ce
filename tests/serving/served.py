"""A server in this process for tests: a small model of letters, and a way to stop it."""

from __future__ import annotations

import contextlib
import http.client
import json
import pathlib
import string
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

import moec
from moec.serving.limits import ServerLimits

from ..runtime.tiny_decoder import VOCABULARY, tiny_decoder

NAME = "letters"
LETTERS = string.ascii_lowercase + " .,!?\n" + string.ascii_uppercase[: VOCABULARY - 34]
TEMPLATE = (
    "{% for message in messages %}{% if message.content == 'refuse' %}{{ raise_exception('no') }}{% endif %}"
    "{{ message.role }} {{ message.content }}.{% endfor %}A "
)


def compiled(folder: pathlib.Path, source: Any = None, vocabulary: int = VOCABULARY) -> moec.CompiledModel:
    """Compile a decoder with a token for each letter, an end of text, a chat template and a program for batches.

    ``source``: of a decoder with ``vocabulary`` tokens; None for the tiny one, one layer of which has a window."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = {letter: token for token, letter in enumerate(LETTERS[: vocabulary - 2])}
    built = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={**letters, "?u": len(letters)}, merges=[]))
    built.decoder = tokenizers.decoders.Fuse()
    built.add_special_tokens(["</s>"])
    built.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    source = tiny_decoder() if source is None else source
    return moec.compile(source, tokenizer=folder / "tokenizer.json", batches=True)


class Served:
    """A running server. ``scheduler``: its scheduler."""

    def __init__(self, url: str, stop: Callable[[], None], thread: threading.Thread, scheduler: Any) -> None:
        self.url, self.stop, self.thread, self.scheduler = url, stop, thread, scheduler

    def client(self, **options: Any) -> Any:
        openai = pytest.importorskip("openai")
        return openai.OpenAI(
            **{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "timeout": 20, **options}
        )

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Send a request as it is. Returns the status and the answer, which is JSON."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=20)
        content = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with contextlib.closing(connection):
            connection.request(method, path, content, {"content-type": "application/json", **named})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())


@contextlib.contextmanager
def served(model: moec.CompiledModel, key: str | None = None, **limits: int) -> Iterator[Served]:
    """Context of a server on a free port, which is stopped at its end."""
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    pytest.importorskip("prometheus_client")
    from moec.serving import server

    stops: list[Callable[[], None]] = []
    schedulers: list[Any] = []
    addresses: list[str] = []
    started = threading.Event()

    @contextlib.contextmanager
    def told_to_stop(stop: Callable[[], None]) -> Iterator[None]:
        stops.append(stop)
        yield

    def begin(address: str) -> None:
        addresses.append(address)
        started.set()

    class Kept(server.Scheduler):
        def __init__(self, *arguments: Any) -> None:
            schedulers.append(self)
            super().__init__(*arguments)

    def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(server, "Scheduler", Kept)
            server.serve(
                model,
                name=NAME,
                host="127.0.0.1",
                port=0,
                key=key,
                limits=ServerLimits(**limits),
                told_to_stop=told_to_stop,
                on_start=begin,
            )

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(20)
    try:
        yield Served(addresses[0], stops[0], thread, schedulers[0])
    finally:
        stops[0]()
        thread.join(20)
        assert not thread.is_alive()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Gate:
    """Steps of a server that run one for each ``open``; ``steps`` counts them."""

    def __init__(self, server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        self._turns, self._batch, self.steps = threading.Semaphore(0), server.scheduler._batch, 0
        self._step = self._batch.step
        monkeypatch.setattr(self._batch, "step", self._gated)

    def open(self, steps: int) -> None:
        self._turns.release(steps)

    def is_free(self) -> bool:
        """Whether no sequence and no page is in use."""
        return len(self._batch) == 0 and self._batch.free_pages == self._batch.pages

    def _gated(self) -> Any:
        if len(self._batch):
            assert self._turns.acquire(timeout=20)
            self.steps += 1
        return self._step()

"""Compare moec serve with the batch that it drives: time of a processor, tokens per second, first tokens, memory.

    python benchmarks/serving.py model.moec                                  # compiled with --batches
    python benchmarks/serving.py model.moec --peer http://127.0.0.1:8080     # llama-server with the same model

The library is :meth:`moec.CompiledModel.batch` in this process with the same prompts; it takes the most likely token,
as the server is asked to, so both make the same texts. This process is the server's client, too, by HTTP. All take
turns in each round, and ratios are of one round, because other processes share the cores.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from results import print_rows

import moec
from moec.runtime.text_codec import TextCodec

SIZES = (1, 2, 4, 8)
Messages = list[dict[str, str]]
_CAPACITY = 32_768
"""Tokens of a batch, as many as moec serve holds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=32, help="of each text")
    parser.add_argument("--prefix", type=int, default=2048, help="tokens of the prompt that texts share")
    parser.add_argument("--requests", type=int, default=1000, help="for the memory of the server; 0 for none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer", help="URL of a server of OpenAI's API to compare with")
    options = parser.parse_args()
    model = moec.load(options.model, threads=options.threads)
    with started(options.model, options.threads) as server:
        peer = None if options.peer is None else Server(options.peer)
        print_rows([chats(model, server, peer, size, options) for size in SIZES])
        print_rows(first_tokens(TextCodec(model.artifact), server, options))
        if options.requests:
            print_rows(memory(server, options.requests))


class Server:
    """A server of OpenAI's API at ``url``. ``process``: its number where it runs here."""

    def __init__(self, url: str, process: int | None = None) -> None:
        self._place, self._process = urlsplit(url).netloc, process
        with contextlib.closing(self._connection()) as connection:
            connection.request("GET", "/v1/models")
            self._model = json.loads(connection.getresponse().read())["data"][0]["id"]

    def tokens(self, messages: Messages, tokens: int) -> int:
        """Stream a text of the most likely tokens, at most ``tokens``, and return their number."""
        asked = {"model": self._model, "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True}
        body = json.dumps({**asked, "stream_options": {"include_usage": True}})
        with contextlib.closing(self._connection()) as connection:
            connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            parts = [line.removeprefix(b"data: ") for line in answer if line.startswith(b"data: {")]
        try:
            return json.loads(parts[-1])["usage"]["completion_tokens"]
        except (LookupError, TypeError):
            raise SystemExit(f"{self._place} answers with status {answer.status}: {parts[-1:]}") from None

    def processor_seconds(self) -> float:
        """Time of processors that it used so far, with the processes that it started; 0 where it does not run here."""
        if self._process is None:
            return 0.0
        children = pathlib.Path(f"/proc/{self._process}/task/{self._process}/children").read_text().split()
        return sum(map(_processor_seconds, [str(self._process), *children]))

    def memory_mb(self) -> float:
        """Resident memory."""
        pages = int(pathlib.Path(f"/proc/{self._process}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 1e6

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._place, timeout=600)


def _processor_seconds(process: str) -> float:
    """Time of a process in user and system mode, and of its children that have ended."""
    try:
        content = pathlib.Path(f"/proc/{process}/stat").read_text()
    except OSError:  # it has ended
        return 0.0
    return sum(map(int, content.rpartition(")")[2].split()[11:15])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def started(artifact: pathlib.Path, threads: int) -> Iterator[Server]:
    """Context of moec serve on a free port."""
    command = [sys.executable, "-m", "moec", "serve", str(artifact), "--port", "0", "--threads", str(threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Server(process.stdout.readline().split()[-1], process.pid)
        finally:
            process.terminate()


def chats(
    model: moec.CompiledModel, server: Server, peer: Server | None, size: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Row of several chats at once: milliseconds of a processor per token, and tokens per second."""
    codec, batch = TextCodec(model.artifact), model.batch(size, _CAPACITY)
    contestants: dict[str, Callable[[list[Messages]], tuple[int, float, float]]] = {
        "library": lambda talks: by_library(batch, codec, talks, options.tokens),
        "server": lambda talks: by_server(server, talks, options.tokens),
    }
    if peer is not None:
        contestants["peer"] = lambda talks: by_server(peer, talks, options.tokens)
    figures: dict[str, list[tuple[int, float, float]]] = {name: [] for name in contestants}
    for turn in range(options.rounds + 1):
        # what was computed of earlier prompts stays, so these are others
        stories = [f"Tell {size} stories about the number {1000 * turn + place}." for place in range(size)]
        talks = [[{"role": "user", "content": story}] for story in stories]
        for name, ask in contestants.items():
            outcome = ask(talks)
            if turn:  # the first round warms up
                figures[name].append(outcome)
    pairs = list(zip(figures["library"], figures["server"], strict=True))
    if any(library[0] != served[0] for library, served in pairs):
        raise SystemExit(f"the server makes other texts than the library: {pairs}")
    row: dict[str, Any] = {"chats": size}
    row |= {
        f"{name}, ms/token": _least_and_median([1e3 * used / count for count, used, _ in figures[name]])
        for name in ("library", "server")
    }
    row["server / library"] = _least_and_median([served[1] / library[1] for library, served in pairs])
    for name, own in figures.items():
        row[f"{name}, tokens/s"] = _least_and_median([count / seconds for count, _, seconds in own], most=True)
    return row


def by_library(batch: moec.Batch, codec: TextCodec, talks: Sequence[Messages], tokens: int) -> tuple[int, float, float]:
    """Continue chats by a batch. Returns the number of tokens, and seconds of the processor and of real time, without
    those that make tokens of the text."""
    prompts = codec.encode_chats(talks)
    used, start, count = time.process_time(), time.perf_counter(), 0
    left = dict.fromkeys([batch.add(prompt) for prompt in prompts], tokens)
    while left:
        for number, logits in batch.step().items():
            token = int(logits[-1].argmax())
            left[number] -= 1
            count += token not in codec.end_ids
            if token in codec.end_ids or not left[number]:
                batch.remove(number)
                del left[number]
            else:
                batch.extend(number, np.array([token]))
    return count, time.process_time() - used, time.perf_counter() - start


def by_server(server: Server, talks: Sequence[Messages], tokens: int) -> tuple[int, float, float]:
    """Continue chats side by side. Returns as :func:`by_library`."""
    used, start = server.processor_seconds(), time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(len(talks)) as threads:
        count = sum(threads.map(lambda talk: server.tokens(talk, tokens), talks))
    return count, server.processor_seconds() - used, time.perf_counter() - start


def first_tokens(codec: TextCodec, server: Server, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the time to a first token: behind a system message that the first round has computed, and without one."""
    words = "seven wise owls watch the quiet river from an old stone bridge while the night wind moves slowly "
    shared = {"role": "system", "content": codec.decode(codec.encode(words * options.prefix)[: options.prefix])}
    kinds: dict[str, Messages] = {f"behind {options.prefix} tokens": [shared], "alone": []}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for place in range(options.rounds + 1):
        for name, begin in kinds.items():
            question = {"role": "user", "content": f"What is {place} times {place + 7}?"}
            used, start = server.processor_seconds(), time.perf_counter()
            server.tokens([*begin, question], 1)
            if place:
                seconds[name].append((time.perf_counter() - start, server.processor_seconds() - used))
    return [
        {
            "first token": name,
            "ms": _least_and_median([1e3 * real for real, _ in pairs]),
            "ms of a processor": _least_and_median([1e3 * used for _, used in pairs]),
        }
        for name, pairs in seconds.items()
    ]


def memory(server: Server, requests: int) -> list[dict[str, Any]]:
    """Rows of the server's resident memory after each tenth of the requests, 6 at a time."""
    rows = []
    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        for tenth in range(1, 11):
            places = range(requests * (tenth - 1) // 10, requests * tenth // 10)
            talks = [[{"role": "user", "content": f"{place} " * (1 + place % 50)}] for place in places]
            list(threads.map(lambda talk: server.tokens(talk, 3), talks))
            rows.append({"requests": places.stop, "MB": server.memory_mb()})
    return rows


def _least_and_median(numbers: Sequence[float], *, most: bool = False) -> str:
    """The best number, which is the least one or the greatest, and the median."""
    best = max(numbers) if most else min(numbers)
    return f"{best:.3g} / {statistics.median(numbers):.3g}"


if __name__ == "__main__":
    main()

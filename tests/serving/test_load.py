"""moec serve with more clients than it computes texts for: some leave, and the server is told to stop."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import re
import subprocess
import time
import urllib.request

import pytest

import moec

from ..command import START
from ..runtime.tiny_decoder import VOCABULARY
from .served import NAME, Served, served, wait_for

openai = pytest.importorskip("openai")
CLIENTS, END = 32, str(VOCABULARY - 1)


@pytest.mark.parametrize(("rounds", "tokens"), [(1, 12), pytest.param(6, 60, marks=pytest.mark.nightly)])
def test_thirty_two_clients_of_which_some_leave(model, rounds, tokens):
    def ask(server: Served, client: openai.OpenAI, place: int) -> None:
        asked = {"model": NAME, "prompt": "ab" * (place + 1), "temperature": 1.0, "max_tokens": tokens}
        for seed in range(rounds):
            with client.completions.create(stream=True, seed=seed, **asked) as stream:
                parts = list(itertools.islice(stream, 3 if (place + seed) % 3 == 0 else None))
            if (place + seed) % 3:
                (expected,) = moec.generate(model, asked["prompt"], temperature=1.0, seed=seed, max_new_tokens=tokens)
                assert "".join(part.choices[0].text for part in parts) == expected.text
            server.send("POST", "/v1/completions", b"{" * place)

    with served(model, tokens=8 * 256) as server, concurrent.futures.ThreadPoolExecutor(CLIENTS) as threads:
        client = server.client(timeout=60)
        list(threads.map(ask, itertools.repeat(server), itertools.repeat(client), range(CLIENTS)))
        batch = server.scheduler._batch
        wait_for(lambda: len(batch) == 0 and batch.free_pages == batch.pages and server.scheduler._open == 0)


def outcome(client: openai.OpenAI, seed: int, tokens: int) -> str:
    """Whether a text without end is whole, cut off by the error of a server that stops, or refused."""
    text, reasons = "", []
    asked = {"model": NAME, "prompt": "a", "seed": seed, "max_tokens": tokens, "logit_bias": {END: -100}}
    try:
        for part in client.completions.create(stream=True, **asked):
            text += part.choices[0].text
            reasons.append(part.choices[0].finish_reason)
    except openai.APIConnectionError:  # it came after the signal
        assert not text
        return "refused"
    except openai.APIError as error:
        assert "the server is stopping" in str(error)
        return "cut" if text else "refused"
    assert reasons[-1] == "length" and len(reasons) > tokens
    return "whole"


@pytest.mark.parametrize(("grace", "tokens", "kind"), [(1, 1900, "cut"), (20, 300, "whole")])
def test_sigterm_ends_each_of_thirty_two_streams(model, tmp_path, grace, tokens, kind):
    """Texts in progress are whole or end with the error, those that wait are refused, and nothing is printed."""
    model.save(tmp_path / "letters.moec")
    arguments = [*START, "serve", tmp_path / "letters.moec", "--port", 0, "--grace", grace, "--max-new-tokens", 1900]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen(list(map(str, arguments)), **pipes) as server,
        concurrent.futures.ThreadPoolExecutor(CLIENTS) as threads,
    ):
        try:
            url = server.stdout.readline().split()[-1]
            client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
            outcomes = [threads.submit(outcome, client, seed, tokens) for seed in range(CLIENTS)]
            wait_for(lambda: requests(url, "running") == 8 and requests(url, "waiting") >= 8)
            server.terminate()
            told = time.monotonic()
            assert (server.wait(40), server.stdout.read(), server.stderr.read()) == (0, "", "")
            assert time.monotonic() - told < grace + 5
            kinds = collections.Counter(text.result() for text in outcomes)
        finally:
            server.kill()
    assert kinds[kind] == 8 and kinds["refused"] >= 8


def requests(url: str, state: str) -> float:
    """Number of requests that are ``running`` or ``waiting``."""
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/metrics", timeout=20) as answer:
        (number,) = re.findall(rf"^moec_requests_{state} (\S+)$", answer.read().decode(), re.MULTILINE)
    return float(number)

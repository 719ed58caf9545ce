"""Metrics of a server, as Prometheus reads them."""

from __future__ import annotations

import threading
import urllib.request

import pytest

from .served import NAME, Gate, Served, served, wait_for

openai = pytest.importorskip("openai")


def metrics(server: Served) -> dict[tuple[str, ...], float]:
    """Values by the name of the sample and those of its labels."""
    from prometheus_client.parser import text_string_to_metric_families

    request = urllib.request.Request(f"{server.url}/metrics")
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.headers["content-type"].startswith("text/plain")
        families = text_string_to_metric_families(answer.read().decode())
    samples = (sample for family in families for sample in family.samples)
    return {(sample.name.removeprefix("moec_"), *sample.labels.values()): sample.value for sample in samples}


def test_requests_tokens_and_times_are_counted(model):
    with served(model, tokens=5 * 256) as server:
        before = metrics(server)
        assert not any(name[0] == "requests_total" for name in before) and before["generated_tokens_total",] == 0
        client, asked = server.client(), {"model": NAME, "temperature": 1.0, "seed": 1}
        texts = [client.completions.create(prompt="hello there", max_tokens=count, **asked) for count in (1, 7)]
        list(client.completions.create(prompt="hello there", max_tokens=3, stream=True, **asked))
        with pytest.raises(openai.BadRequestError):
            client.completions.create(prompt="hello there", max_tokens=0, **asked)
        with pytest.raises(openai.NotFoundError):
            client.completions.create(prompt="hello there", **{**asked, "model": "other"})
        for _ in range(2):  # the second takes the first two blocks of 16 tokens of the first
            client.completions.create(prompt=[*range(3, 45)], max_tokens=1, **asked)
        server.send("GET", "/v1/models")
        wait_for(lambda: metrics(server).get(("requests_total", "200")) == 5)
        after = metrics(server)
    assert (after["requests_total", "400"], after["requests_total", "404"]) == (1, 1)
    new = 5 + sum(text.usage.completion_tokens for text in texts)
    assert (after["prompt_tokens_total",], after["generated_tokens_total",]) == (33 + 2 * 42, new)
    assert after["reused_prompt_tokens_total",] == 32
    assert after["time_to_first_token_seconds_count",] == 5
    assert after["time_between_tokens_seconds_count",] == new - 5
    assert 0 < after["time_between_tokens_seconds_sum",] < 20
    assert [after[f"pages_{name}",] for name in ("used", "free")] == [0, 5]


def test_what_waits_runs_and_holds_pages_is_shown_and_who_goes_is_counted(model, monkeypatch):
    with served(model, sequences=1, tokens=5 * 256) as server:
        gate = Gate(server, monkeypatch)
        gate.open(3)
        asked = {"model": NAME, "prompt": "hello there", "temperature": 1.0, "seed": 1, "stream": True}
        stream = server.client().completions.create(max_tokens=200, **asked)
        next(iter(stream))
        with pytest.raises(openai.APITimeoutError):
            server.client(timeout=0.3).completions.create(max_tokens=200, **asked)
        other = server.client(timeout=20)
        waiting = threading.Thread(target=lambda: list(other.completions.create(max_tokens=1, **asked)))
        waiting.start()
        wait_for(lambda: metrics(server)["requests_waiting",] == 1)
        during = metrics(server)
        assert [during[name,] for name in ("requests_running", "pages_used", "pages_free")] == [1, 1, 4]
        stream.close()
        gate.open(200)
        waiting.join(20)
        wait_for(lambda: metrics(server).get(("requests_total", "499")) == 2)
        after = metrics(server)
    assert [after[f"requests_{name}",] for name in ("waiting", "running")] == [0, 0]


def test_metrics_need_the_key(model):
    with served(model, key="secret") as server:
        assert server.send("GET", "/metrics")[0] == 401
        request = urllib.request.Request(f"{server.url}/metrics", headers={"authorization": "Bearer secret"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert b"moec_pages_free" in answer.read()

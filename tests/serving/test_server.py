"""moec serve, with OpenAI's own client and with malformed requests."""

from __future__ import annotations

import concurrent.futures
import socket
import subprocess
import threading
import time
from urllib.parse import urlsplit

import pytest

import moec
from moec.common.errors import MoecError, UnsupportedError

from ..command import START
from ..command import moec as command
from .served import NAME, Gate, served, wait_for

openai = pytest.importorskip("openai")
CHAT = [{"role": "user", "content": "hello there"}]
LONG = {"prompt": "hello there", "temperature": 1.0, "seed": 1}
"""Options of a text that does not end before 200 tokens."""
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def running(model):
    with served(model, new_tokens=300, tokens=16 * 256, body_bytes=10_000) as server:
        yield server


def alone(model: moec.CompiledModel, prompts: object, **options: object) -> moec.Generation:
    return moec.generate(model, prompts, **options)[0]


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1.5, "seed": 3, "top_p": 0.9}])
def test_texts_are_those_of_generate(model, running, options):
    client = running.client()
    expected = alone(model, "hello", max_new_tokens=20, **options)
    actual = client.completions.create(model=NAME, prompt="hello", max_tokens=20, **options)
    assert (actual.choices[0].text, actual.usage.completion_tokens) == (expected.text, len(expected.ids))
    assert actual.usage.total_tokens == len(expected.ids) + expected.prompt_tokens
    expected = alone(model, CHAT, max_new_tokens=20, **options)
    chat = client.chat.completions.create(model=NAME, messages=CHAT, max_completion_tokens=20, **options)
    assert chat.choices[0].message.content == expected.text and chat.usage.prompt_tokens == expected.prompt_tokens


def test_a_prompt_of_token_ids_and_options_that_openai_lacks(model, running):
    options = {"top_k": 5, "min_p": 0.01, "repetition_penalty": 1.2}
    expected = alone(model, [3, 4, 5], max_new_tokens=9, temperature=0.7, seed=2, **options)
    client = running.client()
    asked = {"model": NAME, "max_tokens": 9, "temperature": 0.7, "seed": 2, "extra_body": options}
    for prompt in ([3, 4, 5], [[3, 4, 5]]):
        assert client.completions.create(prompt=prompt, **asked).choices[0].text == expected.text


def test_a_stream_adds_up_to_the_whole(model, running):
    client, options = running.client(), {"model": NAME, "max_tokens": 30, "temperature": 1.0, "seed": 1}
    whole = client.chat.completions.create(messages=CHAT, **options)
    parts = list(
        client.chat.completions.create(messages=CHAT, stream=True, stream_options={"include_usage": True}, **options)
    )
    assert parts[-1].usage.total_tokens == whole.usage.total_tokens and not parts[-1].choices
    choices = [part.choices[0] for part in parts[:-1]]
    assert choices[0].delta.role == "assistant" and len(choices) > 3
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == [whole.choices[0].finish_reason]
    parts = list(client.completions.create(prompt="hello", stream=True, **options))
    text = client.completions.create(prompt="hello", **options).choices[0].text
    assert "".join(part.choices[0].text for part in parts) == text and parts[-1].usage is None


def test_the_next_message_of_a_chat_takes_what_was_computed(model, running):
    client, asked = running.client(), {"model": NAME, "temperature": 0.0, "max_tokens": 6}
    chat = [{"role": "user", "content": "what the server has not read yet " * 9}]
    first = client.chat.completions.create(messages=chat, **asked)
    answer = {"role": "assistant", "content": first.choices[0].message.content}
    chat = [*chat, answer, {"role": "user", "content": "and now something else"}]
    second = client.chat.completions.create(messages=chat, **asked)
    assert second.choices[0].message.content == alone(model, chat, max_new_tokens=6, temperature=0.0).text
    assert first.usage.prompt_tokens_details.cached_tokens < 16
    assert 0 <= first.usage.prompt_tokens - second.usage.prompt_tokens_details.cached_tokens < 16 + 9


def test_what_ends_a_text(model, running):
    client = running.client()
    text = alone(model, max_new_tokens=20, prompts=LONG["prompt"], temperature=1.0, seed=1).text
    length = client.completions.create(model=NAME, max_tokens=20, **LONG).choices[0]
    assert (length.text, length.finish_reason) == (text, "length")
    stopped = client.completions.create(model=NAME, max_tokens=20, stop=[text[4:6], "€"], **LONG).choices[0]
    assert (stopped.text, stopped.finish_reason) == (text[: text.index(text[4:6])], "stop")
    without = client.completions.create(model=NAME, **LONG)
    assert without.usage.completion_tokens == 300 or without.choices[0].finish_reason == "stop"


def test_several_at_once_have_the_texts_of_each_alone(model, running):
    prompts = {seed: "abcdefghij "[: seed + 1] * (1 + 20 * (seed == 3)) for seed in range(8)}
    client = running.client()

    def text(seed: int) -> str:
        asked = {"model": NAME, "prompt": prompts[seed], "seed": seed, "temperature": 1.0, "max_tokens": 15 + seed}
        return client.completions.create(**asked).choices[0].text

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        actual = dict(zip(prompts, threads.map(text, prompts), strict=True))
    for seed, prompt in prompts.items():
        expected = alone(model, prompt, seed=seed, temperature=1.0, max_new_tokens=15 + seed)
        assert actual[seed] == expected.text


REFUSED = [
    *({"tool_choice": "required"}, {"tool_choice": "often"}, {"temprature": 1}),
    *({"prompt": "a"}, {"n": 0}, {"n": 9}, {"n": 1000}, {"n": True}, {"logprobs": 1}, {"top_logprobs": 2}),
    *({"presence_penalty": 2.1}, {"frequency_penalty": "a"}, {"logit_bias": {"a": 1}}, {"logit_bias": {"1": 101}}),
    *(
        {"logit_bias": []},
        {"logit_bias": {"1": None}},
        {"logit_bias": dict.fromkeys(map(str, range(501)), 1)},
        {"logit_bias": {"50": 1}},
    ),
    *({"temperature": -1}, {"temperature": "hot"}, {"top_p": 0}, {"top_k": 1.5}, {"seed": -1}, {"seed": 1 << 70}),
    *({"max_tokens": 0}, {"max_tokens": 301}, {"max_tokens": True}, {"stop": ""}, {"stop": ["a"] * 5}, {"stop": [1]}),
    *({"stream": 1}, {"stream_options": {"include_usage": True}}, {"messages": []}, {"messages": "hi"}),
]


@pytest.mark.parametrize("wrong", REFUSED, ids=lambda wrong: str(wrong)[:40])
def test_a_wrong_parameter_is_named(running, wrong):
    status, answer = running.send("POST", CHATS, {"model": NAME, "messages": CHAT, "max_completion_tokens": 1, **wrong})
    (name,) = wrong
    assert status == 400 and answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"] == name and name in answer["error"]["message"]


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ("hi", "messages[0]"),
        ({"role": "cook", "content": "a"}, "messages[0].role"),
        ({"role": "user", "content": "a", "tool_calls": [1]}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": [1]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "content": None}, "messages[0].content"),
        ({"role": "tool", "content": "a", "tool_call_id": 3}, "messages[0].tool_call_id"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content"),
        ({"role": "user", "content": "a", "name": "b"}, "messages[0].name"),
    ],
)
def test_a_wrong_message_is_named(running, message, place):
    status, answer = running.send("POST", CHATS, {"model": NAME, "messages": [message]})
    assert (status, answer["error"]["param"]) == (400, place)


@pytest.mark.parametrize(
    ("where", "name", "missing"),
    [(CHATS, "messages", "1 or more messages"), (COMPLETIONS, "prompt", "1 or more token")],
)
def test_an_empty_list_says_what_is_missing(running, where, name, missing):
    status, answer = running.send("POST", where, {"model": NAME, name: []})
    assert (status, answer["error"]["param"]) == (400, name) and missing in answer["error"]["message"]


def test_values_that_ask_for_nothing_are_served(model, running):
    neutral = {"n": 1, "logprobs": False, "tools": [], "presence_penalty": 0, "response_format": {"type": "text"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "hello "}, {"type": "text", "text": "there"}]}]
    asked = {"model": NAME, "messages": messages, "temperature": 0, "max_tokens": 5, "stop": None, "user": "me"}
    status, answer = running.send("POST", CHATS, {**asked, **neutral})
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == alone(model, CHAT, max_new_tokens=5).text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        *((b"", 400), (b"{", 400), (b"[]", 400), (b"null", 400), (b"\xff", 400), (b'{"seed": NaN}', 400)),
        *((b"[" * 5000, 400), (b'{"seed": ' + b"1" * 6000 + b"}", 400), (b" " * 10_001, 413), (b"{}", 400)),
        (b'{"model": "\\ud800", "prompt": "a"}', 400),
        (b'{"model": "other", "prompt": "a"}', 404),
        (b'{"model": "letters", "prompt": "a", "seed": 1, "seed": 1}', 400),
        (b'{"model": "letters", "prompt": "a", "metadata": {"a": 1, "a": 2}}', 400),
        (b'{"model": "letters", "prompt": "a", "metadata": [[-Infinity]]}', 400),
        (b'{"model": "letters", "prompt": "\\ud800"}', 400),
        (b'{"model": "letters", "prompt": ""}', 400),
        (b'{"model": "letters", "prompt": [77]}', 400),
        (b'{"model": "letters", "prompt": ["a", "b"]}', 400),
    ],
)
def test_malformed_bodies_are_refused(running, body, status):
    actual, answer = running.send("POST", COMPLETIONS, body)
    assert actual == status and answer["error"]["message"]


def test_a_client_that_goes_before_its_body_is_there_leaves_no_trace(running, caplog):
    host, port = urlsplit(running.url).netloc.split(":")
    head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
    for sent in (head, b"\0\r\n\r\n"):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(sent)
    assert running.send("GET", "/health")[0] == 200
    assert not caplog.records


def test_other_addresses_methods_and_types_are_refused(running):
    assert running.send("GET", "/v1/nothing")[0] == 404
    assert running.send("GET", COMPLETIONS)[0] == 405
    assert running.send("POST", COMPLETIONS, b"{}", content_type="text/plain")[0] == 415
    assert running.send("GET", "/health") == (200, {"status": "ok"})
    assert [entry.id for entry in running.client().models.list()] == [NAME]
    assert running.client().models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        running.client().models.retrieve("other")


def test_a_template_that_refuses_and_prompts_that_are_too_long(running):
    client = running.client()
    with pytest.raises(openai.BadRequestError, match=r"chat template fails: .*no"):
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "refuse"}])
    with pytest.raises(openai.BadRequestError, match="the prompt has 5000 tokens"):
        client.completions.create(model=NAME, prompt="a" * 5000)
    with pytest.raises(openai.BadRequestError, match="max_tokens is 300; after 3900 of the prompt 196"):
        client.completions.create(model=NAME, prompt="a" * 3900, max_tokens=300)


def test_a_text_is_not_longer_than_the_model_was_trained_for(model, monkeypatch):
    monkeypatch.setattr(model.artifact.manifest.text, "context", 30)
    with served(model) as server:
        client, asked = server.client(), {"model": NAME, "seed": 1, "temperature": 1.0}
        with pytest.raises(openai.BadRequestError, match="30 tokens, and the model was trained for texts of 30"):
            client.completions.create(prompt="a" * 30, **asked)
        with pytest.raises(openai.BadRequestError, match="max_tokens is 20; after 11 of the prompt 19 are left"):
            client.completions.create(prompt="hello there", max_tokens=20, **asked)
        assert client.completions.create(prompt="hello there", max_tokens=19, **asked).usage.completion_tokens == 19
        assert client.completions.create(prompt="hello there", **asked).usage.completion_tokens == 19


def test_a_key_is_asked_for(model):
    with served(model, key="secret") as server:
        for key in ("wrong", "secre", "sécret"):
            assert server.send("GET", "/v1/models", authorization=f"Bearer {key}")[0] == 401
        assert server.send("POST", COMPLETIONS, b"{")[0] == 401 and server.send("GET", "/health")[0] == 200
        with pytest.raises(openai.AuthenticationError):
            server.client().completions.create(model=NAME, prompt="a")
        assert server.client(api_key="secret").completions.create(model=NAME, prompt="a", max_tokens=2)


def test_a_full_server_refuses_and_one_that_stops(model, monkeypatch):
    with served(model, sequences=1, waiting=1) as server, concurrent.futures.ThreadPoolExecutor(2) as threads:
        gate, client = Gate(server, monkeypatch), server.client()
        ask = {"model": NAME, "max_tokens": 3, **LONG}
        texts = [threads.submit(client.completions.create, **ask) for _ in range(2)]
        wait_for(lambda: server.scheduler._open == 2)
        with pytest.raises(openai.RateLimitError):
            client.completions.create(**ask)
        gate.open(6)
        assert len({text.result().choices[0].text for text in texts}) == 1
        gate.open(3)
        assert client.completions.create(**ask)
        server.scheduler.stop()
        assert server.send("GET", "/health") == (503, {"status": "stopping"})
        with pytest.raises(openai.InternalServerError, match="the server is stopping"):
            client.completions.create(**ask)


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_goes_frees_its_sequence(model, monkeypatch, streams):
    with served(model, sequences=1, new_tokens=200) as server:
        gate = Gate(server, monkeypatch)
        ask = {"model": NAME, "max_tokens": 200, **LONG}
        if streams:
            gate.open(4)
            stream = server.client().completions.create(stream=True, **ask)
            next(iter(stream))
            stream.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                server.client(timeout=0.3).completions.create(**ask)
        wait_for(lambda: server.scheduler._open == 0)
        gate.open(200)
        wait_for(gate.is_free)
        assert gate.steps <= 5


def test_a_request_that_takes_too_long_ends(model, monkeypatch):
    with served(model, seconds=1) as server:
        gate = Gate(server, monkeypatch)
        timer = threading.Timer(1.2, gate.open, [1])
        timer.start()
        with pytest.raises(openai.InternalServerError, match="longer than 1 s"):
            server.client().completions.create(model=NAME, **LONG)
        timer.join()
        wait_for(gate.is_free)


def test_a_stop_ends_streams_that_go_on_for_longer_than_grace(model, monkeypatch):
    with served(model, grace_seconds=1) as server:
        step = server.scheduler._batch.step
        monkeypatch.setattr(server.scheduler._batch, "step", lambda: (time.sleep(0.02), step())[1])
        stream = server.client().completions.create(model=NAME, stream=True, max_tokens=200, **LONG)
        next(iter(stream))
        server.stop()
        with pytest.raises(openai.APIError, match="the server is stopping"):
            list(stream)
        server.thread.join(20)
        assert not server.thread.is_alive()


def test_a_second_stop_does_not_wait_for_streams(model, monkeypatch):
    with served(model) as server:
        gate = Gate(server, monkeypatch)
        gate.open(4)
        stream = server.client().completions.create(model=NAME, stream=True, **LONG)
        next(iter(stream))
        server.stop()
        server.thread.join(0.3)
        assert server.thread.is_alive()
        server.stop()
        server.thread.join(20)
        assert not server.thread.is_alive()
        gate.open(300)


def test_a_failure_of_the_model_is_told_and_the_server_goes_on(model, monkeypatch):
    with served(model) as server:
        with (
            monkeypatch.context() as patch,
            pytest.raises(openai.InternalServerError, match="the model failed: broken"),
        ):
            patch.setattr(server.scheduler._batch, "step", lambda: (_ for _ in ()).throw(ValueError("broken")))
            server.client().completions.create(model=NAME, prompt="a")
        assert server.client().completions.create(model=NAME, prompt="a", max_tokens=2)


def test_sigterm_lets_streams_end(model, tmp_path):
    model.save(tmp_path / "letters.moec")
    arguments = [*START, "serve", tmp_path / "letters.moec", "--port", "0"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline()
            assert line.startswith(f"serving {NAME} at http://127.0.0.1:")
            client = openai.OpenAI(base_url=line.split()[-1], api_key="none", max_retries=0, timeout=20)
            stream = client.completions.create(model=NAME, stream=True, max_tokens=200, **LONG)
            text = next(iter(stream)).choices[0].text
            server.terminate()
            text += "".join(part.choices[0].text for part in stream)
            assert text == alone(model, LONG["prompt"], max_new_tokens=200, temperature=1.0, seed=1).text
            assert (server.wait(20), server.stdout.read(), server.stderr.read()) == (0, "", "")
        finally:
            server.kill()
    with pytest.raises(openai.APIConnectionError):
        client.models.list()


def test_what_cannot_be_served_is_one_line(model, tmp_path, monkeypatch):
    model.save(tmp_path / "letters.moec")
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = command("serve", tmp_path / "letters.moec", "--port", other.getsockname()[1])
    assert (
        done.returncode == 2 and done.stderr.count("\n") == 1 and "is in use; choose another with --port" in done.stderr
    )
    done = command("serve", tmp_path / "letters.moec", "--host", "no.such.host.invalid", "--port", 0)
    assert done.returncode == 2 and "cannot be used" in done.stderr
    done = command("serve", tmp_path / "letters.moec", "--port", 0, "--api-key", "")
    assert done.returncode == 2 and "the API key is empty" in done.stderr
    for field, kind, message in (
        ("batch", UnsupportedError, r"compile it with batches \(moec compile --batches\)"),
        ("text", MoecError, "holds no tokenizer; compile the model with --tokenizer"),
    ):
        without = moec.load(tmp_path / "letters.moec")
        monkeypatch.setattr(without.artifact.manifest, field, None)
        from moec.serving.limits import ServerLimits
        from moec.serving.server import serve

        options = {"name": NAME, "host": "127.0.0.1", "port": 0, "key": None, "limits": ServerLimits()}
        with pytest.raises(kind, match=message):
            serve(without, **options, told_to_stop=None, on_start=None)

"""The benchmark of the server: its client and its tables, on a model of letters."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys

import pytest

import moec
from moec.runtime.text_codec import TextCodec

from ..serving.served import compiled, served

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))

import serving

OPTIONS = argparse.Namespace(rounds=2, tokens=6, prefix=300)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> moec.CompiledModel:
    return compiled(tmp_path_factory.mktemp("letters"))


@pytest.mark.nightly
def test_rows_of_a_server(model):
    with served(model) as running:
        server = serving.Server(running.url, os.getpid())
        row = serving.chats(model, server, serving.Server(running.url), 2, OPTIONS)
        texts = [name for name in row if name.endswith("tokens/s")]
        assert row["chats"] == 2 and texts == [f"{name}, tokens/s" for name in ("library", "server", "peer")]
        assert all(float(number) > 0 for name in texts for number in row[name].split(" / "))
        behind, alone = serving.first_tokens(TextCodec(model.artifact), server, OPTIONS)
        assert behind["first token"] == "behind 300 tokens" and alone["first token"] == "alone"
        rows = serving.memory(server, 20)
        assert [row["requests"] for row in rows] == [*range(2, 21, 2)] and rows[0]["MB"] > 10


def test_a_server_that_makes_other_texts_is_no_comparison(model, monkeypatch):
    with served(model) as running:
        server = serving.Server(running.url, os.getpid())
        monkeypatch.setattr(server, "tokens", lambda talk, tokens: tokens - 1)
        with pytest.raises(SystemExit, match="makes other texts than the library"):
            serving.chats(model, server, None, 1, OPTIONS)


def test_a_refusal_of_the_server_is_told(model):
    with served(model, tokens=256) as running, pytest.raises(SystemExit, match="answers with status 400"):
        serving.Server(running.url).tokens([{"role": "user", "content": "a" * 300}], 2)


def test_a_process_that_has_ended_used_no_time():
    assert serving._processor_seconds("0") == 0.0 and serving._processor_seconds(str(os.getpid())) > 0

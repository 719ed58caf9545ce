"""moec generate: text on standard output, and one line on stderr for whatever is wrong."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.runtime.bigrams import model_of

from ..command import START, moec
from .test_cli import assert_refused

NOTE = "note: the model keeps no states, so that each token runs all before it again; compile it with its cache\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    model_of("abc dé€f", folder, output=folder / "model.moec")
    (folder / "prompt.txt").write_text("abc\n")
    return folder


def generate(folder, *arguments, **options):
    return moec("generate", folder / "model.moec", *arguments, **options)


def test_texts_come_in_the_order_of_their_prompts(folder):
    prompts = ("--prompt", "ab", "--prompt", "-", "--prompt-file", folder / "prompt.txt")
    for batch in (1, 2, 3):
        done = generate(folder, *prompts, "--batch", batch, input="abc d\n")
        assert (done.returncode, done.stderr) == (0, NOTE)
        assert done.stdout == "c dé€f\né€f\n dé€f\n"


def test_json(folder):
    done = generate(folder, "--prompt", "ab", "--stop", "€", "--json")
    assert done.returncode == 0, done.stderr
    (actual,) = json.loads(done.stdout)
    assert (actual["text"], actual["ended"], actual["prompt_tokens"]) == ("c dé", "stop", 2)


def test_draws_are_the_same_for_the_same_seed(folder):
    arguments = ("--prompt", "ab", "--temperature", 3, "--top-k", 50, "--max-new-tokens", 9, "--json", "--seed")
    first, again, other = (json.loads(generate(folder, *arguments, seed).stdout)[0]["ids"] for seed in (1, 1, 2))
    assert first == again != other


def test_evaluate_takes_the_tokenizer_of_the_artifact(folder, tmp_path):
    (tmp_path / "text.txt").write_text("abc dé€f")
    arguments = ("--data", tmp_path / "text.txt", "--length", 4, "--json")
    done = moec("evaluate", folder / "model.moec", *arguments)
    assert done.returncode == 0, done.stderr
    actual = json.loads(done.stdout)
    assert (actual["rows"], actual["predictions"]) == (2, 6) and actual["models"][0]["qualities"]["top1"]["value"] == 1
    named = moec("evaluate", folder / "model.moec", *arguments, "--tokenizer", folder / "tokenizer.json")
    assert named.stdout == done.stdout


def test_what_is_wrong_is_one_line(folder):
    assert_refused(generate(folder), "there is no prompt; give --prompt TEXT")
    assert_refused(generate(folder, "--prompt", ""), "prompt 1 is '', of which the tokenizer makes no tokens")
    assert_refused(generate(folder, "--prompt", "ab", "--max-tokens", 1), "has 2 tokens, and the session holds 1")
    assert_refused(generate(folder, "--prompt", "a", "--chat"), "holds no chat template")
    assert_refused(generate(folder, "--prompt", "a", "--top-k", 3), "give a temperature above 0")
    assert_refused(generate(folder, "--prompt-file", folder / "none"), "none: cannot be read: No such file")
    assert_refused(moec("generate", folder, "--prompt", "a"), "is not a moec artifact")
    assert_refused(
        generate(folder, "--prompt", b"a\xff".decode("utf-8", "surrogateescape")), "not valid text", "at position 1"
    )


def test_what_a_terminal_cannot_show_is_replaced(folder):
    command = [*START, "generate", folder / "model.moec", "--prompt", "ab"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout) == (0, b"c d??f\n")


def test_inspect_says_what_an_artifact_has_for_text(folder):
    done = moec("inspect", folder / "model.moec")
    assert "it holds a tokenizer and no chat template; ids that end a text: 256, 257" in done.stdout
    assert "States" not in done.stdout


def test_drafts_write_the_same_text(folder):
    prompt = ("--prompt", "abc dabc", "--json", "--max-new-tokens", 20)
    plain, drafted = (
        json.loads(generate(folder, *prompt, *drafts).stdout)[0] for drafts in ((), ("--drafts", "ngram"))
    )
    assert plain["text"] == drafted["text"] and plain["drafts"] is None
    assert sum(count for _, count, _ in drafted["drafts"]["steps"]) + drafted["drafts"]["accepted"] >= 8
    refused = generate(folder, "--prompt", "ab", "--drafts", "words")
    assert refused.returncode == 2 and "'words' is not one of 'ngram'" in refused.stderr


def test_a_prompt_is_kept_in_a_file(folder, tmp_path):
    for prompt, text in (("abc", " dé€f"), ("abc", " dé€f"), ("abc ", "dé€f")):
        done = generate(folder, "--prompt", prompt, "--prompt-cache", tmp_path / "cache")
        assert (done.returncode, done.stdout) == (0, f"{text}\n")
    (tmp_path / "own").write_text("mine")
    refused = generate(folder, "--prompt", "abc", "--prompt-cache", tmp_path / "own")
    assert_refused(refused, "own: is a file that moec did not write")
    assert (tmp_path / "own").read_text() == "mine"


def test_a_smaller_model_drafts(folder):
    prompt = ("--prompt", "ab", "--draft-model", folder / "model.moec")
    done = generate(folder, *prompt)
    assert (done.returncode, done.stdout) == (0, "c dé€f\n")
    assert_refused(generate(folder, *prompt, "--drafts", "ngram"), "--drafts ngram and --draft-model both draft")
    assert_refused(generate(folder, "--prompt", "ab", "--draft-model", folder), "is not a moec artifact")

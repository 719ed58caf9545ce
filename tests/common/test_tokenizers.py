"""Tokenizer files that the package refuses, or that end its process, give one line; sound ones are read."""

from __future__ import annotations

import json

import pytest

from moec.common import tokenizers
from moec.common.child import Limits
from moec.common.errors import MoecError
from moec.common.tokenizers import Tokenizer, check_tokenizer

version = pytest.importorskip("tokenizers").__version__

EMPTY: dict[str, object] = {
    "version": "1.0",
    "added_tokens": [],
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
}
EXPONENTIAL = {"type": "Split", "pattern": {"Regex": "(a|a)*$"}, "behavior": "Isolated", "invert": False}
GROWING = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
NO_UNKNOWN = {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": None}


def text_of(**changes) -> str:
    return json.dumps({**EMPTY, **changes})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "EOF while parsing"),
        (text_of(model={"type": "none such"}), "data did not match"),
        (text_of(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "Cannot parse precompiled"),
        (text_of(decoder={"type": "Strip", "content": "a", "start": 10, "stop": 10}), "index out of bounds"),
        (text_of(pre_tokenizer=EXPONENTIAL), "retry-limit-in-match over"),
        (text_of(added_tokens="\ud800").replace("\\ud800", "\ud800"), "a string in it is no valid text"),
    ],
)
def test_what_the_package_cannot_read_is_one_line(content, reason):
    with pytest.raises(MoecError, match=rf"^t\.json: is not a tokenizer.json .*{reason}.*; take another$") as caught:
        Tokenizer(content, "t.json")
    assert "\n" not in str(caught.value)


def test_what_fills_the_memory_is_one_line(monkeypatch):
    monkeypatch.setattr(tokenizers, "LIMITS", Limits(5, 1 << 28))
    growing = text_of(normalizer={"type": "Sequence", "normalizers": [GROWING] * 4})
    with pytest.raises(MoecError, match=r"reading it crashes with SIGABRT \(memory allocation of \d+ bytes failed\)"):
        check_tokenizer(growing, "t.json")


def test_a_sound_tokenizer_is_read_and_its_version_known():
    assert check_tokenizer(text_of(), "t.json") == version
    assert Tokenizer(text_of(), "t.json").encode("a", add_special_tokens=False) == [0]


def test_text_that_a_sound_tokenizer_does_not_know_is_one_line():
    tokenizer = Tokenizer(text_of(model=NO_UNKNOWN), "t.json", version)
    assert tokenizer.encode("aa", add_special_tokens=False) == [0, 0]
    with pytest.raises(MoecError, match=r"^t\.json: the tokenizer cannot make tokens of this text \(.*unk_id"):
        tokenizer.encode("é", add_special_tokens=False)
    with pytest.raises(MoecError, match="cannot make tokens of this text"):
        list(tokenizer.encode_each(["a", "é"]))


def test_a_panic_on_some_text_is_one_line():
    tokenizer = Tokenizer(text_of(pre_tokenizer=EXPONENTIAL), "t.json", version)
    with pytest.raises(MoecError, match=r"cannot make tokens of this text .*retry-limit"):
        tokenizer.encode("a" * 50 + "b", add_special_tokens=False)


def test_a_file_is_checked_once_for_each_version(monkeypatch):
    checked = []
    monkeypatch.setattr(tokenizers, "check_tokenizer", lambda content, where: checked.append(where))
    Tokenizer(text_of(), "same", version)
    Tokenizer(text_of(), "other", "0.0.1")
    Tokenizer(text_of(), "unknown")
    assert checked == ["other", "unknown"]


def test_without_the_package_nothing_is_checked_and_nothing_read(monkeypatch):
    monkeypatch.setattr(tokenizers, "_installed_version", lambda: None)
    assert check_tokenizer("{", "t.json") is None
    with pytest.raises(MoecError, match=r"install moec\[text\]"):
        Tokenizer("{", "t.json")

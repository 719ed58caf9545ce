"""Tokenizers of GGUF files: hand-made encodings, and kinds that are refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moec.common.errors import MoecError, UnsupportedError
from moec.frontend.gguf import import_file, text_files_of
from moec.frontend.gguf.file.reader import GgufFile
from moec.frontend.gguf.file.tokenizer import text_files

from ..tiny_models import MODELS, VOCABULARY, Tiny

SPACE = "\u0120"  # a space in byte-level BPE
BYTES = ["<s>", "</s>", *"helo1", SPACE, "he", "ll", "hell", "hello", SPACE + "he", "11"]
BPE: dict[str, Any] = {
    "model": "gpt2",
    "pre": "llama-bpe",
    "tokens": BYTES,
    "token_type": np.array([3, 3, *[1] * (len(BYTES) - 2)], np.int32),
    "merges": ["h e", "l l", "he ll", f"{SPACE} he", "1 1"],
    "bos_token_id": 0,
    "eos_token_id": 1,
}
PIECES = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], "\u2581", *"abc", "ab", "\u2581a", "bc"]
KINDS = [2, 3, 3, *[6] * 256, *[1] * 7]
SCORES = [0.0] * 263 + [-3.0, -1.0, -2.0]
SENTENCE_PIECE: dict[str, Any] = {
    "model": "llama",
    "tokens": PIECES,
    "token_type": np.array(KINDS, np.int32),
    "scores": np.array(SCORES, np.float32),
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def file(fields: dict[str, Any], template: str | None = None) -> GgufFile:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    return GgufFile(Path("model.gguf"), metadata | {"tokenizer.chat_template": template}, {})


def pieces(fields: dict[str, Any], text: str) -> list[str]:
    tokenizers = pytest.importorskip("tokenizers")
    built = text_files(file(fields))
    assert built is not None
    ids = tokenizers.Tokenizer.from_str(built.tokenizer).encode(text).ids
    return [fields["tokens"][token] for token in ids]


@pytest.mark.parametrize(
    ("changes", "text", "expected"),
    [
        ({}, "hello hello1", ["<s>", "hello", SPACE, "hell", "o", "1"]),
        ({"add_bos_token": False}, "hello</s>", ["hello", "</s>"]),
        ({"add_eos_token": True}, "he", ["<s>", "he", "</s>"]),
        ({}, "1111", ["<s>", "11", "1", "1"]),  # numbers are cut to three digits
        ({"pre": "qwen2"}, "1111", ["1", "1", "1", "1"]),  # cut to one digit, without a leading token
        ({"pre": "qwen2"}, "hello", ["hell", "o"]),  # the token "hello" is not used without its merge
    ],
)
def test_byte_level(changes: dict[str, Any], text: str, expected: list[str]) -> None:
    assert pieces(BPE | changes, text) == expected


@pytest.mark.parametrize(
    ("changes", "text", "expected"),
    [
        ({}, "abc", ["<s>", "\u2581a", "bc"]),  # the highest score is joined first
        ({"add_space_prefix": False, "add_bos_token": False}, "abc", ["a", "bc"]),
        ({"add_bos_token": False}, "ab", ["\u2581a", "b"]),
        ({"add_bos_token": False}, "\u00e9", ["\u2581", "<0xC3>", "<0xA9>"]),
    ],
)
def test_sentence_piece(changes: dict[str, Any], text: str, expected: list[str]) -> None:
    assert pieces(SENTENCE_PIECE | changes, text) == expected


def test_what_comes_beside_it() -> None:
    built = text_files(file(BPE | {"eot_token_id": 5}, "{{ messages }}"))
    assert built is not None
    assert (built.chat_template, built.end_ids) == ("{{ messages }}", (1, 5))
    assert built.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert text_files(file({})) is None


@pytest.mark.parametrize(
    ("more", "context"),
    [
        ({"general.architecture": "olmoe", "olmoe.context_length": 4096}, 4096),
        ({"general.architecture": "olmoe", "llama.context_length": 4096}, None),
        ({"general.architecture": "olmoe", "olmoe.context_length": 0}, None),
        ({}, None),
    ],
)
def test_texts_that_a_model_was_trained_for(more: dict[str, Any], context: int | None) -> None:
    built = text_files(GgufFile(Path("model.gguf"), file(BPE).metadata | more, {}))
    assert built is not None and built.context == context


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (BPE | {"token_type": np.ones(3, np.int32)}, "tokenizer.ggml.token_type has 3 entries for 14 tokens"),
        (BPE | {"merges": ["h x"]}, "tokenizer.ggml.merges joins texts that are not tokens"),
        (BPE | {"merges": ["h e l"]}, "tokenizer.ggml.merges joins texts that are not tokens"),
        (BPE | {"tokens": []}, "tokenizer.ggml.tokens holds no text"),
        (BPE | {"tokens": 7}, "tokenizer.ggml.tokens is int"),
        (BPE | {"tokens": ["a" * 1025, *BYTES[1:]]}, "has a token of 1025 characters; expected at most 1024"),
        (BPE | {"model": np.zeros(2)}, "its tokenizer is"),
        (BPE | {"model": ["gpt2"]}, "its tokenizer is"),
        (BPE | {"pre": np.zeros(2)}, "tokenizer.ggml.pre is"),
        (SENTENCE_PIECE | {"scores": ["1"] * len(PIECES)}, "tokenizer.ggml.scores is list"),
        (BPE | {"eos_token_id": 99}, "tokenizer.ggml.eos_token_id is 99, of 14 tokens"),
        (BPE | {"add_bos_token": 1}, "tokenizer.ggml.add_bos_token is int"),
        (SENTENCE_PIECE | {"scores": np.zeros(2, np.float32)}, "tokenizer.ggml.scores has 2 entries for 266 tokens"),
    ],
)
def test_tables_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(MoecError, match=message) as caught:
        text_files(file(fields))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "another"}, "tokenizer.ggml.pre is 'another'; expected llama3"),
        ({"model": "bert"}, "its tokenizer is 'bert'; expected gpt2 or llama"),
    ],
)
def test_a_tokenizer_that_is_not_known_becomes_a_remark(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=message):
        text_files(file(BPE | changes))
    architecture, make, _ = MODELS["llama"]
    tiny = Tiny(architecture, "F32")
    make(tiny)
    tokens = [f"t{index}" for index in range(VOCABULARY)]
    kinds = struct.pack(f"<IIQ{VOCABULARY}i", 9, 5, VOCABULARY, *[1] * VOCABULARY)
    tiny.tokenizer = BPE | {"tokens": tokens, "token_type": kinds, "merges": ["t0 t1"]} | changes
    path = tiny.write(tmp_path / "model.gguf")
    assert text_files_of(path) is None
    assert message in import_file(path).metadata_props["moec.conditions"]

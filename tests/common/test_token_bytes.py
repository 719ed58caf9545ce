"""Bytes of single tokens, whose concatenation is what the package ``tokenizers`` decodes."""

from __future__ import annotations

import pytest

from moec.common.token_bytes import bytes_of, decoder_kinds
from moec.common.tokenizers import Tokenizer

TEXT = "Ünïcode: 日本 🙂\n\tend  two"


def byte_level():
    tokenizers = pytest.importorskip("tokenizers")
    built = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={letter: place for place, letter in enumerate(tokenizers.pre_tokenizers.ByteLevel.alphabet())},
            merges=[],
        )
    )
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = tokenizers.decoders.ByteLevel()
    return built


def byte_fallback():
    tokenizers = pytest.importorskip("tokenizers")
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"endtwocUnï"]
    vocabulary = {name: place for place, name in enumerate(dict.fromkeys(names))}
    model = tokenizers.models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>")
    built = tokenizers.Tokenizer(model)
    built.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    decoders = tokenizers.decoders
    built.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return built


@pytest.mark.parametrize("build", [byte_level, byte_fallback])
def test_bytes_of_tokens_join_to_the_text(build):
    built = build()
    built.add_special_tokens(["<|end é|>"])
    tokenizer = Tokenizer(built.to_str(), "test")
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    assert len(ids) > len(TEXT)  # characters are split
    assert b"".join(map(tokenizer.bytes_of, ids)).decode() == TEXT == tokenizer.decode(ids)
    special = built.token_to_id("<|end é|>")
    assert tokenizer.bytes_of(special) == "<|end é|>".encode()
    assert tokenizer.bytes_of(special + 1) == b""


def test_spellings_are_read_by_their_decoder_alone():
    assert bytes_of("<0x0A>", {"ByteLevel"}) == b"<0x0A>" and bytes_of("<0x0A>", {"ByteFallback"}) == b"\n"
    assert bytes_of("Ġa", {"ByteLevel"}) == b" a" and bytes_of("Ġa", set()) == "Ġa".encode()
    assert bytes_of("日", {"ByteLevel"}) == "日".encode()  # an added token
    assert decoder_kinds(None) == set()
    assert decoder_kinds({"type": "Sequence", "decoders": [{"type": "Fuse"}]}) == {"Sequence", "Fuse"}

"""Sessions and prompts on disk: the same numbers and texts as from memory, and refusals of files that do not fit."""

from __future__ import annotations

import functools
import os
import shutil

import numpy as np
import onnx
import onnx.parser
import pytest

import moec
from moec.common.array_files import read_arrays, write_arrays
from moec.common.errors import InputError, MoecError
from moec.runtime.held import PAGE
from moec.runtime.prompt_cache import PromptCache

from .test_drafts import LAST_ALONE, RECURRENT
from .test_drafts import ended as result
from .tiny_decoder import VOCABULARY, tiny_decoder


@functools.cache
def decoder_of(*passes):
    return moec.compile(tiny_decoder(), passes=",".join(("O2", *passes)))


def tokens(count, seed=0):
    return [int(token) for token in np.random.default_rng(seed).integers(0, VOCABULARY, count)]


def check_continues(model, session, path, count=4):
    session.save(path)
    loaded = model.session(session.max_tokens, session.batch, load=path)
    assert loaded.length == session.length
    np.testing.assert_array_equal(loaded.tokens, session.tokens)
    for _ in range(2):
        ids = np.random.default_rng(5).integers(0, 2, (session.batch, count))
        np.testing.assert_array_equal(loaded.run(ids, last=None), session.run(ids, last=None))


@pytest.mark.parametrize(
    "passes",
    [
        (),
        *(pytest.param((f"cast-states{{dtype={name}}}",), marks=pytest.mark.nightly) for name in ("fp16", "bf16")),
        ("cast-states{dtype=int8}",),
    ],
)
@pytest.mark.parametrize("length", [1, PAGE, 300])
def test_a_loaded_session_continues_bit_for_bit(passes, length, tmp_path):
    model = decoder_of(*passes)
    session = model.session(1000, batch=2)
    session.run(np.array([tokens(length), tokens(length, 1)]))
    check_continues(model, session, tmp_path / "session.npz")
    session.truncate(length)
    check_continues(model, session, tmp_path / "session.npz", count=1)  # replaces the file, which is moec's own


@pytest.mark.parametrize("text", [RECURRENT, LAST_ALONE])
def test_other_states_are_kept_too(text, tmp_path):
    model = moec.compile(onnx.parser.parse_model(text))
    session = model.session()
    check_continues(model, session, tmp_path / "empty.npz")
    check_continues(model, session, tmp_path / "session.npz")


def test_padding_is_kept(tmp_path):
    model = decoder_of()
    session = model.session(batch=2)
    session.run(np.array([[1, 2, 3], [0, 4, 5]]), attention_mask=np.array([[1, 1, 1], [0, 1, 1]]))
    check_continues(model, session, tmp_path / "session.npz")


def test_equal_sessions_are_equal_bytes_without_what_was_forgotten(tmp_path):
    for passes in ((), ("cast-states{dtype=int8}",)):
        contents = []
        for other in (0, 30):
            session = decoder_of(*passes).session(1000)
            session.run(tokens(20))
            if other:
                session.run(tokens(other, other))
                session.truncate(20)
            session.save(tmp_path / "session.npz")
            contents.append((tmp_path / "session.npz").read_bytes())
        assert contents[0] == contents[1]


def damaged(path, **changed):
    """The arrays of a file with changes, in the same file."""
    arrays = read_arrays(path) | changed
    os.remove(path)
    write_arrays(path, {name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"artifact": np.zeros(32, np.uint8)}, r"is a session of another artifact \(00000000...; this one is "),
        ({"tokens": None}, "expected a session that session.save wrote"),
        ({"other": np.zeros(3)}, "expected a session that session.save wrote"),
        ({"tokens": np.full((1, 20), 99)}, "token id 99 is outside of the vocabulary"),
        ({"tokens": np.zeros((1, 20))}, r"has tokens float64\[1, 20\]"),
        ({"mask": np.ones((1, 21), bool)}, r"a mask bool\[1, 21\]; expected"),
        ({"tokens": np.zeros((2, 20), np.int64), "mask": np.ones((2, 20), bool)}, "of 2 sequences; expected 1"),
        ({"tokens": np.zeros((1, 300), np.int64), "mask": np.ones((1, 300), bool)}, r"for state 'key0' float32\[1, "),
        ({"state:key1": None}, "for state 'key1' none; expected float32"),
        ({"state:key1": np.zeros((1, 1, 2, 256, 9), np.float32)}, "for state 'key1' float32"),
        ({"state:value0": np.zeros((1, 1, 2, 256, 8))}, "for state 'value0' float64"),
        ({"state:more": np.zeros(3)}, "has a state 'more', which the model has not"),
    ],
    ids=str,
)
def test_files_that_do_not_fit_are_refused(changed, message, tmp_path):
    session = decoder_of().session(1000)
    session.run(tokens(20))
    session.save(tmp_path / "session.npz")
    damaged(tmp_path / "session.npz", **changed)
    with pytest.raises(InputError, match=message):
        decoder_of().session(1000, load=tmp_path / "session.npz")


def test_files_of_others_are_neither_read_nor_replaced(tmp_path):
    session = decoder_of().session()
    session.run(tokens(20))
    for content in (b"", b"text", b"PK\3\4"):
        (tmp_path / "file").write_bytes(content or b"\0")
        with pytest.raises(InputError, match=r"is not an intact \.npz file"):
            decoder_of().session(load=tmp_path / "file")
        with pytest.raises(MoecError, match="is a file that moec did not write"):
            session.save(tmp_path / "file")
        with pytest.raises(MoecError, match="is a file that moec did not write"):
            moec.generate(decoder_of(), tokens(3), prompt_cache=tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == content or b"\0"
    with pytest.raises(MoecError, match="none: cannot be read: No such file"):
        decoder_of().session(load=tmp_path / "none")
    with pytest.raises(MoecError, match="does not exist"):
        session.save(tmp_path / "none" / "file")
    with pytest.raises(InputError, match=r"would hold 20 tokens .* max_tokens is 10"):
        session.save(tmp_path / "session")
        decoder_of().session(10, load=tmp_path / "session")


def prompts():
    """Prompts one after the other, and the tokens that are computed of each before its text."""
    first = tokens(700)
    yield first, [512, 188]
    yield first, [9]
    yield [*first[:600], *tokens(50, 1)], [50]
    yield [*first[:600], *tokens(50, 1), 3], [9]
    yield [*first[:600], *tokens(500, 2)], [424, 76]
    yield [*first[:510], *tokens(10, 3)], [9, 8]  # the last part has few tokens, and is computed as one
    yield [*first[:510], *tokens(10, 3), *tokens(20, 4)], [28]  # whose states are not those of a part of many
    yield [*first[:505], 7], [9]
    yield tokens(5, 6), [5]
    yield tokens(5, 6), [5]
    yield [*tokens(5, 6), 3], [6]
    yield [9], [1]


def test_texts_from_a_file_are_those_without_it(computed, tmp_path):
    for drafts in (None, "ngram"):
        for prompt, runs in prompts():
            computed.clear()
            (cached,) = moec.generate(
                decoder_of(), [prompt], max_new_tokens=4, prompt_cache=tmp_path / "cache", drafts=drafts
            )
            assert computed[: len(runs)] == runs and computed[len(runs)] <= 8
            (plain,) = moec.generate(decoder_of(), [prompt], max_new_tokens=4)
            assert result(cached) == result(plain)
        os.remove(tmp_path / "cache")


def test_states_from_a_file_are_those_without_it(tmp_path):
    for prompt, _ in prompts():
        moec.generate(decoder_of(), [prompt], max_new_tokens=1, prompt_cache=tmp_path / "cache")
        cached = decoder_of().session(load=tmp_path / "cache")
        plain = decoder_of().session()
        for start in range(0, len(prompt), 512):
            plain.feed(prompt[start : start + 512])
        if cached.length > len(prompt):  # the file of a longer prompt stays
            cached.truncate(len(prompt))
        cached.save(tmp_path / "one")
        plain.save(tmp_path / "other")
        assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_a_prompt_that_the_file_has_leaves_it(tmp_path):
    moec.generate(decoder_of(), tokens(40), max_new_tokens=2, prompt_cache=tmp_path / "cache")
    before = (tmp_path / "cache").stat()
    for count in (40, 20):
        moec.generate(decoder_of(), tokens(count), max_new_tokens=2, prompt_cache=tmp_path / "cache")
        assert (tmp_path / "cache").stat().st_mtime_ns == before.st_mtime_ns


def test_what_a_file_cannot_keep_is_refused(tmp_path):
    with pytest.raises(MoecError, match="prompt_cache keeps one prompt, and there are 2"):
        moec.generate(decoder_of(), [[1], [2]], prompt_cache=tmp_path / "cache")
    with pytest.raises(InputError, match=r"state kept .*; generate without a prompt cache"):
        moec.generate(moec.compile(onnx.parser.parse_model(RECURRENT)), [1], prompt_cache=tmp_path / "cache")
    with pytest.raises(InputError, match="the prompt has 30 tokens, and the session holds 20"):
        moec.generate(decoder_of(), tokens(30), prompt_cache=tmp_path / "cache", max_tokens=20)
    session = decoder_of().session(batch=2)
    session.run([[1], [2]])
    session.save(tmp_path / "two")
    with pytest.raises(InputError, match="holds 2 sequences; expected one"):
        PromptCache(tmp_path / "two", decoder_of().digest)
    assert os.listdir(tmp_path) == ["two"]


def test_a_file_of_another_artifact_stays(tmp_path):
    moec.generate(decoder_of(), tokens(4), max_new_tokens=1, prompt_cache=tmp_path / "cache")
    shutil.copy(tmp_path / "cache", tmp_path / "copy")
    with pytest.raises(InputError, match=r"is a session of another artifact .*; remove it or choose another file"):
        moec.generate(decoder_of("cast-states{dtype=int8}"), tokens(4), prompt_cache=tmp_path / "cache")
    assert (tmp_path / "cache").read_bytes() == (tmp_path / "copy").read_bytes()

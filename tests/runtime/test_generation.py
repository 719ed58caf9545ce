"""Text from models: what comes out, piece by piece, and what ends it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

import moec
from moec.errors import InputError, MoecError, RoomError
from moec.runtime.generation import prefilled
from moec.runtime.text_codec import TextCodec, TextStream

from .bigrams import model_of, tokenizer_json

TEXT = "abc dé€f𝄞z."


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_of(TEXT, tmp_path_factory.mktemp("bigrams"))


def test_a_text_goes_on_to_its_end(model):
    pieces = []
    (found,) = moec.generate(model, "abc", on_text=lambda place, piece: pieces.append((place, piece)))
    assert found.text == TEXT[3:] and found.ended == "end" and found.prompt_tokens == 3
    assert [piece for _, piece in pieces] == list(TEXT[3:])  # characters, never parts of one
    assert len(found.ids) == len(TEXT[3:].encode())


@pytest.mark.parametrize(
    ("options", "text", "ended"),
    [
        ({"max_new_tokens": 2}, "c ", "length"),
        ({"max_new_tokens": 4}, "c d", "length"),  # the fifth is the first half of é
        ({"max_tokens": 4}, "c d", "full"),
        ({"stop": ["é€"]}, "c d", "stop"),
        ({"stop": "f"}, "c dé€", "stop"),
        ({"stop": ["z.!", "€f", "f"]}, "c dé", "stop"),
        ({"stop": [".."]}, "c dé€f𝄞z.", "end"),
    ],
)
def test_what_ends_a_text(model, options, text, ended):
    (found,) = moec.generate(model, "ab", **options)
    assert (found.text, found.ended) == (text, ended)


def test_prompts_are_independent_and_draws_follow_the_seed(model):
    options = {"temperature": 3.0, "max_new_tokens": 12}
    both = moec.generate(model, ["ab", "ab"], seed=1, **options)
    assert both[0].ids != both[1].ids  # each draws numbers of its own
    assert both[0].ids == moec.generate(model, "ab", seed=1, **options)[0].ids
    assert both[0].ids != moec.generate(model, "ab", seed=2, **options)[0].ids


def test_a_prompt_without_tokens_or_with_too_many_is_refused(model):
    with pytest.raises(MoecError, match="prompt 2 is '', of which the tokenizer makes no tokens"):
        moec.generate(model, ["a", ""])
    with pytest.raises(InputError, match="the prompt has 3 tokens, and the session holds 2 more"):
        moec.generate(model, "abc", max_tokens=2)
    with pytest.raises(MoecError, match="expected 1 or more, and no empty string"):
        moec.generate(model, "a", stop=[""])
    with pytest.raises(MoecError, match="expected 1 or more"):
        moec.generate(model, "a", max_new_tokens=0)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((None, "a"), {}, "model is of type NoneType; expected what moec.load and moec.compile return"),
        (("model", None), {}, "prompts is of type NoneType; expected a string, or a list of them"),
        (("model", ["a", 1]), {}, "one of prompts is 1 of type int; expected a string"),
        (("model", "a"), {"stop": [1]}, "one of stop is 1 of type int"),
        (("model", "a"), {"max_new_tokens": 1.5}, "max_new_tokens is 1.5 of type float"),
        (("model", "a"), {"system": 1, "chat": True}, "system is 1 of type int"),
    ],
)
def test_arguments_of_other_kinds_are_refused(model, arguments, options, message):
    with pytest.raises(MoecError, match=message):
        moec.generate(*(model if argument == "model" else argument for argument in arguments), **options)


def test_a_chat_puts_prompts_into_the_template(tmp_path):
    template = (
        "{% for m in messages %}{{ m.content }}{{ other_token }}{% endfor %}{% if add_generation_prompt %}c{% endif %}"
    )
    config = {"chat_template": [{"name": "default", "template": template}], "other_token": {"content": "b"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (found,) = moec.generate(model_of(TEXT, tmp_path), "a", chat=True, max_new_tokens=1)
    assert (found.text, found.prompt_tokens) == (" ", 3)


def test_a_system_speaks_first(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role[:1] }}{{ m.content }}{% endfor %}")
    codec = TextCodec(model_of(TEXT, tmp_path).artifact)
    user, system = {"role": "user", "content": "x"}, {"role": "system", "content": "y"}
    assert codec.encode_chats([[system, user], [user]]) == [codec.encode("syux"), codec.encode("ux")]


def test_a_system_speaks_in_chats_alone(model):
    with pytest.raises(MoecError, match="a system message is part of a chat"):
        moec.generate(model, "a", system="b")


def test_a_template_that_fails_is_said(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no such role') }}")
    model = model_of(TEXT, tmp_path)
    with pytest.raises(MoecError, match="its chat template fails: no such role; generate without --chat"):
        moec.generate(model, "a", chat=True)


def test_what_an_artifact_lacks_is_said(model):
    with pytest.raises(MoecError, match="holds no chat template; generate without --chat"):
        moec.generate(model, "a", chat=True)
    without = moec.compile(_identity())
    with pytest.raises(MoecError, match="holds no tokenizer; compile the model with --tokenizer"):
        moec.generate(without, "a")


def test_a_model_of_something_else_writes_no_text(tmp_path):
    other = moec.compile(_identity(), tokenizer=tokenizer_json(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="no inputs that could be token ids"):
        moec.generate(other, "a")


def test_the_tokenizer_is_kept(model, tmp_path):
    model.save(tmp_path / "copy.zip")
    copy = moec.load(tmp_path / "copy.zip")
    assert moec.generate(copy, "abc")[0].text == TEXT[3:]
    assert copy.describe()["text"]["end_ids"] == [256, 257]  # no configuration says: all special tokens
    (tmp_path / "copy.moec").mkdir()
    model.save(tmp_path / "copy.moec")
    (tmp_path / "copy.moec/text/tokenizer.json").write_text("{}")
    with pytest.raises(moec.ArtifactError, match="truncated or altered"):
        moec.load(tmp_path / "copy.moec")


def test_bytes_that_are_no_text_are_not_held_for_ever():
    stream = TextStream(lambda ids: bytes(ids).decode("utf-8", "replace"), [], [])
    assert [stream.push(0xFF) for _ in range(7)] == [""] * 7
    assert stream.push(0xFF) == "\ufffd" * 8
    assert stream.push(0xC3) == "" and stream.push(0xA9) == "é"
    assert stream.push(0xC3) == "" and stream.rest() == ""


def _identity():
    import onnx.parser

    text = '<ir_version: 10, opset_import: ["" : 21]>\ngraph (float[B,4] x) => (float[B,4] y) { y = Neg (x) }'
    return onnx.parser.parse_model(text)


@pytest.mark.parametrize(("room", "parts"), [(9, [9]), (4, [9, 4, 4, 1]), (1, [9, 4, 2, *[1] * 9])])
def test_prompts_are_run_in_parts_that_memory_has_room_for(room, parts):
    tried, seen = [], []

    def run(ids):
        tried.append(len(ids))
        if len(ids) > room:
            raise RoomError("no room")
        seen.extend(ids)
        return np.full((1, len(ids), 1), len(seen))

    session = SimpleNamespace(max_tokens=None, length=0, fixed_length=None, is_incremental=True, run=run)
    assert prefilled(session, list(range(9))) == [9]
    assert tried == parts and seen == list(range(9))
    room = 0
    with pytest.raises(RoomError):
        prefilled(session, [1])

"""Text from models: its pieces, and its end."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

import moec
from moec.common.errors import DefectError, InputError, MoecError, RoomError
from moec.runtime.generation import prefilled
from moec.runtime.session import Session
from moec.runtime.text_codec import TextCodec, TextStream

from .bigrams import model_of, tokenizer_json

TEXT = "abc dé€f𝄞z."
MODEL = "model"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_of(TEXT, tmp_path_factory.mktemp("bigrams"))


def test_a_text_goes_on_to_its_end(model):
    pieces = []
    (actual,) = moec.generate(model, "abc", on_text=lambda place, piece: pieces.append((place, piece)))
    assert actual.text == TEXT[3:] and actual.ended == "end" and actual.prompt_tokens == 3
    assert [piece for _, piece in pieces] == list(TEXT[3:])  # whole characters, never parts of one
    assert len(actual.ids) == len(TEXT[3:].encode())


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
    (actual,) = moec.generate(model, "ab", **options)
    assert (actual.text, actual.ended) == (text, ended)


def ids_of(model, text):
    return TextCodec(model.artifact).encode(text)


def test_token_ids_go_on_as_their_text_does(model):
    ids = ids_of(model, "abc")
    for prompt in (ids, tuple(ids), np.array(ids, np.int32), [ids], np.array([ids, ids])):
        actual = moec.generate(model, prompt)
        assert {completion.text for completion in actual} == {TEXT[3:]} and {
            completion.prompt_tokens for completion in actual
        } == {3}
    assert moec.generate(model, []) == []
    with pytest.raises(MoecError, match=r"prompt 2 is '\[\]', which has no tokens"):
        moec.generate(model, [ids, []])


def test_token_ids_need_no_tokenizer():
    without = moec.compile(_counting())
    (actual,) = moec.generate(without, [3], max_new_tokens=4)
    assert (actual.ids, actual.text, actual.ended) == ([4, 0, 1, 2], "", "length")
    assert repr(actual) == "<Generation '': 4 tokens after 1, ended by length>"
    with pytest.raises(MoecError, match="holds no tokenizer"):
        moec.generate(without, [3], stop="a")


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_prompts_of_unequal_lengths_go_on_as_each_alone(model, batch):
    prompts, pieces = ["abc dé", "a", ids_of(model, "z"), "abc", "abc d"], {}
    actual = moec.generate(
        model, prompts, batch=batch, on_text=lambda place, piece: pieces.setdefault(place, []).append(piece)
    )
    alone = [moec.generate(model, [prompt])[0] for prompt in prompts]
    assert [
        (completion.text, completion.ids, completion.ended, completion.prompt_tokens, completion.prompt)
        for completion in actual
    ] == [
        (completion.text, completion.ids, completion.ended, completion.prompt_tokens, completion.prompt)
        for completion in alone
    ]
    assert ["".join(pieces[place]) for place in range(5)] == [completion.text for completion in actual]
    assert all(completion.prefill_seconds > 0 and completion.decode_seconds >= 0 for completion in actual)


@pytest.mark.parametrize("options", [{"max_tokens": 6}, {"max_new_tokens": 2}, {"stop": "d"}])
def test_rows_end_on_their_own(model, options):
    prompts = ["abc d", "a", "abc"]
    together, alone = moec.generate(model, prompts, **options), moec.generate(model, prompts, batch=1, **options)
    assert [(completion.text, completion.ended) for completion in together] == [
        (completion.text, completion.ended) for completion in alone
    ]


def test_draws_side_by_side_are_those_of_each_place(model):
    options = {"temperature": 3.0, "max_new_tokens": 12, "seed": 4, "repetition_penalty": 1.1}
    together, alone = (moec.generate(model, ["abc", "ab", "a"], batch=batch, **options) for batch in (8, 1))
    assert [completion.ids for completion in together] == [completion.ids for completion in alone]


@pytest.mark.parametrize(
    ("sizes", "body"), [("PR", "grown = Concat <axis = 1> (kept, new) "), ("11", "grown = Add (kept, total) ")]
)
def test_prompts_side_by_side_with_states_that_grow_and_that_are_replaced(sizes, body):
    """The model's next token is the sum of all before, modulo 5, by a cache that grows or by one number."""
    states = moec.compile(_summing(*sizes, body))
    assert states.states
    prompts = [[1, 2, 3, 4], [3], [2, 2], [4, 4, 4, 1, 0, 2]]
    result = moec.generate(states, prompts, max_new_tokens=6)
    for prompt, actual in zip(prompts, result, strict=True):
        ids = list(prompt)
        for _ in range(6):
            ids.append(sum(ids) % 5)
        assert actual.ids == ids[len(prompt) :]


def test_prompts_share_runs_of_the_model(model, monkeypatch):
    runs, run = [], Session.run
    monkeypatch.setattr(Session, "run", lambda self, ids, **others: runs.append(ids.shape) or run(self, ids, **others))
    moec.generate(model, ["abc", "a", "abc"], max_new_tokens=3, batch=8)
    assert runs == [(3, 1), (3, 1), (3, 1), (3, 1), (3, 1)]  # two more tokens of the longer ones next to the new ones
    runs.clear()
    moec.generate(model, ["abc dé", "a", "ab"], max_new_tokens=1)  # too unequal for one batch
    assert runs == [(2, 1), (2, 1), (1, 7)]


def test_prompts_are_independent_and_draws_follow_the_seed(model):
    options = {"temperature": 3.0, "max_new_tokens": 12}
    both = moec.generate(model, ["ab", "ab"], seed=1, **options)
    assert both[0].ids != both[1].ids  # each has its own random numbers
    assert both[0].ids == moec.generate(model, "ab", seed=1, **options)[0].ids
    assert both[0].ids != moec.generate(model, "ab", seed=2, **options)[0].ids


def test_a_prompt_without_tokens_or_with_too_many_is_refused(model):
    with pytest.raises(MoecError, match="prompt 2 is '', of which the tokenizer makes no tokens"):
        moec.generate(model, ["a", ""])
    with pytest.raises(InputError, match="the prompt has 3 tokens, and the session holds 2"):
        moec.generate(model, "abc", max_tokens=2)
    with pytest.raises(MoecError, match="expected no empty string"):
        moec.generate(model, "a", stop=[""])
    with pytest.raises(MoecError, match="expected 1 or more"):
        moec.generate(model, "a", max_new_tokens=0)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((None, "a"), {}, "model is of type NoneType; expected what moec.load and moec.compile return"),
        (("model", None), {}, "prompts is of type NoneType; expected a text, a list of token ids, a list of messages"),
        (("model", ["a", 1]), {}, "prompt 2 is 1 of type int; expected a text"),
        (("model", [1, "a"]), {}, "prompts holds 'a' of type str where a token id or a message is expected"),
        (("model", [[1], [True]]), {}, "prompt 2 holds True of type bool where a token id"),
        (("model", np.array([1.5])), {}, "prompt 1 is 1.5 of type float"),
        (("model", {"input_ids": [1]}), {}, "prompts is a mapping; .* its input_ids"),
        (("model", [{"role": "user"}]), {}, "message 1 of prompts has no 'content'"),
        (("model", [{"role": "user", "content": [1]}]), {}, "message 1 of prompts has of type list as its 'content'"),
        (("model", [{"role": "user", "content": "a"}, "b"]), {}, "message 2 of prompts is 'b' of type str"),
        (("model", [[1]]), {"chat": True}, "prompt 1 is token ids, and a chat is made of text"),
        (("model", [1]), {"system": "b"}, "a system message is part of a chat"),
        (("model", [300]), {}, "token id 300 is outside of the vocabulary; expected 0 to 257"),
        (("model", "a"), {"batch": 0}, "batch is 0; expected 1 or more"),
        (
            ("model", "a"),
            {"max_new_token": 3},
            r"no option 'max_new_token'; did you mean 'max_new_tokens'\?",
        ),
        (("model", "a"), {"zzz": 3}, r"generate has no option 'zzz' \(options: max_new_tokens, max_tokens, chat, "),
        (("model",), {}, "generate: missing a required argument: 'prompts'; its arguments: model, prompts, "),
        (("model", "a"), {"stop": [1]}, "one of stop is 1 of type int"),
        (("model", "a"), {"max_new_tokens": 1.5}, "max_new_tokens is 1.5 of type float"),
        (("model", "a"), {"system": 1, "chat": True}, "system is 1 of type int"),
    ],
)
def test_arguments_of_other_kinds_are_refused(model, arguments, options, message):
    with pytest.raises(MoecError, match=message) as caught:
        moec.generate(*(model if argument is MODEL else argument for argument in arguments), **options)
    assert not isinstance(caught.value, moec.DefectError) and "\n" not in str(caught.value)


def test_errors_of_the_function_that_gets_text_are_its_own(model):
    def failing(place, text):
        raise KeyError("key")

    with pytest.raises(MoecError, match=r"^on_text failed with KeyError: 'key'$") as caught:
        moec.generate(model, "abc", on_text=failing)
    assert isinstance(caught.value.__cause__, KeyError) and not isinstance(caught.value, DefectError)
    with pytest.raises(MoecError, match=r"^on_text is 5 of type int; expected a function"):
        moec.generate(model, "abc", on_text=5)


def test_a_wrong_option_is_a_type_error_too(model):
    for call in (moec.generate, moec.load, moec.compile):
        with pytest.raises(TypeError, match=rf"^{call.__name__} has no option 'thread'"):
            call("model", thread=1)


def test_a_chat_puts_prompts_into_the_template(tmp_path):
    template = (
        "{% for m in messages %}{{ m.content }}{{ other_token }}{% endfor %}{% if add_generation_prompt %}c{% endif %}"
    )
    config = {"chat_template": [{"name": "default", "template": template}], "other_token": {"content": "b"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (actual,) = moec.generate(model_of(TEXT, tmp_path), "a", chat=True, max_new_tokens=1)
    assert (actual.text, actual.prompt_tokens) == (" ", 3)


def test_messages_are_a_conversation(tmp_path):
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role[:1] }}{{ m.content }}{% endfor %}{% if add_generation_prompt %}a{% endif %}"
    )
    model = model_of(TEXT, tmp_path)
    talk = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, {"role": "user", "content": "z"}]
    (actual,) = moec.generate(model, talk)
    assert (actual.prompt_tokens, actual.text, actual.prompt) == (7, TEXT[1:], talk)
    both = moec.generate(model, [talk, "ab", ids_of(model, "abc")], max_new_tokens=1)
    assert [completion.prompt_tokens for completion in both] == [7, 2, 3] and both[0].ids == actual.ids[:1]
    assert moec.generate(model, talk, system="w")[0].prompt_tokens == 9
    with pytest.raises(MoecError, match="prompt 1 has a message of the system already; leave system out"):
        moec.generate(model, [{"role": "system", "content": "v"}, *talk], system="w")


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
    assert copy.describe()["text"]["end_ids"] == [256, 257]  # all special tokens, without a configuration
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


def _counting():
    """Token n is followed by n + 1, modulo 5."""
    return parsed(
        "int64[B,S] input_ids) => (float[B,S,5] logits) <int64 one = {1}, int64 five = {5}, float[2] flat = {0, 1}> "
        "{ next = Add (input_ids, one)  token = Mod (next, five)  logits = OneHot (token, five, flat) }"
    )


def _summing(before, after, body):
    return parsed(
        f"int64[B,S] input_ids, float[B,{before},1] kept) => (float[B,1,5] logits, float[B,{after},1] grown) "
        "<int64[1] one = {1}, int64[1] two = {2}, float five = {5}, int64 depth = {5}, float[2] flat = {0, 1}> "
        "{ numbers = Cast <to = 1> (input_ids)  new = Unsqueeze (numbers, two)  total = ReduceSum (new, one) "
        f"{body} all = ReduceSum (grown, one)  left = Mod <fmod = 1> (all, five)  token = Cast <to = 7> (left) "
        "places = Squeeze (token, two)  logits = OneHot (places, depth, flat) }"
    )


def parsed(text):
    import onnx.parser

    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\ngraph ({text}')


@pytest.mark.parametrize(("room", "parts"), [(9, [9]), (4, [9, 4, 4, 1]), (1, [9, 4, 2, *[1] * 9])])
def test_prompts_are_run_in_parts_that_memory_has_room_for(room, parts):
    tried, seen = [], []

    def run(ids):
        tried.append(ids.size)
        if ids.size > room:
            raise RoomError("no room")
        seen.extend(ids[0])
        return np.full((1, ids.size, 1), len(seen))

    session = SimpleNamespace(max_tokens=None, length=0, fixed_length=None, is_incremental=True, run=run, feed=run)
    session.part_tokens = lambda new: 512
    assert prefilled(session, list(range(9))) == [9]
    assert tried == parts and seen == list(range(9))
    room = 0
    with pytest.raises(RoomError):
        prefilled(session, [1])

from __future__ import annotations

import json
import pathlib

import pytest

from moec.common.errors import MoecError
from moec.frontend.text_files import read_text_files, text_files_of

SPECIAL = [{"id": 7, "content": "<s>", "special": True}, {"id": 8, "content": "word", "special": False}]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    write(tmp_path, tokenizer={"model": {"type": "BPE"}, "added_tokens": SPECIAL})
    return tmp_path


def write(folder: pathlib.Path, **files: object) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_a_tokenizer_alone(folder):
    actual = read_text_files(folder / "tokenizer.json")
    assert actual == read_text_files(folder) == text_files_of(folder)
    assert (actual.chat_template, actual.end_ids, actual.special_tokens) == (None, (7,), {})
    assert json.loads(actual.tokenizer)["model"] == {"type": "BPE"}


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({"config": {"eos_token_id": 1}}, (1,)),
        ({"config": {"text_config": {"eos_token_id": 2}}}, (2,)),
        ({"config": {"eos_token_id": 1}, "generation_config": {"eos_token_id": [3, 4, 3]}}, (3, 4)),
        ({"config": {"eos_token_id": 1}, "generation_config": {"eos_token_id": None}}, (1,)),
        ({"config": {"eos_token_id": None}}, (7,)),
    ],
)
def test_what_ends_a_text(folder, files, ids):
    write(folder, **files)
    assert read_text_files(folder).end_ids == ids


@pytest.mark.parametrize("ends", ["</s>", -1, [1, True], 1.5])
def test_ends_that_are_no_ids_are_refused(folder, ends):
    write(folder, config={"eos_token_id": ends})
    with pytest.raises(MoecError, match=r"config.json: eos_token_id is .*; expected the id of a token, or a list"):
        read_text_files(folder)


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"text_config": {"max_position_embeddings": 4096}}, 4096),
        ({"max_position_embeddings": None}, None),
        ({"max_position_embeddings": -1, "text_config": 3}, None),
        ({"max_position_embeddings": True}, None),
    ],
)
def test_texts_that_a_model_was_trained_for(folder, config, context):
    assert read_text_files(folder).context is None
    write(folder, config=config)
    assert read_text_files(folder).context == context


def test_templates_and_special_tokens(folder):
    tokens = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None, "add_bos_token": True}
    write(folder, tokenizer_config={**tokens, "chat_template": "of the configuration"})
    actual = read_text_files(folder)
    assert actual.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert actual.chat_template == "of the configuration"
    (folder / "chat_template.jinja").write_text("of its own")
    assert read_text_files(folder).chat_template == "of its own"


def test_what_is_no_tokenizer_is_refused(folder):
    with pytest.raises(MoecError, match=r"expected a tokenizer.json, or a folder that has one"):
        read_text_files(folder / "nothing.json")
    write(folder, tokenizer={"vocabulary": []})
    with pytest.raises(MoecError, match=r"is not a tokenizer.json: it has no model"):
        read_text_files(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(MoecError, match="is not JSON"):
        read_text_files(folder)
    (folder / "tokenizer.json").unlink()
    assert text_files_of(folder) is None
    assert text_files_of(object()) is None

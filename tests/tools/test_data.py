"""Batches from text for models that take more than token ids."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from moec.common.errors import MoecError
from moec.common.specs import State, TensorSpec
from moec.tools.data import Data, TextOptions

IDS = TensorSpec("input_ids", "int64", ("rows", "length"))
MASK = TensorSpec("attention_mask", "int64", ("rows", "total"))
KEYS = TensorSpec("past.0.key", "float16", ("rows", 2, "past", 8))
STATE = TensorSpec("past.1.conv", "float32", ("rows", 6, 3))


@pytest.fixture
def text(tmp_path: pathlib.Path) -> TextOptions:
    """Write a tokenizer of the words a and b, next to the text abababab."""
    tokenizers = pytest.importorskip("tokenizers")
    built = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    built.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    built.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("a b a b a b a b\n")
    return TextOptions(tmp_path / "tokenizer.json", length=4, batch=2)


def test_caches_are_empty_and_states_zero(text: TextOptions, tmp_path: pathlib.Path) -> None:
    (batch,) = Data(tmp_path / "text.txt", [IDS, MASK, KEYS, STATE], text)
    assert batch["input_ids"].tolist() == [[0, 1, 0, 1]] * 2
    assert batch["attention_mask"].tolist() == [[1] * 4] * 2
    assert (batch["past.0.key"].shape, batch["past.0.key"].dtype) == ((2, 2, 0, 8), np.float16)
    assert (batch["past.1.conv"].shape, batch["past.1.conv"].any()) == ((2, 6, 3), False)


@pytest.mark.parametrize(
    "other",
    [
        TensorSpec("past.0.key", "float32", ("rows", 2, "past", "size")),
        TensorSpec("features", "float32", ("rows", 2, "past", 8)),
    ],
    ids=["unknown size", "no cache"],
)
def test_what_does_not_follow_from_text_is_refused(
    other: TensorSpec, text: TextOptions, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(
        MoecError, match=r"text gives token ids .* and empty caches past\*; the model takes .*give \.npz"
    ):
        list(Data(tmp_path / "text.txt", [IDS, other], text))


def test_states_may_be_left_out_together(tmp_path: pathlib.Path) -> None:
    specs = [IDS, TensorSpec("past_key", "float32", ("batch", 2, "past", 4))]
    arrays = {"input_ids": np.zeros((2, 3), np.int64), "past_key": np.zeros((2, 2, 1, 4), np.float32)}
    states = [State("past_key", "present_key", 2)]
    for contents in (arrays, {"input_ids": arrays["input_ids"]}):
        np.savez(tmp_path / "data.npz", **contents)
        (batch,) = Data(tmp_path / "data.npz", specs, states=states)
        assert batch.keys() == contents.keys()
    with pytest.raises(MoecError, match="has no array 'past_key'"):
        list(Data(tmp_path / "data.npz", specs))

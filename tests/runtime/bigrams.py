"""A language model that maps each byte of a text to the next one, with a tokenizer of bytes, so that its output is
known."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx
import pytest
from onnx import helper

import moec

BYTES, START, END = 256, 256, 257


def tokenizer_json(path: pathlib.Path) -> pathlib.Path:
    """Write a tokenizer in which byte b is the token at b's place in the order of GPT-2's characters; then come <s> and
    </s>."""
    tokenizers = pytest.importorskip("tokenizers")
    built = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=_vocabulary(tokenizers), merges=[]))
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = tokenizers.decoders.ByteLevel()
    built.add_special_tokens(["<s>", "</s>"])
    built.save(str(path))
    return path


def _vocabulary(tokenizers) -> dict[str, int]:
    return {character: index for index, character in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}


def model_of(text: str, folder: pathlib.Path, **options) -> moec.CompiledModel:
    """Make a model that completes any beginning of ``text``, whose bytes are all different, and then ends."""
    import tokenizers

    path = tokenizer_json(folder / "tokenizer.json")
    ids = tokenizers.Tokenizer.from_file(str(path)).encode(text).ids
    assert len(set(ids)) == len(ids)
    table = np.zeros((BYTES + 2, BYTES + 2), np.float32)
    for before, after in zip(ids, [*ids[1:], END], strict=True):
        table[before, after] = 9
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["logits"])],
        "bigrams",
        [helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", "length", BYTES + 2])],
        [onnx.numpy_helper.from_array(table, "table")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(proto, folder / "bigrams.onnx")
    return moec.compile(proto, tokenizer=path, **options)

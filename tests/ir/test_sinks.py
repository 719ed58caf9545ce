"""Attention sinks in a graph: those that GGUF files bring are found, and keys that only look like them are not."""

from __future__ import annotations

import pathlib

import onnx_ir as ir
import pytest

from moec.frontend.gguf import import_file
from moec.ir.graphs import is_op
from moec.ir.sinks import sinks_of
from moec.passes import pipeline
from moec.passes.framework.base import Report

from ..frontend.gguf.tiny_models import write_model


def attentions(name: str, folder: pathlib.Path) -> list[ir.Node]:
    model = import_file(write_model(name, folder / "model.gguf"), cache=True)
    pipeline.run(model, pipeline.parse("infer-shapes"), Report())
    return [node for node in model.graph if is_op(node, "Attention")]


def test_sinks_of_a_file_of_llama_cpp_are_found(tmp_path):
    for node in attentions("gpt-oss", tmp_path):
        sinks = sinks_of(node)
        assert sinks is not None
        assert (sinks.key.producer().op_type, sinks.value.producer().op_type) == ("Concat", "Concat")
        assert sinks.mask.producer().op_type == "Where" and list(sinks.logits.shape) == [1, 4, 1, 1]


@pytest.mark.parametrize(("operand", "position"), [(1, 1), (1, 3), (2, 3), (3, 1)])
def test_keys_that_are_no_sinks_are_not_found(operand, position, tmp_path):
    """A first key, value or order of other sizes, or along another axis."""
    for node in attentions("gpt-oss", tmp_path):
        padding = node.inputs[operand].producer()
        padding = padding if is_op(padding, "Pad") else padding.inputs[0].producer()
        value = ir.Value(name="other", const_value=ir.tensor([0, 1] if position == 1 else [0]))
        padding.replace_input_with(position, value)
        assert sinks_of(node) is None


def test_attention_without_sinks_has_none(tmp_path):
    assert [sinks_of(node) for node in attentions("qwen3moe", tmp_path)] == [None, None]

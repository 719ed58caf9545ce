"""States that drafts can come back to: those of recurrences and convolutions that add one token after the other."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from moec.compiling.stepwise_states import stepwise_states
from moec.frontend.gguf import import_file
from moec.passes import pipeline
from moec.passes.framework.base import Report

from ..frontend.gguf.tiny_models import write_model
from ..runtime.test_drafts import RECURRENT
from ..runtime.tiny_decoder import tiny_decoder, tiny_hybrid

ADDED = "x3 = Add (x2, read)"


def stepwise(model: ir.Model) -> list[str]:
    pipeline.run(model, pipeline.parse("O2"), Report())
    return stepwise_states(model)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3next", ["past_conv_0", "past_state_0"]),
        ("nemotron_h_moe", ["past_conv_0", "past_state_0"]),
        ("lfm2", ["past_conv_0"]),
        ("llama", []),
    ],
)
def test_states_of_files_of_llama_cpp(name: str, expected: list[str], tmp_path: Path) -> None:
    assert stepwise(import_file(write_model(name, tmp_path / "model.gguf"), cache=True)) == expected


def test_a_recurrence_and_a_convolution() -> None:
    assert stepwise(ir.from_proto(tiny_hybrid())) == ["conv", "state"]
    assert stepwise(ir.from_proto(tiny_decoder())) == []


@pytest.mark.parametrize(
    ("replaced", "expected"),
    [
        ({"x2, state, decay": "x2, doubled, decay", "read, new": "doubled = Add (state, state) read, new"}, 2),
        ({"read, new": "size = Shape (conv) more = Mul (size, size) read, new"}, 2),
        ({"read, new_state": "read, own", ADDED: f"{ADDED} new_state = Add (own, state)"}, 1),
        ({"new_conv = Slice (seen": "whole = Mul (seen, seen) new_conv = Slice (whole"}, 1),
    ],
)
def test_other_nodes_beside_them(replaced: dict[str, str], expected: int) -> None:
    assert len(stepwise(ir.from_proto(tiny_hybrid(replaced)))) == expected


def test_a_sum_over_the_tokens_of_a_run_is_none() -> None:
    assert stepwise(ir.from_proto(onnx.parser.parse_model(RECURRENT))) == []

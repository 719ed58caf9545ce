"""Printed output of ``moec inspect``."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper
from rich.console import Console

import moec
from moec import targets
from moec.inspect.artifact import artifact_tables

GROWS = """<ir_version: 10, opset_import: ["" : 24]>
graph (int64[B,S] ids, float[B,P,4] past) => (float[B,S,4] logits, float[B,R,4] present) {
    x = Gather (table, ids) present = Concat <axis = 1> (past, x) sum = ReduceSum (present, one)
    logits = Add (x, sum) }"""
IS_REPLACED = """<ir_version: 10, opset_import: ["" : 24]>
graph (int64[B,S] ids, float[B,1,4] past) => (float[B,S,4] logits, float[B,1,4] next) {
    x = Gather (table, ids) sum = ReduceSum (x, one) next = Add (past, sum) logits = Add (x, next) }"""


def printed(text: str) -> str:
    model = onnx.parser.parse_model(text)
    arrays = {"table": np.ones((5, 4), np.float32), "one": np.array([1])}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    console = Console(file=io.StringIO(), width=200)
    console.print(*artifact_tables(moec.compile(model, passes="O1,hold-cache").describe()))
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (GROWS, "1 cache float32[B, P, 4], written along axis 1: past -> present"),
        (IS_REPLACED, "1 state float32[B, 1, 4], replaced by each run: past -> next"),
    ],
)
def test_states_of_a_shape_are_a_line(text, line):
    shown = [" ".join(line.split()) for line in printed(text).splitlines()]
    assert line in shown and "input ids int64 [B, S]" in shown
    assert not any(row.startswith(("input past", "output present", "output next")) for row in shown)


def block(name: str, experts: int = 4, stored: str = "float32") -> dict[str, Any]:
    return {
        **dict.fromkeys(("op", "router", "activation", "gate_layout", "formulation"), "some"),
        "name": name,
        "num_experts": experts,
        "top_k": 2,
        "hidden_size": 8,
        "intermediate_size": 16,
        "dtype": "float32",
        "formats": {"up": [stored] * experts, "down": [stored] * experts},
        "origins": None,
        "experts": {"arithmetic": "float32", "activation_group": 0, "hidden_sizes": []},
    }


def shown(target: str = "cpu", at_most: int | None = None, **changed: Any) -> list[str]:
    """Print a description, or its first few parts, and return the lines with single spaces."""
    description = {
        "target": target,
        "moec_version": "0",
        "requirements": [],
        "moe_blocks": [],
        "kernels": [],
        "architectures": [],
        "inputs": [],
        "outputs": [],
        "states": [],
        "text": None,
        "weights": [],
        "stages": [],
        "losses": [],
        "remarks": [],
        "projects": [],
        **changed,
    }
    console = Console(file=io.StringIO(), width=200)
    console.print(*itertools.islice(artifact_tables(description), at_most))
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_equal_layers_stand_once_and_first():
    blocks = [block(f"layers.{layer}.experts", 8 if layer == 2 else 4) for layer in range(24)]
    weights = [{"name": f"layers.{n}.up", "dtype": "float32", "shape": [4], "bytes": 16} for n in range(24)]
    inputs = [{"name": "x", "dtype": "float32", "shape": ["n", 4]}]
    lines = shown(moe_blocks=blocks, weights=weights, inputs=inputs)
    assert "0-1, 3-23 layers.{0-1, 3-23}.experts some 4 2 some some some 8 16 float32 some" in lines
    assert "2 layers.2.experts some 8 2 some some some 8 16 float32 some" in lines
    assert "0-23 16 float32 float32 float32" in lines
    assert "layers.{0-23}.up 24 float32 [4] 384" in lines
    order = [
        next(at for at, line in enumerate(lines) if line.startswith(word)) for word in ("MoE", "Inputs", "Weights")
    ]
    assert order == sorted(order) and len(lines) < 40


def test_layers_that_differ_in_their_formats_stand_apart():
    lines = shown(moe_blocks=[block("a.0"), block("a.1", stored="int4/32"), block("a.2")])
    assert {"0, 2 16 float32 float32 float32", "1 16 int4/32 int4/32 float32"} <= set(lines)


def test_a_design_shows_the_integers_that_it_computes_with():
    designed = [{"name": "moe_0", "folder": "f", "report": {"weights": {"a.0": "int4"}}}]
    blocks = [block("a.0"), block("a.1")]
    kind = targets.kind_of("hls:zcu102")
    assert kind.weight_types({"projects": designed}) == {"a.0": "int4"}
    lines = shown("hls:zcu102", at_most=3, moe_blocks=blocks, projects=designed)
    assert {"0 16 int4 int4 int8", "1 16 float32 float32 float32"} <= set(lines)
    assert "0 a.0 some 4 2 some some some 8 16 int4 some" in lines


def test_remarks_and_losses_of_one_kind_stand_once():
    remarks = [
        {"severity": "note", "pass_name": "p", "subject": f"layer {n}", "message": "left" if n else "raised"}
        for n in range(9)
    ]
    losses = [
        {
            "layer": f"layers.{n}.up",
            "formats": {"up": ["int4"]},
            "arithmetic": "int8" if n < 3 else "float32",
            "weight_error": 0.01 * (n + 1),
            "output_error": 0.02,
        }
        for n in range(4)
    ]
    lines = shown(remarks=remarks, losses=losses)
    assert {"note p layer 0 raised", "note p layer {1-8} left"} <= set(lines)
    assert {"layers.{0-2}.up up int4 int8 1.00% to 3.00% 2.00%", "layers.3.up up int4 float32 4.00% 2.00%"} <= set(
        lines
    )


def test_passes_are_a_line_of_those_that_changed_something_first():
    stages = [{"name": name, "changed": changed} for name, changed in (("a", True), ("b", False), ("a", False))]
    assert "passes: a; changed nothing: b" in shown(stages=stages)
    assert "passes: none changed the model; changed nothing: b" in shown(stages=stages[1:2])

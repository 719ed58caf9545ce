"""``moec import``: MoE blocks, and subgraphs that only look like one."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from moec.cli.main import app

from ..text_models import model_of

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "char_lm" / "model.onnx"


def moec(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def soft(tmp_path) -> pathlib.Path:
    """Make two experts, both for every token, that see the tokens before it."""
    nodes = """
        logits = MatMul (x, gate)
        scores = Softmax <axis = -1> (logits)
        h = Einsum <equation = "td,edf->tef"> (x, up)
        seen = CumSum (h, first)
        a = Relu (seen)
        o = Einsum <equation = "tef,efd->ted"> (a, down)
        y = Einsum <equation = "ted,te->td"> (o, scores)
    """
    shapes = {"gate": (4, 2), "up": (2, 4, 3), "down": (2, 3, 4)}
    normal = np.random.default_rng(0).standard_normal
    weights = {name: normal(shape, np.float32) for name, shape in shapes.items()} | {"first": np.array(0)}
    onnx.save(model_of(nodes, weights), tmp_path / "soft.onnx")
    return tmp_path / "soft.onnx"


def test_blocks_are_counted():
    done = moec("import", EXAMPLE)
    assert done.exit_code == 0
    assert done.stdout == f"{EXAMPLE}: 2 MoE blocks are raised, 0 more look like one and are not\n"


def test_a_report_has_a_row_for_each_block(soft):
    assert moec("import", EXAMPLE, "--report").stdout.count("softmax, normalize") == 2
    done = moec("import", soft, "--report")
    assert "it weighs all of its experts for every token, and nothing selects among them" in done.stdout
    assert "0 MoE blocks are raised, 1 more look like one and are not" in done.stdout


def test_a_report_as_json(soft):
    actual = json.loads(moec("import", soft, "--json").stdout)
    assert actual["raised"] == []
    assert [(block["experts"], block["top_k"]) for block in actual["unraised"]] == [(2, None)]


def test_experts_of_any_form_are_counted(tmp_path):
    """Each model has three layers; all experts share the first."""
    nodes = """
        logits = MatMul (x, gate)
        scores = Softmax <axis = -1> (logits)
        w0, w1 = Split <axis = -1, num_outputs = 2> (scores)
        h = MatMul (x, common)
        a = Sin (h)
        o0 = MatMul (a, first)
        o1 = MatMul (a, second)
        y0 = Mul (o0, w0)
        y1 = Mul (o1, w1)
        y = Add (y0, y1)
    """
    random = np.random.default_rng(0)
    shapes = {"gate": (4, 2), "common": (4, 4), "first": (4, 4), "second": (4, 4)}
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    onnx.save(model_of(nodes, weights), tmp_path / "deep.onnx")
    (actual,) = json.loads(moec("import", tmp_path / "deep.onnx", "--json").stdout)["raised"]
    assert (actual["num_experts"], actual["top_k"]) == (2, 2)
    assert actual["formulation"] == "a graph over dispatched rows"


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_text("no model")
    done = moec("import", tmp_path / "model.onnx")
    assert done.exit_code != 0
    assert done.stdout == ""

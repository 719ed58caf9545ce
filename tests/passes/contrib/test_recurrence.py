"""LinearAttention against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from moec.frontend.onnx.importer import import_model
from moec.passes import pipeline
from moec.passes.framework.base import Report

from .conftest import HEADER

ROWS = "float[B,T,32] q, float[B,T,16] k, float[B,T,12] v"
SIZES = "q_num_heads = 4, kv_num_heads = 2"


@pytest.mark.parametrize(
    ("rule", "gates", "widths"),
    [
        ("gated_delta", "past, g, b", (16, 2)),
        ("gated", "past, g", (2,)),
        ("delta", 'past, "", b', (1,)),
        ("linear", "past", ()),
        ("gated_delta", '"", g, b', (2, 1)),
    ],
)
def test_rules(decompose, normal, rule, gates, widths):
    given = [name for name in gates.split(", ") if len(name) == 1]
    shapes = dict(zip(given, widths, strict=True))
    extra = "".join(f", float[B,T,{width}] {name}" for name, width in shapes.items())
    state = ", float[B,2,8,6] past" if "past" in gates else ""
    inputs = {"q": normal(2, 5, 32), "k": normal(2, 5, 16), "v": normal(2, 5, 12)}
    inputs |= {name: -np.abs(normal(2, 5, width)) for name, width in shapes.items()}
    inputs |= {"past": normal(2, 2, 8, 6)} if state else {}
    model = decompose(
        f"({ROWS}{state}{extra}) => (float[B,T,24] y, float[B,2,8,6] after) "
        f'{{ y, after = com.microsoft.LinearAttention <{SIZES}, update_rule = "{rule}"> (q, k, v, {gates}) }}',
        inputs,
    )
    assert [node.op_type for node in model.graph] == ["LinearAttention"]


@pytest.mark.parametrize(("queries", "keys", "values"), [(2, 2, 4), (2, 4, 4), (4, 2, 4), (2, 1, 4), (1, 1, 3)])
def test_neighbouring_values_share_a_query_or_a_key(decompose, normal, queries: int, keys: int, values: int):
    widths = {"q": 8 * queries, "k": 8 * keys, "v": 6 * values}
    rows = ", ".join(f"float[B,T,{width}] {name}" for name, width in widths.items())
    heads = max(queries, values)
    model = decompose(
        f"({rows}, float[B,{values},8,6] past) => (float[B,T,{6 * heads}] y, float[B,{values},8,6] after) "
        f"{{ y, after = com.microsoft.LinearAttention <q_num_heads = {queries}, kv_num_heads = {values}, "
        'update_rule = "linear"> (q, k, v, past) }',
        {**{name: normal(2, 5, width) for name, width in widths.items()}, "past": normal(2, values, 8, 6)},
    )
    assert model.graph[-1].op_type == "LinearAttention"


def test_heads_that_do_not_divide_are_left_alone():
    text = "(float[B,T,24] q, float[B,T,24] k, float[B,T,24] v) => (float[B,T,24] y) { y = com.microsoft."
    text += 'LinearAttention <q_num_heads = 3, kv_num_heads = 4, update_rule = "linear"> (q, k, v) }'
    model, report = import_model(onnx.parser.parse_model(HEADER + text)), Report()
    pipeline.run(model, pipeline.parse("decompose-contrib"), report)
    assert "3 heads of 8 for 4 heads of values; expected a divisor" in report.remarks[0].message


def test_a_window_of_states_is_left_alone():
    text = f"({ROWS}) => (float[B,T,24] y, float[W,B,2,8,6] after) {{ y, after = com.microsoft.LinearAttention "
    text += f'<{SIZES}, state_window = 2, update_rule = "linear"> (q, k, v) }}'
    model, report = import_model(onnx.parser.parse_model(HEADER + text)), Report()
    pipeline.run(model, pipeline.parse("decompose-contrib"), report)
    assert [node.domain for node in model.graph] == ["com.microsoft"]
    assert "attribute state_window is 2; expected 0" in report.remarks[0].message

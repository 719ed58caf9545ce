"""The table of experts: ranges, formats and kernels."""

from __future__ import annotations

from typing import Any

import pytest

from moec.inspect.experts import by_ranges, expert_rows, origin_rows, product_rows


def block(**changes: Any) -> dict[str, Any]:
    experts = {"hidden_sizes": [], "arithmetic": "float32", "activation_group": 0}
    formats = {"up": ["float32"] * 4, "down": ["float32"] * 4}
    fields = {"name": "layer.0", "intermediate_size": 96, "formats": formats, "experts": experts}
    fields["experts"] = experts | changes.pop("experts", {})
    return fields | changes


def kernel(name: str, *nodes: str, **attributes: Any) -> dict[str, Any]:
    return {"name": name, "nodes": list(nodes), "attributes": attributes}


@pytest.mark.parametrize(
    "values, text",
    [
        ([512] * 128, "512"),
        ([7], "7"),
        ([512, 512, 512, 96, 512], "0-2: 512, 3: 96, 4: 512"),
        ([0, 1], "0: 0, 1: 1"),
        ([], "?"),
        ([*range(64)] * 2, "0 to 63, mean 32 (--json lists them)"),
        (
            ["int4", "int8"] * 9,
            f"int4: {', '.join(map(str, range(0, 18, 2)))}; int8: {', '.join(map(str, range(1, 18, 2)))}",
        ),
    ],
)
def test_experts_are_listed_by_ranges(values, text):
    assert by_ranges(values) == text


def test_a_block_of_equal_experts_takes_a_word_per_column():
    kernels = [
        kernel("route", "layer.0"),
        kernel("product", "layer.0", "layer.1", formats=["float32"]),
        kernel("other", "layer.1", formats=["float32"]),
    ]
    (row,) = expert_rows([block()], kernels)
    assert row == ("layer.0", "96", "float32", "float32", "float32", "product")


def test_experts_that_differ_are_told_apart():
    formats = {"up": ["int4/32"] * 4, "gate": ["int8"] * 4, "down": ["bfloat16", "int8/32", "int8/32", "mxfp4"]}
    experts = {"hidden_sizes": [96, 96, 0, 31], "arithmetic": "int8", "activation_group": 32}
    (row,) = expert_rows([block(formats=formats, experts=experts)], [])
    assert row[1] == "0-1: 96, 2: 0, 3: 31"
    assert row[2] == "gate int8\nup int4/32"
    assert row[3] == "0: bfloat16, 1-2: int8/32, 3: mxfp4"
    assert row[4] == "int8, groups of 32"


def test_what_is_unknown_is_a_question_mark():
    (row,) = expert_rows([block(formats={}, intermediate_size=None)], [])
    assert row[1:4] == ("?", "?", "?")


def test_one_line_says_what_became_of_experts():
    removed = {"7": "a: dead", "9": "a: dead", "8": "b: zero"}
    changed = block(origins={"experts": [[0], [1, 5], [2]], "removed": removed})
    joined = block(name="layer.1", origins={"experts": [[0, 1]], "removed": {}})
    assert origin_rows([changed, joined, block(origins=None), block()]) == [
        ("layer.0", "1+5 are one; without 7, 9 (a: dead); without 8 (b: zero)"),
        ("layer.1", "0+1 are one"),
    ]


def test_every_product_over_dispatched_rows_has_a_row():
    sizes = {"inputs": 16, "outputs": 24, "arithmetic": "int8", "activation_group": 0}
    dispatched = {"name": "layer.0", "experts": None, "formats": {"widen": ["int4", "int8"]}}
    dispatched["products"] = [{"name": "widen", **sizes}]
    kernels = [kernel("dispatch", "layer.0"), kernel("product", "widen", formats=["int4", "int8"])]
    assert expert_rows([dispatched], kernels) == []
    (row,) = product_rows([block(), dispatched], kernels)
    assert row == ("layer.0", "widen", "16 x 24", "0: int4, 1: int8", "int8", "product")

"""Descriptions of one expert."""

from __future__ import annotations

from typing import Any

import pytest

from moec.common.errors import MoecError
from moec.inspect.one_expert import became, find_expert

ORIGINS = {
    "experts": [[0], [2, 5], [4], [6]],
    "removed": {"1": "prune-experts: reap 0.1, place 1 of 6 from below", "3": "drop-dead-experts: its logit is -inf"},
    "joined": {"5": "merge-experts: ream, similarity 0.912, saliency 0.2"},
}


def block(**changes: Any) -> dict[str, Any]:
    experts = {"hidden_sizes": [96, 96, 40], "identity_experts": 1}
    formats = {"up": ["float32"] * 3, "down": ["int8", "int4/32", "int8"]}
    fields = {"name": "layer.0", "num_experts": 3, "intermediate_size": 96, "formats": formats, "experts": experts}
    return {**fields, "hidden_size": 64, "gate_layout": "none", "origins": ORIGINS, **changes}


@pytest.mark.parametrize(
    ("expert", "line"),
    [
        (0, "expert 0 is number 0; 96 hidden units; up float32, down int8; 20 bits, 30976 bytes"),
        (1, "expert 1 is gone (prune-experts: reap 0.1, place 1 of 6 from below)"),
        (2, "expert 2 is number 1, one with 5; 96 hidden units; up float32, down int4/32; 18 bits, 28032 bytes"),
        (3, "expert 3 is gone (drop-dead-experts: its logit is -inf)"),
        (4, "expert 4 is number 2; 40 hidden units; up float32, down int8; 20 bits, 13056 bytes"),
        (
            5,
            "expert 5 is number 1, one with 2 (merge-experts: ream, similarity 0.912, saliency 0.2); 96 hidden units; "
            "up float32, down int4/32; 18 bits, 28032 bytes",
        ),
        (6, "expert 6 is number 3"),
    ],
)
def test_each_expert_has_its_line(expert, line):
    for layer in ("1", "layer.0"):
        blocks = [block(name="first", origins=None), block()]
        assert became(find_expert(blocks, f"{layer}:{expert}")) == f"layer layer.0: {line}"


def test_a_layer_without_changes_has_the_experts_that_it_had():
    actual = find_expert([block(origins=None)], "0:2")
    assert actual == {
        "layer": "layer.0", "expert": 2, "number": 2, "with": [], "why": None, "hidden_units": 40,
        "formats": {"up": "float32", "down": "int8"}, "bits": 20.0, "bytes": 13056,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3", "--expert '3': expected LAYER:EXPERT, such as 3:17"),
        ("0:x", "expected LAYER:EXPERT"),
        ("0:-1", "expected LAYER:EXPERT"),
        ("2:0", r"no layer '2'; there are 0 \(layer.0\)"),
        ("other:0", "no layer 'other'"),
        ("0:7", "layer layer.0 has no expert 7; it had 0 to 6"),
    ],
)
def test_what_is_no_expert_is_refused(text, message):
    with pytest.raises(MoecError, match=message):
        find_expert([block()], text)


def test_experts_over_dispatched_rows_tell_the_format_of_each_product():
    dispatched = {"name": "layer.1", "num_experts": 2, "intermediate_size": None, "experts": None, "origins": None}
    dispatched |= {"products": [{"name": "widen", "inputs": 8, "outputs": 16}]}
    actual = find_expert([{**dispatched, "formats": {"widen": ["int4", "int8"]}}], "0:1")
    assert became(actual) == "layer layer.1: expert 1 is number 1; widen int8; 8 bits, 192 bytes"

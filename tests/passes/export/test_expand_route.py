"""The pass that spells routers in ONNX: the interpreter's and onnxruntime's results are those of the router."""

from __future__ import annotations

import numpy as np
import pytest

from moec.passes.framework.base import Report

from ...products import thinned
from ..before_after import rewrite

E = 8
SPECS = [
    "k = 2",
    "k = 8, selection = \"all\"",
    "k = 2, normalize = 1",
    "k = 3, normalize = 1, normalize_epsilon = 0.1, scale = 2.5, score = \"sigmoid\"",
    "k = 2, normalize = 1, normalize_floor = 0.9",
    "k = 3, score = \"softmax_topk\", scale = 0.5",
    "k = 2, score = \"sigmoid_topk\"",
    "k = 2, score = \"sqrt_softplus\"",
    "k = 2, score = \"softplus\"",
    "k = 3, score = \"relu\"",
    "k = 3, score = \"identity\"",
    "k = 2, score = \"sparsemixer\", jitter = 0.05",
    "k = 1, score = \"sparsemixer\", jitter = 0.3",
    "k = 3, groups = 4, groups_kept = 2",
    "k = 2, groups = 2, groups_kept = 1, group_score = \"sum_top2\", score = \"sigmoid\"",
    "k = 3, groups = 8, groups_kept = 4, group_score = \"sum_top2\"",
    "k = 3, threshold = 0.15",
    "k = 3, threshold = 0.1, relative_threshold = 0.6, normalize = 1",
    "k = 3, relative_threshold = 0.5, score = \"identity\"",
    "k = 8, selection = \"expert_choice\", capacity = 2",
    "k = 8, selection = \"expert_choice\", capacity = 2, score = \"softmax_topk\"",
    "k = 8, selection = \"expert_choice\", capacity = 3, score = \"sigmoid\", normalize = 1, normalize_epsilon = 0.01",
    "k = 2, capacity = 2, normalize = 1",
    "k = 3, capacity = 1, score = \"sigmoid\"",
]  # fmt: skip
"""Attributes of routers; every field of RouteSpec has another value than its default in one of them."""


def logits(tokens: int) -> np.ndarray:
    """Numbers with many ties."""
    return np.round(np.random.default_rng(tokens).normal(size=(tokens, E)) * 2).astype(np.float32) / 2


CASES = [{"logits": logits(tokens)} for tokens in (7, 1, 0)]


def router(spec: str, inputs: str = "logits", declared: str = "", dtype: str = "float") -> str:
    k = spec.split(",")[0].removeprefix("k = ")
    taken = f"{dtype}[T,{E}] logits" + (f", float[{E}] t" if "t" in inputs.split(", ") else "")
    node = f"w, e = moec.Route <{spec}> ({inputs})"
    return f"({taken}) => ({dtype}[T,{k}] w, int32[T,{k}] e) {declared} {{ {node} }}"


@pytest.mark.parametrize("spec", SPECS)
def test_results_are_those_of_the_router(exported, spec):
    model, report = exported(router(spec), *CASES)
    assert not [node for node in model.graph if node.domain] and not report.remarks


@thinned("spec", [spec for spec in SPECS if "sparsemixer" not in spec and '"all"' not in spec], 4)
def test_a_bias_changes_the_selection_alone(exported, spec):
    exported(router(spec, "logits, bias", f"<float[{E}] bias>"), *CASES)


def test_numbers_of_16_bits_are_computed_in_32(exported):
    text = router("k = 2, normalize = 1", dtype="float16")
    model, _ = exported(text, {"logits": logits(5).astype(np.float16)}, tolerance=1e-3)
    assert model.graph.node(0).op_type == "Cast"


def test_a_router_with_a_tolerance_stays():
    report = Report()
    model = rewrite(router("k = 2", "logits, , t"), "expand-route", report=report)
    assert model.graph.node(0).op_type == "Route"
    assert [remark.severity for remark in report.remarks] == ["warning"]

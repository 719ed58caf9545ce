"""The pass that spells experts over dispatched rows, which onnxruntime runs."""

from __future__ import annotations

import numpy as np
import pytest

from .test_use_moe import D, E, cases, operators

F = 6


def graph(product: str, declared: str = f"float[{E},{D},{F}] w", route: str = "k = 2, threshold = 0.2") -> str:
    return f"""(float[T,{D}] x, float[T,{E}] logits) => (float[T,{F}] y) <{declared}> {{
       s, e = moec.Route <{route}> (logits)
       offsets, positions, tokens, owners = moec.Dispatch <expert_count = {E}> (e)
       rows = Gather <axis = 0> (x, tokens)
       {product}
       y = moec.Combine (own, s, positions)
    }}"""


@pytest.mark.parametrize(
    ("product", "declared"),
    [
        ("own = moec.GroupedMatMul (rows, w, offsets)", f"float[{E},{D},{F}] w"),
        ("own = moec.GroupedMatMul (rows, w, offsets, b)", f"float[{E},{D},{F}] w, float[{E},{F}] b"),
        ("wide = moec.GroupedMatMul (rows, v, offsets) table = Gather <axis = 0> (scales, owners) "
         "h = Mul (wide, table) own = moec.GroupedMatMul (h, w, offsets)",
         f"float[{E},{D},9] v, float[{E},9,{F}] w, float[{E},9] scales"),
    ],
)  # fmt: skip
def test_products(exported, normal, product, declared):
    model, report = exported(graph(product, declared), *cases(normal))
    assert operators(model) == [] and not report.remarks


def test_no_pair_at_all(exported, normal):
    feeds = [{"x": normal(3, D), "logits": np.zeros((3, E), np.float32)}]
    exported(graph("own = moec.GroupedMatMul (rows, w, offsets)", route="k = 2, threshold = 0.9"), *feeds)


@pytest.mark.parametrize("options", ["format=int8", "format=int4,group=4", "format=int8,experts=1-2"])
def test_weights_in_other_formats(exported, normal, options):
    product = "own = moec.GroupedMatMul (rows, w, offsets, b)"
    passes = f"quantize-experts{{{options}}},keep-rows"
    model, _ = exported(graph(product, f"float[{E},{D},{F}] w, float[{E},{F}] b"), *cases(normal), passes=passes)
    assert operators(model) == []


def test_weights_that_are_computed(exported, normal):
    exported(graph("v = Exp (w) own = moec.GroupedMatMul (rows, v, offsets)"), *cases(normal))

from __future__ import annotations

import pytest

from moec.common.errors import MoecError
from moec.passes.check_export import CheckExport
from moec.passes.framework.base import Report

from .before_after import check, model_of

PASSES = "infer-shapes,fold-shapes,check-export"
COMBINE = """(float[T,8] logits, float[T,4] x) => (float[A,B] y) <int64[1] k = {2}, int64[1] flat = {-1},
    int64[1] axis = {1}, int64[2] wide = {1, 4}, int64[1] w4 = {4}> { """
ZEROS = "s = Shape (x) zeros = ConstantOfShape (s) "


def warnings(rewrite, text: str) -> list[str]:
    report = Report()
    rewrite(text, PASSES, report=report)
    return [remark.message for remark in report.remarks if remark.severity == "warning"]


@pytest.mark.parametrize("target, refused", [("2, 8", True), ("-1, 8", False), ("0, 2, 4", False)])
def test_a_reshape_to_the_size_of_an_example(rewrite, target, refused):
    rank = target.count(",") + 1
    dims = ",".join("ABC"[:rank])
    text = f"""(float[T,8] x) => (float[{dims}] y) <int64[{rank}] target = {{{target}}}> {{
        r = Relu (x) z = Reshape (r, target) y = Neg (z) }}"""
    if not refused:
        assert warnings(rewrite, text) == []
        return
    with pytest.raises(MoecError, match=r"node 'z': Reshape makes \[2, 8\] of a value with 8\*T elements"):
        warnings(rewrite, text)


def test_a_split_into_the_sizes_of_an_example(rewrite):
    text = """(float[T,8] x) => (float[A,8] y, float[B,8] z) <int64[2] parts = {3, 2}> {
        y, z = Split <axis = 0> (x, parts) }"""
    with pytest.raises(MoecError, match=r"node 'y': Split cuts an axis of T elements"):
        warnings(rewrite, text)


def test_a_split_of_an_axis_of_known_size_is_fine():
    text = """(float[T,5] x) => (float[T,3] y, float[T,2] z) <int64[2] parts = {3, 2}> {
        y, z = Split <axis = 1> (x, parts) }"""
    assert check("check-export", text) == []


@pytest.mark.parametrize("parts", [2, 3])
def test_fewer_active_experts_than_there_are(rewrite, parts):
    names = ["a", "b", "c"][:parts]
    outputs = ", ".join(f"int64[{name.upper()},1] {name}" for name in names)
    text = f"""(float[T,3] logits) => ({outputs}) <int64[1] k = {{2}}, int64[1] n = {{3}}, int64[2] off_on = {{0, 1}},
        int64 zero = {{0}}, int64[2] axes = {{-1, -2}}, int64[{parts}] parts = {{{", ".join(["1"] * parts)}}}> {{
        w, e = TopK (logits, k) hot = OneHot (e, n, off_on) t = Transpose <perm = [2,1,0]> (hot)
        count = ReduceSum <keepdims = 0> (t, axes) hit = Greater (count, zero) list = NonZero (hit)
        column = Transpose <perm = [1,0]> (list) {", ".join(names)} = Split <axis = 0> (column, parts) }}"""
    if parts == 3:
        assert warnings(rewrite, text) == []
        return
    with pytest.raises(MoecError, match="Split handles 2 active experts, but there are 3"):
        warnings(rewrite, text)


SCATTERED = "i = Unsqueeze (f, axis) rows = Gather (x, f) shape = Shape (rows) idx = Expand (i, shape) "


def test_a_scatter_with_more_updates_than_rows(rewrite):
    body = f"w, e = TopK (logits, k) f = Reshape (e, flat) {SCATTERED}{ZEROS}"
    text = f"{COMBINE}{body} y = ScatterElements <axis = 0> (zeros, idx, rows) }}"
    with pytest.raises(MoecError, match="ScatterElements overwrites rows that get several updates"):
        warnings(rewrite, text)
    assert warnings(rewrite, text.replace("<axis = 0> (zeros", '<axis = 0, reduction = "add"> (zeros')) == []


def test_a_scatter_of_joined_top_k_lists(rewrite):
    """Expert choice: every expert lists its tokens, and a token may be in several lists."""
    body = f"t = Transpose <perm = [1,0]> (logits) w, e = TopK (t, k) f = Reshape (e, flat) {SCATTERED}{ZEROS}"
    text = f"{COMBINE}{body} y = ScatterElements <axis = 0> (zeros, idx, rows) }}"
    (message,) = warnings(rewrite, text)
    assert "several top-k lists joined" in message
    assert warnings(rewrite, text.replace("<axis = 0> (zeros", '<axis = 0, reduction = "add"> (zeros')) == []


def test_a_scatter_within_each_top_k_list_is_a_mask(rewrite):
    text = f"""{COMBINE} w, e = TopK (logits, k) s = Shape (logits) zeros = ConstantOfShape (s)
        y = ScatterElements <axis = 1> (zeros, e, w) }}"""
    assert warnings(rewrite, text) == []


@pytest.mark.parametrize("experts, missing", [((0, 2), True), ((0, 1, 2), False), ((0, 3), False)])
def test_experts_without_a_body(rewrite, experts, missing):
    compared = " ".join(f"b{e} = Equal (chosen, c{e}) m{e} = Cast <to = 1> (b{e})" for e in experts)
    total = ", ".join(f"m{e}" for e in experts)
    # 3 is none of three experts: what is compared with it are not their numbers
    constants = ", ".join(f"int64 c{e} = {{{e}}}" for e in experts)
    text = f"""(float[T,3] logits) => (float[T,2] y) <int64[1] k = {{2}}, {constants}> {{
        w, chosen = TopK (logits, k) {compared} y = Sum ({total}) }}"""
    actual = warnings(rewrite, text)
    assert len(actual) == int(missing)
    assert not missing or "missing: [1]" in actual[0]


@pytest.mark.parametrize("axis", [2, -3])
def test_an_axis_that_is_not_there_is_left_to_whoever_lowers_the_node(axis):
    text = f"""(float[N,4] x, int64[N,4] i) => (float[N,4] y) {{ y = ScatterElements <axis = {axis}> (x, i, x) }}"""
    model = model_of(text)
    assert not CheckExport().apply(model, Report())

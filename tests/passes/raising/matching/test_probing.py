"""Experts written in forms that no reading knows: they are found by their effects."""

import numpy as np
import pytest

from moec.ir.dialect import ExpertsSpec, spec_of
from moec.passes.framework.base import Report

MIXTURE = """
    shape = Shape (scores)
    zeros = ConstantOfShape (shape)
    mixture = ScatterElements <axis = -1> (zeros, chosen, w)
"""
GATED = """
    u_{e} = MatMul (rows_{e}, up_{e})
    g_{e} = MatMul (rows_{e}, gate_{e})
    s_{e} = Sigmoid (g_{e})
    silu_{e} = Mul (g_{e}, s_{e})
    a_{e} = Mul (silu_{e}, u_{e})
"""
GATE_FIRST = """
    g_{e} = MatMul (rows_{e}, gate_{e})
    s_{e} = Sigmoid (g_{e})
    silu_{e} = Mul (g_{e}, s_{e})
    u_{e} = MatMul (rows_{e}, up_{e})
    a_{e} = Mul (silu_{e}, u_{e})
"""
PLAIN_HIDDEN = """
    h_{e} = Gemm <transB = 1> (rows_{e}, up_{e}, up_bias_{e})
    a_{e} = Gelu (h_{e})
"""


def replace_lines(text, lines, new):
    """``text`` with these consecutive lines replaced."""
    old = "\n".join(line.strip() for line in lines.strip().splitlines())
    plain = "\n".join(line.strip() for line in text.splitlines())
    assert old in plain, old
    return plain.replace(old, new)


def in_expert(text, e, lines, new):
    return replace_lines(text, lines.replace("{e}", str(e)), new.replace("{e}", str(e)))


def raised(build, raise_and_compare, text, **arrays):
    report = Report()
    nodes = raise_and_compare(build(text, **arrays), report)
    assert [node.op_type for node in nodes] == ["Route", "Experts"], [remark.message for remark in report.remarks]
    return spec_of(nodes[1], ExpertsSpec)


def by_hand(weights, e):
    return {name: weights[f"{name}_{e}"] for name in ("up", "up_bias", "down", "down_bias")}


def test_weights_selected_by_products_with_one_hot_rows(build, texts, normal, raise_and_compare):
    new = """
        hot = OneHot <axis = -1> (pair_ids, depth, off_on)
        up_flat = MatMul (hot, up)
        up_pairs = Reshape (up_flat, up_shape)
    """
    text = replace_lines(texts["batched"], "up_pairs = Gather <axis = 0> (up, pair_ids)", new)
    arrays = {"depth": np.array(4), "off_on": np.array([0, 1], np.float32), "up_shape": np.array([-1, 10, 6])}
    spec = raised(build, raise_and_compare, text, up=normal(4, 60), down=normal(4, 6, 5), **arrays)
    assert spec == ExpertsSpec("silu", "gate_up")


def test_weights_stored_as_an_embedding(build, texts, normal, raise_and_compare):
    """All of an expert's weights are one row of one table."""
    new = """
        row = Gather <axis = 0> (table, pair_ids)
        up_row, down_row = Split <axis = -1> (row, sizes)
        up_pairs = Reshape (up_row, up_shape)
    """
    text = replace_lines(texts["batched"], "up_pairs = Gather <axis = 0> (up, pair_ids)", new)
    text = replace_lines(
        text, "down_pairs = Gather <axis = 0> (down, pair_ids)", "down_pairs = Reshape (down_row, down_shape)"
    )
    shapes = {"sizes": [60, 30], "up_shape": [-1, 10, 6], "down_shape": [-1, 6, 5]}
    arrays = {name: np.array(value) for name, value in shapes.items()}
    assert raised(build, raise_and_compare, text, table=normal(4, 90), **arrays) == ExpertsSpec("silu", "gate_up")


def test_gathered_gate_and_up_are_split_and_biased_apart(build, texts, normal, raise_and_compare):
    start = texts["batched"].index("up_pairs = ")
    end = texts["batched"].index("s = Sigmoid")
    new = """
        both = Gather <axis = 0> (up, pair_ids)
        gate_part, up_part = Split <axis = 1, num_outputs = 2> (both)
        both_bias = Gather <axis = 0> (bias_table, pair_ids)
        gate_bias, up_bias = Split <axis = 1, num_outputs = 2> (both_bias)
        x_column = Unsqueeze (x_pairs, minus_one)
        g_column = MatMul (gate_part, x_column)
        u_column = MatMul (up_part, x_column)
        g_row = Squeeze (g_column, minus_one)
        u_row = Squeeze (u_column, minus_one)
        g = Add (g_row, gate_bias)
        u = Add (u_row, up_bias)
    """
    text = texts["batched"][:start] + new + texts["batched"][end:]
    arrays = {"up": normal(4, 10, 6), "down": normal(4, 6, 5), "bias_table": normal(4, 10)}
    assert raised(build, raise_and_compare, text, **arrays) == ExpertsSpec("silu", "gate_up")


SLOT = """
    id_{s} = Slice (chosen, from_{s}, to_{s}, one)
    ids_{s} = Reshape (id_{s}, minus_one)
    w_{s} = Slice (w, from_{s}, to_{s}, one)
    up_{s}s = Gather <axis = 0> (up, ids_{s})
    down_{s}s = Gather <axis = 0> (down, ids_{s})
    x_{s} = Unsqueeze (x, minus_one)
    h_{s} = MatMul (up_{s}s, x_{s})
    a_{s} = Relu (h_{s})
    o_{s} = MatMul (down_{s}s, a_{s})
    y_{s} = Squeeze (o_{s}, minus_one)
    part_{s} = Mul (y_{s}, w_{s})
"""
SLOTS = SLOT.replace("{s}", "0") + SLOT.replace("{s}", "1") + "y = Add (part_0, part_1)\n"
BOUNDS = {f"{name}_{s}": np.array([s + step]) for s in (0, 1) for name, step in (("from", 0), ("to", 1))}


def test_slots_are_unrolled(build, texts, normal, raise_and_compare):
    """A copy of the experts for each of the k slots, not for each of the E experts."""
    weights = {"up": normal(4, 5, 6), "down": normal(4, 6, 5)}
    spec = raised(build, raise_and_compare, texts["router"] + SLOTS, **weights, **BOUNDS)
    assert spec == ExpertsSpec("relu", "none")


GELU_BY_EXP = """
    square_{s} = Mul (h_{s}, h_{s})
    cube_{s} = Mul (square_{s}, h_{s})
    bend_{s} = Mul (cube_{s}, cubic)
    bent_{s} = Add (h_{s}, bend_{s})
    inner_{s} = Mul (bent_{s}, minus_root)
    e_{s} = Exp (inner_{s})
    total_{s} = Add (unit, e_{s})
    share_{s} = Reciprocal (total_{s})
    a_{s} = Mul (h_{s}, share_{s})
"""
BIASED = """
    bias_{s} = Gather <axis = 0> (down_bias, ids_{s})
    biased_{s} = Add (bias_{s}, y_{s})
    part_{s} = Mul (biased_{s}, w_{s})
"""


def test_what_overflows_tells_nothing_of_other_nodes(build, texts, normal, raise_and_compare):
    """Biases vanish in the experts' results like 1 in the exponential of a large number."""
    slot = replace_lines(SLOT, "a_{s} = Relu (h_{s})", GELU_BY_EXP)
    slot = replace_lines(slot, "part_{s} = Mul (y_{s}, w_{s})", BIASED)
    text = texts["router"] + slot.replace("{s}", "0") + slot.replace("{s}", "1") + "y = Add (part_0, part_1)\n"
    numbers = {"cubic": 0.044715, "minus_root": -2 * np.sqrt(2 / np.pi), "unit": 1}
    weights = {name: np.float32(number) for name, number in numbers.items()}
    weights |= {"up": normal(4, 5, 6), "down": normal(4, 6, 5), "down_bias": normal(4, 6)}
    assert raised(build, raise_and_compare, text, **weights, **BOUNDS) == ExpertsSpec("gelu_tanh", "none")


COPY = """
    hot_1 = OneHot <axis = 0> (ids_1, depth, off_on)
    rows_1 = MatMul (down_copy, hot_1)
    turned_1 = Transpose <perm = [1, 0]> (rows_1)
    down_1s = Reshape (turned_1, down_shape)
"""


@pytest.mark.parametrize("change", [0, 1e-3])
def test_the_second_slot_has_a_copy_of_weights_in_another_layout(build, texts, normal, raise_and_compare, change):
    """A copy that differs makes second choices other experts than first ones, and each slot a block of its own."""
    text = replace_lines(texts["router"] + SLOTS, "down_1s = Gather <axis = 0> (down, ids_1)", COPY)
    down, more = normal(4, 6, 5), {"depth": np.array(4), "off_on": np.array([0, 1], np.float32)}
    more |= {"down_copy": down.reshape(4, 30).T * np.float32(1 + change), "down_shape": np.array([-1, 6, 5])}
    model, report = build(text, up=normal(4, 5, 6), down=down, **more, **BOUNDS), Report()
    nodes = [node.op_type for node in raise_and_compare(model, report)]
    assert nodes == ["Route", "Experts"] * (2 if change else 1), [remark.message for remark in report.remarks]


def test_one_product_for_all_experts(build, texts, normal, raise_and_compare):
    new = """
        all = MatMul (x, up)
        a = Relu (all)
        by_expert = Reshape (a, hidden_shape)
        column = Unsqueeze (mixture, minus_one)
        masked = Mul (by_expert, column)
        flat = Reshape (masked, flat_shape)
        y = MatMul (flat, down)
    """
    arrays = {"hidden_shape": np.array([-1, 4, 5]), "flat_shape": np.array([-1, 20])}
    text = texts["router"] + MIXTURE + new
    spec = raised(build, raise_and_compare, text, up=normal(6, 20), down=normal(20, 6), **arrays)
    assert spec == ExpertsSpec("relu", "none", up_transposed=True, down_transposed=True)


def test_grouped_convolutions(build, texts, normal, raise_and_compare):
    new = """
        x_all = Tile (x, four_times)
        x_channels = Unsqueeze (x_all, minus_one)
        h = Conv <group = 4> (x_channels, up, up_biases)
        a = Relu (h)
        o = Conv <group = 4> (a, down, down_biases)
        by_expert = Reshape (o, by_expert_shape)
        column = Unsqueeze (mixture, minus_one)
        masked = Mul (by_expert, column)
        y = ReduceSum <keepdims = 0> (masked, one)
    """
    arrays = {"up": normal(20, 6, 1), "up_biases": normal(20), "down": normal(24, 5, 1), "down_biases": normal(24)}
    numbers = {"by_expert_shape": np.array([-1, 4, 6]), "four_times": np.array([1, 4])}
    text = texts["router"] + MIXTURE + new
    assert raised(build, raise_and_compare, text, **arrays, **numbers) == ExpertsSpec("relu", "none")


def test_products_as_convolutions(build, texts, raise_and_compare):
    text = texts["loop"]
    for e in range(4):
        new = """
            channels_{e} = Unsqueeze (rows_{e}, minus_one)
            conv_{e} = Conv (channels_{e}, up_{e}, up_bias_{e})
            h_{e} = Squeeze (conv_{e}, minus_one)
            a_{e} = Gelu (h_{e})
        """
        text = in_expert(text, e, PLAIN_HIDDEN, new)
    ups = {f"up_{e}": np.random.default_rng(e).normal(size=(5, 6, 1)).astype(np.float32) for e in range(4)}
    assert raised(build, raise_and_compare, text, **ups) == ExpertsSpec("gelu", "none")


def test_some_experts_are_spelled_otherwise(build, texts, normal, raise_and_compare):
    new = """
        product_{e} = MatMul (rows_{e}, up_{e})
        h_{e} = Add (up_bias_{e}, product_{e})
        a_{e} = Gelu (h_{e})
    """
    text = in_expert(texts["loop"], 2, PLAIN_HIDDEN, new)
    assert raised(build, raise_and_compare, text, up_2=normal(6, 5)) == ExpertsSpec("gelu", "none")


def test_biases_as_further_rows_of_weights(build, texts, normal, raise_and_compare):
    text = texts["loop"]
    for e in range(4):
        new = """
            count_{e} = Shape <end = 1> (rows_{e})
            wide_{e} = Concat <axis = 0> (count_{e}, one)
            ones_{e} = Expand (one_number, wide_{e})
            longer_{e} = Concat <axis = 1> (rows_{e}, ones_{e})
            h_{e} = MatMul (longer_{e}, up_{e})
            a_{e} = Gelu (h_{e})
        """
        text = in_expert(text, e, PLAIN_HIDDEN, new)
    ups = {f"up_{e}": normal(7, 5) for e in range(4)}
    spec = raised(build, raise_and_compare, text, one_number=np.ones((1, 1), np.float32), **ups)
    assert spec == ExpertsSpec("gelu", "none", up_transposed=True)


@pytest.mark.parametrize("swapped", [(), (1,), (0, 2, 3)])
def test_gate_and_up_are_told_apart_expert_by_expert(build, texts, normal, raise_and_compare, swapped):
    text = texts["loop"]
    for e in range(4):
        text = in_expert(text, e, PLAIN_HIDDEN, GATED if e in swapped else GATE_FIRST)
    arrays = {f"{name}_{e}": normal(6, 5) for name in ("up", "gate") for e in range(4)}
    assert raised(build, raise_and_compare, text, **arrays) == ExpertsSpec("silu", "separate", up_transposed=True)


def test_relu_bends_the_gate_alone(build, texts, normal, raise_and_compare):
    """Among positive numbers, gate and up of a ReGLU are no different."""
    relu = GATED.replace("s_{e} = Sigmoid (g_{e})", "silu_{e} = Relu (g_{e})")
    relu = relu.replace("silu_{e} = Mul (g_{e}, s_{e})\n", "")
    text = texts["loop"]
    for e in range(4):
        text = in_expert(text, e, PLAIN_HIDDEN, relu)
    arrays = {f"{name}_{e}": normal(6, 5) for name in ("up", "gate") for e in range(4)}
    assert raised(build, raise_and_compare, text, **arrays) == ExpertsSpec("relu", "separate", up_transposed=True)


def test_everything_transposed(build, texts, normal, raise_and_compare):
    text = """
        x_t = Transpose <perm = [1, 0]> (x)
        logits_t = MatMul (router_t, x_t)
        scores_t = Softmax <axis = 0> (logits_t)
        scores = Transpose <perm = [1, 0]> (scores_t)
        top, chosen = TopK <axis = -1> (scores, k)
        total = ReduceSum <keepdims = 1> (top, minus_one)
        w = Div (top, total)
    """
    each = """
        h_{e} = MatMul (up_{e}, x_t)
        a_{e} = Relu (h_{e})
        o_t_{e} = MatMul (down_{e}, a_{e})
        o_{e} = Transpose <perm = [1, 0]> (o_t_{e})
        w_{e} = Gather <axis = 1> (mixture, id_{e})
        y_{e} = Mul (o_{e}, w_{e})
    """
    text += MIXTURE + "".join(each.replace("{e}", str(e)) for e in range(4)) + "y = Sum (y_0, y_1, y_2, y_3)\n"
    arrays = {f"id_{e}": np.array([e]) for e in range(4)}
    spec = raised(build, raise_and_compare, text, router_t=normal(4, 6), **arrays)
    assert spec == ExpertsSpec("relu", "none")


def test_weights_selected_by_products_with_rows_of_a_table(build, texts, normal, raise_and_compare):
    new = """
        hot = Gather <axis = 0> (table, pair_ids)
        up_pairs = Einsum <equation = "pe,efd->pfd"> (hot, up)
    """
    text = replace_lines(texts["batched"], "up_pairs = Gather <axis = 0> (up, pair_ids)", new)
    arrays = {"table": np.eye(4, dtype=np.float32), "up": normal(4, 10, 6), "down": normal(4, 6, 5)}
    assert raised(build, raise_and_compare, text, **arrays) == ExpertsSpec("silu", "gate_up")


def test_mask_of_a_fixed_number_of_tokens_is_no_weight(build, texts, normal, raise_and_compare):
    """KeepTopK: entries that were not selected are -inf before the softmax."""
    text = """
        logits = MatMul (x, router)
        top, chosen = TopK <axis = -1> (logits, k)
        masked = ScatterElements <axis = -1> (mask, chosen, top)
        mixture = Softmax <axis = -1> (masked)
    """
    text += texts["dense"][texts["dense"].index("    h = Einsum") :]
    arrays = {"mask": np.full((20, 4), -np.inf, np.float32), "up": normal(4, 6, 5), "down": normal(4, 5, 6)}
    report = Report()
    nodes = raise_and_compare(build(text, "20,6", **arrays), report, tokens=(20,))
    assert [node.op_type for node in nodes] == ["Route", "Experts"], [remark.message for remark in report.remarks]

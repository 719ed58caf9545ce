"""Experts that are zero get no tokens, and experts that are only small do."""

from __future__ import annotations

import numpy as np
import pytest

from .before_after import check

NAME = "fold-trivial-experts"
SIGNATURE = "(float[T,2] x, float[T,3] logits) => (float[T,2] y)"
NODES = """w, e = moec.Route <k = 2> (logits) {table}
    y = moec.Experts <activation = "relu", gate_layout = "none"{attributes}> (x, w, {operands}) """


def layer(attributes: str, *, down: str = "", bias: str = "") -> str:
    constants = f"float[3,4,2] up, float[3,2,4] down{down and ' = ' + down}"
    constants += f", float[3,2] down_bias = {bias}" if bias else ""
    operands = "e, up, down, , , down_bias" if bias else "e, up, down"
    return f"{SIGNATURE} <{constants}> {{ {NODES.format(table='', attributes=attributes, operands=operands)} }}"


def folded(attributes: str, table: str, count: int, bias: str = "") -> str:
    constants = f"int32[4] e_table = {table}, float[{count},4,2] up_used, float[{count},2,4] down_used"
    constants += f", float[{count},2] down_bias_used = {bias}" if bias else ""
    operands = "e_stored, up_used, down_used" + (", , , down_bias_used" if bias else "")
    gather = "e_stored = Gather <axis = 0> (e_table, e)"
    return f"{SIGNATURE} <{constants}> {{ {NODES.format(table=gather, attributes=attributes, operands=operands)} }}"


def cases() -> list[dict[str, np.ndarray]]:
    """No token, one, an odd number and many; ties."""
    random = np.random.default_rng(0)
    numbers = [random.standard_normal((T, 3), dtype=np.float32) for T in (0, 1, 7, 40)] + [np.zeros((3, 3), np.float32)]
    return [{"x": random.standard_normal((len(number), 2), dtype=np.float32), "logits": number} for number in numbers]


def test_an_expert_without_hidden_units_goes():
    before, after = ", hidden_sizes = [0, 4, 3]", ", hidden_sizes = [4, 3]"
    (remark,) = check(NAME, layer(before), folded(after, "{-1, 0, 1, -1}", 2), *cases())
    assert remark.message == "of 3 experts, 2 need to be stored; the others are gone"


def test_a_bias_of_zeros_goes_with_it():
    before, after = ", hidden_sizes = [4, 3, 0]", ", hidden_sizes = [4, 3]"
    check(
        NAME,
        layer(before, bias="{1, 2, 3, 4, 0, 0}"),
        folded(after, "{0, 1, -1, -1}", 2, "{1, 2, 3, 4}"),
        *cases(),
    )


def test_one_expert_is_stored_where_all_are_zero():
    before, after = ", hidden_sizes = [0, 0, 0]", ", hidden_sizes = [0]"
    check(NAME, layer(before), folded(after, "{0, -1, -1, -1}", 1), *cases())


@pytest.mark.parametrize(
    "attributes, bias",
    [(", hidden_sizes = [0, 4, 3]", "{1, 0, 0, 0, 0, 0}"), (", hidden_sizes = [1, 4, 3]", ""), ("", "")],
    ids=["a constant", "one unit", "all units"],
)
def test_what_contributes_stays(attributes, bias):
    assert not check(NAME, layer(attributes, bias=bias), None, *cases())


def test_drop_zero_neurons_finds_experts_of_zeros():
    down = "{1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 9, 8, 7, 6, 5, 4, 3, 2}"
    after = folded(", hidden_sizes = [4, 4]", "{0, -1, 1, -1}", 2)
    check(f"drop-zero-neurons,{NAME}", layer("", down=down), after.replace("up_used", "up_used_2").replace(
        "down_used", "down_used_2"), *cases())  # fmt: skip

"""Budgets: the costs of weights, and the least budget in the message if one cannot be met."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.ir.weights.format import WeightFormat
from moec.passes.weights.bits import Item, WeightBudget


def test_dense_products_are_read_for_every_token():
    node, errors = ir.node("MoE", [], domain="moec"), np.zeros(1)
    items = [Item(node, ("up",), 0, 32, 8, errors, calls=0.25), Item(node, ("up",), 0, 32, 8, errors)]
    costs = WeightBudget(microseconds=1).costs(items, [WeightFormat("int4", 32)])
    assert costs.tolist() == [[0.25 * (32 * 8 * 4 + 8 * 16)], [32 * 8 * 4 + 8 * 16]]


@pytest.mark.parametrize("budget", [WeightBudget(megabytes=1.0), WeightBudget(microseconds=1.0)])
def test_the_least_that_is_named_can_be_had_however_large_it_is(budget):
    """1234567.9 megabytes are no 1.23457e+06 megabytes."""
    bits = 1234567.9 * (8e6 if budget.megabytes else 8e3 * budget.gigabytes_per_second)
    least = float(budget.refusal([], [], bits).split("the least is ")[1].split(",")[0])
    assert 1234567.9 <= least < 1.001 * 1234567.9

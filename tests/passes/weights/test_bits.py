"""Budgets: the costs of weights, and the least budget in the message if one cannot be met."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.ir.weights.format import WeightFormat
from moec.passes.weights.bits import Item, WeightBudget


def test_dense_products_are_read_for_every_token():
    node, errors = ir.node("MoE", [], domain="moec"), np.zeros(1)
    items = [Item(node, ("up",), (0,), 32, 8, errors, calls=0.25), Item(node, ("up",), (0,), 32, 8, errors)]
    costs = WeightBudget(microseconds=1).costs(items, [WeightFormat("int4", 32)])
    assert costs.tolist() == [[0.25 * (32 * 8 * 4 + 8 * 16)], [32 * 8 * 4 + 8 * 16]]


def test_an_item_of_several_experts_costs_what_each_does():
    node, errors, form = ir.node("MoE", [], domain="moec"), np.zeros(1), WeightFormat("int4", 32)
    each = [Item(node, ("up",), (expert,), 32, 8, errors, calls=calls) for expert, calls in enumerate((0.25, 0.5))]
    together = Item(node, ("up",), (0, 1), 32, 8, errors, calls=0.375)
    for budget in (WeightBudget(4.0), WeightBudget(megabytes=1.0), WeightBudget(microseconds=1.0)):
        assert budget.costs(each, [form]).sum() == budget.costs([together], [form]).sum()
        assert budget.most(each) == budget.most([together])


@pytest.mark.parametrize("budget", [WeightBudget(megabytes=1.0), WeightBudget(microseconds=1.0)])
def test_the_least_that_is_named_can_be_had_however_large_it_is(budget):
    """1234567.9 megabytes are no 1.23457e+06 megabytes."""
    bits = 1234567.9 * (8e6 if budget.megabytes else 8e3 * budget.gigabytes_per_second)
    least = float(budget.refusal([], [], bits).split("the least is ")[1].split(",")[0])
    assert 1234567.9 <= least < 1.001 * 1234567.9

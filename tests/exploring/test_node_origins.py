"""Imported nodes that the nodes of later models were made of."""

from __future__ import annotations

import pytest

from moec.exploring.node_origins import imported_nodes

from .test_model_nodes import graph

IMPORTED = (
    "[scale] t = Mul (x, x)",
    "[unused] u = Exp (x)",
    "[mean] m = ReduceMean <keepdims = 1> (t)",
    '["a (b)"] "s\\"q" = Sqrt (m)',
    '[norm] d = Div (x, "s\\"q")',
    "[last] y = Neg (d)",
)


def made_of(*models: tuple[str, ...], results: str = "float[n] y") -> dict[str, frozenset[str]]:
    return imported_nodes([graph(*nodes, results=results) for nodes in models])


def test_a_fused_node_is_made_of_the_nodes_that_it_replaced():
    fused = ("[fused] d2 = RMSNormalization <axis = -1> (x, w)", "[last] y = Neg (d2)")
    assert made_of(IMPORTED, fused) == {"fused": {"scale", "mean", "a (b)", "norm"}, "last": {"last"}}


def test_added_nodes_that_pass_values_to_one_another_are_made_of_the_same():
    split = ("[one] p = RMSNormalization (x, w)", "[two] d = Mul (p, g)", "[last] y = Neg (d)")
    origins = made_of(IMPORTED, split)
    assert origins["one"] == origins["two"] == {"scale", "mean", "a (b)", "norm"}


def test_nodes_that_stay_are_not_origins_of_added_ones():
    """The mean is a result of the graph in both models."""
    fused = (
        *("[scale] t = Mul (x, x)", "[mean] m = ReduceMean <keepdims = 1> (t)"),
        *("[f] d = Norm (x, m)", "[last] y = Neg (d)"),
    )
    origins = made_of(IMPORTED, fused, results="float[n] y, float[n] m")
    assert origins["f"] == {"a (b)", "norm"}
    assert origins["mean"] == {"mean"}


@pytest.mark.parametrize("models", [1, 3])
def test_models_that_are_equal_keep_each_needed_node(models):
    assert made_of(*(IMPORTED,) * models) == {name: {name} for name in ("scale", "mean", "a (b)", "norm", "last")}

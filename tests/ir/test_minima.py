"""Weights with a minimum for every group: read, multiplied by, kept by passes, and refused where they are wrong."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import UnsupportedError
from moec.ir.graphs import add_constant
from moec.ir.interpreter import run
from moec.ir.minima import less_minima
from moec.ir.weight_operands import weight_inputs
from moec.ir.weights.format import WeightFormat
from moec.ir.weights.stored import StoredWeight, decoding_node
from moec.passes.framework.base import Report
from moec.passes.pipeline import CLEAN_UP, parse
from moec.passes.pipeline import run as run_passes
from moec.passes.weights.selection import ExpertSelection, select
from moec.passes.weights.store import scale_experts, store

from .weights.plain_experts import experts_with

E, D, F, GROUP = 3, 64, 32, 32
FORM = WeightFormat("int4", GROUP, minima=True)
RANDOM = np.random.default_rng(0)
Q = RANDOM.integers(0, 16, (E, F, D)).astype(ml_dtypes.uint4)
SCALE, MINIMUM = (RANDOM.uniform(0.1, 1, (E, F, D // GROUP)).astype(np.float16) for _ in range(2))


def spread(table: np.ndarray) -> np.ndarray:
    return table.astype(np.float32).repeat(GROUP, -1)


WEIGHT = Q.astype(np.float32) * spread(SCALE) - spread(MINIMUM)


def model(minimum: np.ndarray = MINIMUM, group: int = GROUP) -> ir.Model:
    """Plain experts, whose up projection has minima."""

    def make_up(graph: ir.Graph) -> ir.Value:
        arrays: dict[str, Any] = {"q": Q, "s": SCALE, "m": minimum}
        q, s, m = (add_constant(graph, ir.tensor(array), name) for name, array in arrays.items())
        node = decoding_node(FORM, q, s, None, 2, ir.DataType.FLOAT)
        node.outputs[0].name = "w"
        graph.append(node)
        return less_minima(graph, None, node.outputs[0], m, 2, group)

    return experts_with(E, D, F, make_up)


def numbers(model: ir.Model) -> np.ndarray:
    """The matrices that the experts multiply by, computed by the graph from unit vectors."""
    node = model.graph[-1]
    count = StoredWeight.of(weight_inputs(node)["up"]).experts
    rows = np.eye(D, dtype=np.float32)
    ones, ids = np.ones((D, 1), np.float32), np.zeros((D, 1), np.int32)
    return np.stack([run(model, {"x": rows, "weights": ones, "ids": ids + e})["y"][:, :F].T for e in range(count)])


def test_weights_are_read() -> None:
    built = model()
    weight = StoredWeight.of(weight_inputs(built.graph[-1])["up"])
    assert weight.formats == [FORM] * E and str(FORM) == "int4/32m"
    for expert in range(E):
        np.testing.assert_array_equal(weight.decoded(expert, transposed=False), WEIGHT[expert].T)
    np.testing.assert_allclose(numbers(built), WEIGHT, rtol=1e-6)


def test_clean_up_leaves_them() -> None:
    built = model()
    run_passes(built, parse(CLEAN_UP), Report(), verify_each=True)
    assert StoredWeight.of(weight_inputs(built.graph[-1])["up"]).formats == [FORM] * E


def test_experts_are_selected() -> None:
    built = model()
    for name in ("up", "down"):
        select(built.graph, built.graph[-1], name, ExpertSelection([2, 0]))
    assert StoredWeight.of(weight_inputs(built.graph[-1])["up"]).formats == [FORM] * 2
    np.testing.assert_allclose(numbers(built), WEIGHT[[2, 0]], rtol=1e-6)


def test_others_are_stored_in_another_format() -> None:
    built, forms = model(), [FORM, WeightFormat("float32"), FORM]
    store(built.graph[-1], "up", forms)
    assert StoredWeight.of(weight_inputs(built.graph[-1])["up"]).formats == forms
    np.testing.assert_allclose(numbers(built), WEIGHT, rtol=1e-6)


def test_experts_are_scaled() -> None:
    built = model()
    scale_experts(built.graph[-1], "up", [1, 2, 0.5])
    np.testing.assert_allclose(numbers(built), WEIGHT * np.array([1, 2, 0.5])[:, None, None], rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [{"minimum": MINIMUM.astype(np.float32)}, {"minimum": MINIMUM[:, :1]}, {"group": 16, "minimum": MINIMUM}],
    ids=["type", "shape", "groups"],
)
def test_minima_that_are_not_those_of_the_scales_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="expected one for each scale, of its group"):
        StoredWeight.of(weight_inputs(model(**wrong).graph[-1])["up"])


@pytest.mark.parametrize(
    ("name", "group", "zero_points"), [("int4", 0, False), ("int4", 32, True), ("mxfp4", 32, False)]
)
def test_formats_without_minima(name: Any, group: int, zero_points: bool) -> None:
    with pytest.raises(ValueError, match="has no minima"):
        WeightFormat(name, group, zero_points, minima=True)

"""Weights with scales and minima of two levels: read, kept by passes, and refused where they are wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import UnsupportedError
from moec.ir.graphs import add_constant
from moec.ir.interpreter import run
from moec.ir.minima import less_minima
from moec.ir.weight_operands import weight_inputs
from moec.ir.weights.format import WeightFormat
from moec.ir.weights.levels import product_of_levels
from moec.ir.weights.stored import StoredWeight, decoding_node
from moec.passes.framework.base import Report
from moec.passes.pipeline import CLEAN_UP, parse
from moec.passes.pipeline import run as run_passes
from moec.passes.weights.selection import ExpertSelection, select
from moec.passes.weights.store import scale_experts, store

from .plain_experts import experts_with

E, D, F, GROUP, SPAN = 3, 96, 32, 16, 4
FORM = WeightFormat("int5", GROUP, minima=True, super_group=SPAN * GROUP)
RANDOM = np.random.default_rng(0)
ARRAYS: dict[str, Any] = {
    "q": RANDOM.integers(0, 32, (E, F, D)).astype(np.uint8),
    "scale_code": RANDOM.integers(0, 64, (E, F, D // GROUP)).astype(np.uint8),
    "scale_factor": RANDOM.uniform(0.01, 0.1, (E, F, 2)).astype(np.float16),
    "minimum_code": RANDOM.integers(0, 64, (E, F, D // GROUP)).astype(np.uint8),
    "minimum_factor": RANDOM.uniform(0.1, 1, (E, F, 2)).astype(np.float16),
}


def spread(table: str) -> np.ndarray:
    factors = ARRAYS[f"{table}_factor"].astype(np.float32).repeat(SPAN, -1)[..., : D // GROUP]
    return (ARRAYS[f"{table}_code"].astype(np.float32) * factors).repeat(GROUP, -1)


WEIGHT = ARRAYS["q"].astype(np.float32) * spread("scale") - spread("minimum")


def model(axis: int = 2, **changes: Any) -> ir.Model:
    """Plain experts, whose up projection has scales of two levels along ``axis``."""

    def make_up(graph: ir.Graph) -> ir.Value:
        values = {name: add_constant(graph, ir.tensor(array), name) for name, array in (ARRAYS | changes).items()}
        tables = [
            product_of_levels(graph, None, values[f"{table}_code"], values[f"{table}_factor"], axis, SPAN)
            for table in ("scale", "minimum")
        ]
        node = decoding_node(FORM, values["q"], tables[0], None, 2, ir.DataType.FLOAT)
        node.outputs[0].name = "w"
        graph.append(node)
        return less_minima(graph, None, node.outputs[0], tables[1], 2, GROUP)

    return experts_with(E, D, F, make_up)


def up(model: ir.Model) -> StoredWeight:
    return StoredWeight.of(weight_inputs(model.graph[-1])["up"])


def numbers(model: ir.Model) -> np.ndarray:
    """The matrices that the experts multiply by, computed by the graph from unit vectors."""
    rows = np.eye(D, dtype=np.float32)
    ones, ids = np.ones((D, 1), np.float32), np.zeros((D, 1), np.int32)
    return np.stack(
        [run(model, {"x": rows, "weights": ones, "ids": ids + e})["y"][:, :F].T for e in range(up(model).experts)]
    )


def test_weights_are_read() -> None:
    built = model()
    weight = up(built)
    assert weight.formats == [FORM] * E and str(FORM) == "int5/16/64m"
    for expert in range(E):
        np.testing.assert_array_equal(weight.decoded(expert, transposed=False), WEIGHT[expert].T)
        actual = weight.encoded(expert, transposed=True)
        for table in ("scale_code", "scale_factor", "minimum_code", "minimum_factor"):
            np.testing.assert_array_equal(actual.read(table), ARRAYS[table][expert])
    np.testing.assert_allclose(numbers(built), WEIGHT, rtol=1e-6)


def test_passes_keep_them() -> None:
    built = model()
    run_passes(built, parse(CLEAN_UP), Report(), verify_each=True)
    for name in ("up", "down"):
        select(built.graph, built.graph[-1], name, ExpertSelection([2, 0]))
    assert up(built).formats == [FORM] * 2
    np.testing.assert_allclose(numbers(built), WEIGHT[[2, 0]], rtol=1e-6)


def test_others_are_stored_in_another_format() -> None:
    built, forms = model(), [FORM, WeightFormat("float32"), FORM]
    store(built.graph[-1], "up", forms)
    assert up(built).formats == forms
    np.testing.assert_allclose(numbers(built), WEIGHT, rtol=1e-6)


def test_experts_are_scaled_by_their_factors() -> None:
    built = model()
    scale_experts(built.graph[-1], "up", [1, 2, 0.5])
    assert up(built).formats == [FORM] * E
    np.testing.assert_allclose(numbers(built), WEIGHT * np.array([1, 2, 0.5])[:, None, None], rtol=1e-6)


def refusal(**changes: Any) -> str:
    with pytest.raises(UnsupportedError) as error:
        up(model(**changes))
    return str(error.value)


def test_what_is_made_in_another_way_is_refused() -> None:
    few = ARRAYS["scale_factor"][..., :1]
    assert "an operand that is not constant" in refusal(scale_factor=few)
    assert "an operand that is not constant" in refusal(scale_code=ARRAYS["scale_code"].astype(np.int32))
    assert "expected one for each scale" in refusal(minimum_code=ARRAYS["minimum_code"].astype(np.int8))
    factors = np.ones((E, F // SPAN, D // GROUP), np.float16)
    other = {"scale_factor": factors, "minimum_factor": factors}
    assert "quantised along axis -2" in refusal(axis=1, **other)


@pytest.mark.parametrize(("name", "group", "super_group"), [("int4", 32, 48), ("int4", 0, 64), ("mxfp4", 32, 64)])
def test_formats_without_levels(name: Any, group: int, super_group: int) -> None:
    with pytest.raises(ValueError, match="has no scales of two levels"):
        WeightFormat(name, group, super_group=super_group)

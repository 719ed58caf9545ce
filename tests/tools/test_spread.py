"""Faults are found in models of 16 bits and in models that round activations, and different roundings are accepted."""

from __future__ import annotations

import pathlib

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

import moec
from moec.checking.comparison import TOLERANCES, compare
from moec.compiling.compiler import import_model
from moec.ir import shapes
from moec.ir.interpreter import runner
from moec.passes import pipeline
from moec.tools.spread import MOST_RUNS, ROOM, Spreads, rounding_otherwise, why_not
from moec.tools.verify import verify
from tests.passes.before_after import model_of as text_model
from tests.raising.blocks import Layer, model_of
from tests.raising.edit import with_types

LAYER = Layer(bias=True, gate="separate", E=6, d=16, f=12, k=2)
TYPES = {"float16": (ir.DataType.FLOAT16, np.float16), "bfloat16": (ir.DataType.BFLOAT16, ml_dtypes.bfloat16)}
ROUNDING = {
    "int8": "O2,quantize-experts{format=int8}",
    "fp8": "O2,quantize-experts{format=fp8},round-activations{group=16}",
}


def narrow_model(dtype: str) -> ir.Model:
    """Make a layer of six experts with biases that computes in 16 bits throughout."""
    kind, numbers = TYPES[dtype]
    model = model_of(LAYER)
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(value.const_value.numpy().astype(numbers), name=value.name)
            value.dtype = kind
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.dtype = kind
    for node in model.graph:
        for value in set(node.outputs) - set(model.graph.outputs):
            value.type, value.shape = None, None
    return with_types(model)


def stacks(model: ir.Model, rank: int) -> list[ir.Value]:
    """List the weights (rank 3) or biases (rank 2) of all experts."""
    result = model.graph.initializers.values()
    return [
        tensor
        for tensor in result
        if len(tensor.shape) == rank and tensor.shape[0] == LAYER.E and tensor.dtype.is_floating_point()
    ]


def changed(model: ir.Model, fault: str) -> ir.Model:
    stack = stacks(model, 2 if "bias" in fault else 3)[-1]
    weights = stack.const_value.numpy().copy()
    if fault == "scale":
        weights[1] = weights[1] * 1.2
    elif fault == "swap":
        weights[[0, 1]] = weights[[1, 0]]
    else:
        weights[:] = 0
    stack.const_value = ir.tensor(weights, name=stack.name)
    return model


def feeds(dtype: str, tokens: int = 200) -> dict[str, np.ndarray]:
    numbers = TYPES[dtype][1] if dtype in TYPES else np.float32
    return {"x": np.random.default_rng(tokens).standard_normal((tokens, LAYER.d)).astype(numbers)}


def rounding_model(arithmetic: str, fault: str = "none") -> ir.Model:
    """Make a layer of six experts with biases in float32 whose products round activations."""
    model = model_of(LAYER)
    if fault != "none":
        changed(model, fault)
    model = import_model(ir.to_proto(model))
    pipeline.run(model, pipeline.parse(ROUNDING[arithmetic]))
    return model


@pytest.mark.parametrize("fault", ["scale", "swap", "no bias"])
@pytest.mark.parametrize("dtype", TYPES)
def test_faults_of_one_expert_are_found_in_16_bits(dtype, fault):
    spreads = Spreads(narrow_model(dtype)).of(feeds(dtype))
    wrong = Spreads(changed(narrow_model(dtype), fault)).of(feeds(dtype)).exact["y"].astype(TYPES[dtype][1])
    expected = spreads.exact["y"].astype(TYPES[dtype][1])
    assert spreads.why_not({"y": wrong}, {"y": expected}, 1e-4)
    assert not spreads.why_not({"y": expected}, {"y": expected}, 1e-4)


@pytest.mark.parametrize("dtype", TYPES)
def test_other_rounding_is_no_fault(dtype):
    """A nearly undecided selection may change a row, too."""
    model, inputs = narrow_model(dtype), feeds(dtype)
    spreads, run = Spreads(model).of(inputs), runner(model, dtype=np.float64)
    expected = spreads.exact["y"].astype(TYPES[dtype][1])
    jumps = 0
    for seed in range(100, 104):
        actual = run(inputs, None, rounding_otherwise(seed, 1.0))["y"]
        jumps += int((np.abs(actual - spreads.exact["y"]).max(axis=1) > 0.1).sum())
        assert not spreads.why_not({"y": actual.astype(expected.dtype)}, {"y": expected}, 1e-4)
    assert jumps if dtype == "bfloat16" else True  # selections that changed were among them


@pytest.mark.parametrize("fault", ["scale", "swap", "no bias"])
@pytest.mark.parametrize("arithmetic", ROUNDING)
def test_faults_of_one_expert_are_found_where_activations_are_rounded(arithmetic, fault):
    inputs = feeds("float32")
    spreads = Spreads(rounding_model(arithmetic)).of(inputs)
    wrong = Spreads(rounding_model(arithmetic, fault)).of(inputs).exact["y"].astype(np.float32)
    expected = spreads.exact["y"].astype(np.float32)
    assert spreads.why_not({"y": wrong}, {"y": expected}, TOLERANCES["float32"])


@pytest.mark.parametrize("arithmetic", ROUNDING)
def test_activations_that_are_rounded_otherwise_are_no_fault(arithmetic):
    spreads = Spreads(rounding_model(arithmetic)).of(feeds("float32"))
    expected = spreads.exact["y"].astype(np.float32)
    farther = 0
    for seed in range(100, 104):
        actual = spreads.moved(seed, 0.5)["y"].astype(np.float32)
        farther += not compare("y", actual, expected, TOLERANCES["float32"]).matches
        assert not spreads.why_not({"y": actual}, {"y": expected}, TOLERANCES["float32"])
    assert farther  # right results here are not within the tolerance


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", TYPES)
def test_verify_finds_a_fault_in_16_bits_and_takes_what_is_right(dtype, tmp_path: pathlib.Path):
    paths = {name: tmp_path / f"{name}.onnx" for name in ("right", "scale")}
    onnx.save(ir.to_proto(narrow_model(dtype)), paths["right"])
    onnx.save(ir.to_proto(changed(narrow_model(dtype), "scale")), paths["scale"])
    compiled = moec.compile(paths["right"])
    verification = verify(paths["right"], compiled)
    assert verification.matches and verification.spread
    assert verification.tolerance == TOLERANCES["float32"]
    actual = verify(paths["scale"], compiled)
    assert not actual.matches
    assert any("spread of right results" in difference.note for case in actual.cases for difference in case.differences)


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> pathlib.Path:
    """Add up in float16."""
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float16[n, 4] x) => (float16[n, 4] y) {
        z = Sigmoid (x) y = Add (x, z) }"""
    path = tmp_path_factory.mktemp("half") / "model.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def test_a_tolerance_that_is_given_is_the_only_rule(half):
    compiled = moec.compile(half)
    verification = verify(half, compiled)
    assert verification.matches and verification.spread and verification.tolerance == TOLERANCES["float32"]
    assert not verify(half, compiled, tolerance=1e-6).spread


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_rows_have_room_of_their_own():
    center = np.zeros((64, 16))
    own = normal(0, 64, 16)
    own[5] *= 100
    actual = normal(1, 64, 16)
    actual[5] *= 100
    assert not why_not(actual, center, center, [own], 0)
    actual[6] *= 100
    assert "1 of 64 rows" in why_not(actual, center, center, [own], 0)
    assert not why_not(actual, center, center, [own, np.where(np.arange(64)[:, None] == 6, 100.0, own)], 0)


def test_what_moves_all_rows_a_little_is_found():
    center, own = np.zeros((64, 16)), normal(0, 64, 16)
    assert not why_not(1.5 * normal(1, 64, 16), center, center, [own], 0)
    assert "on average" in why_not(2.2 * normal(1, 64, 16), center, center, [own], 0)
    column = normal(1, 64, 16)
    column[:, 3] = 5
    column[:, 4:] *= 0.5
    assert why_not(column, center, center, [own], 0) == "column 3 is outside of the spread of right results"


def test_what_is_not_finite_is_so_in_a_reference():
    center = np.zeros((4, 3))
    own = center.copy()
    own[2] = np.inf
    assert not why_not(own, center, center, [own], 1e-4)
    assert why_not(np.full((4, 3), np.nan), center, center, [own], 1e-4)


def test_integers_are_those_of_a_reference():
    first, second = np.array([1, 2, 3]), np.array([1, 5, 3])
    assert not why_not(second, first, first, [second], 0)
    assert why_not(np.array([1, 9, 3]), first, first, [second], 0)
    assert not why_not(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3)), [], 0)


def test_runs_end():
    model, inputs = narrow_model("bfloat16"), feeds("bfloat16", 3)
    spreads = Spreads(model).of(inputs)
    assert len(list(spreads._results())) == MOST_RUNS + 1
    assert spreads.why_not({"y": spreads.exact["y"] + 99}, {"y": spreads.exact["y"]}, 0) and ROOM > 1


TIED = """(int64[T] ids) => (float[T,4] y) <float[3,32] table, int8[4,32] w, float[4,1] scale> {
    rows = Gather (table, ids)
    decoded = DequantizeLinear <axis = 1, block_size = 32> (w, scale)
    y = moec.Linear <activation_group = 32, arithmetic = "int8"> (rows, decoded) }"""


@pytest.mark.parametrize(("steps", "is_found"), [(1, False), (40, True)])
def test_what_no_product_made_may_be_rounded_to_either_side(steps: int, is_found: bool) -> None:
    """The second number of a normalisation, or of a row of a table as here, lies halfway between two integers."""
    model = text_model(TIED)
    table = np.tile(np.linspace(3, 9, 32, dtype=np.float32).round(), (3, 1))
    table[:, :2] = 127, 50.5
    for name, array in (
        ("table", table),
        ("w", np.random.default_rng(0).integers(-99, 99, (4, 32)).astype(np.int8)),
        ("scale", np.ones((4, 1), np.float32)),
    ):
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    shapes.infer(model)
    spreads = Spreads(model).of({"ids": np.arange(3)})
    expected = spreads.exact["y"].astype(np.float32)
    step = model.graph.initializers["w"].const_value.numpy()[:, 1].astype(np.float32)
    wrong = spreads.why_not({"y": expected + steps * step}, {"y": expected}, TOLERANCES["float32"])
    assert bool(wrong) == is_found

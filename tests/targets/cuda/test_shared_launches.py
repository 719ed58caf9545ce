"""Products that share a launch with experts, of which another number of tokens ends the way pair by pair."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib

import numpy as np
import onnx_ir as ir
import pytest

import moec
from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.ir.semantics import moe
from moec.runtime.artifact import open_artifact
from moec.runtime.model import CompiledModel
from moec.runtime.tuning import ALWAYS, NEVER
from moec.targets.cuda import nvcc
from moec.targets.cuda.estimates.launches import estimate_launches

from ..node_models import node_model

E, k, d, f, WIDTH = 3, 2, 64, 32, 24
FIRST, SHARED, PRODUCT = "moe_grouped_gemv", "gemv_gemv", "gemv"


def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    shapes = {"up": (E, 2 * f, d), "down": (E, d, f)}
    return {name: (random.standard_normal(shape) / 8).astype(np.float32) for name, shape in shapes.items()}


def inputs(T: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal((T, size)).astype(np.float32) for name, size in (("x", d), ("logits", E))}


def layer(matrix: np.ndarray | None) -> ir.Model:
    """Experts, and beside them a product of the same rows with ``matrix``."""
    model = node_model("MoE", inputs(1), weights(), RouteSpec(k=k), ExpertsSpec())
    if matrix is None:
        return model
    graph = model.graph
    constant = ir.Value(name="m", const_value=ir.tensor(matrix), shape=ir.Shape(matrix.shape))
    constant.type = ir.TensorType(ir.DataType.FLOAT)
    product = ir.node("MatMul", [graph.inputs[0], constant], name="product")
    product.outputs[0].name = "z"
    product.outputs[0].type, product.outputs[0].shape = constant.type, ir.Shape(["T", WIDTH])
    graph.initializers.add(constant)
    graph.append(product)
    graph.outputs.append(product.outputs[0])
    return model


MATRIX = np.random.default_rng(2).standard_normal((d, WIDTH)).astype(np.float32)


def compiled(matrix: np.ndarray | None, path: pathlib.Path) -> pathlib.Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvcc, "find_tool", lambda _name: None)
        moec.compile(layer(matrix), target="cuda:sm_80", output=path, emulate=True)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return compiled(MATRIX, tmp_path_factory.mktemp("both") / "art")


@pytest.fixture(scope="module")
def both(path: pathlib.Path) -> CompiledModel:
    return moec.load(path, emulate=True)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> CompiledModel:
    return moec.load(compiled(None, tmp_path_factory.mktemp("experts") / "art"), emulate=True)


def launched(model: CompiledModel, T: int) -> set[str]:
    """The kernels that write something at T tokens. Inputs differ in every call, because otherwise memory might already
    hold the results."""
    written = set[str]()
    memory: dict[str, list[bytes]] = {}

    def before(name, arguments):
        memory[name] = [argument.array.tobytes() for argument in arguments]

    def after(name, arguments):
        if memory[name] != [argument.array.tobytes() for argument in arguments]:
            written.add(name)

    model.probe.watch_kernels(inputs(T, next(_seeds)), after, before)
    return written


_seeds = itertools.count(1)


@pytest.mark.parametrize(
    ("number", "T", "kernels"),
    [
        (17, 1, {SHARED}),
        (17, 16, {SHARED}),
        (3, 2, {SHARED}),
        (3, 3, {PRODUCT}),
        (ALWAYS, 1, {PRODUCT}),
        (NEVER, 20, {FIRST}),
        (17, 17, set()),
    ],
)
def test_kernels_share_a_launch_for_sizes_of_both(both: CompiledModel, number: int, T: int, kernels: set[str]):
    both.probe.set_crossovers(dict.fromkeys(both.probe.crossovers, number))
    assert launched(both, T) & {FIRST, SHARED, PRODUCT} == kernels


def test_the_layer_has_the_shared_launch(path: pathlib.Path):
    """A product beside experts is no layer of its own."""
    artifact = open_artifact(path)
    (program,) = artifact.manifest.programs
    artifact.manifest.programs[:] = [dataclasses.replace(program, binary="code")]
    for kernel in program.kernels:
        for launch in kernel["launches"]:
            launch["registers"] = 64
    estimate = estimate_launches(artifact, "a100", [1])
    (group,) = estimate.layers
    assert group.node == "block"
    assert [launch.kernel for launch in group.launches] == ["moe_route", SHARED, "moe_combining_gemv"]
    assert group.launches[1].work.operations == 2 * k * 2 * f * d + 2 * d * WIDTH
    assert [each.launches for each in estimate.outside] == [()]


@pytest.mark.parametrize(
    ("number", "T"), [(17, 0), (17, 1), (3, 2), (3, 3), (17, 16), (17, 17), (NEVER, 20), (ALWAYS, 1)]
)
def test_results_are_those_of_experts_and_of_the_product(both: CompiledModel, number: int, T: int):
    both.probe.set_crossovers(dict.fromkeys(both.probe.crossovers, number))
    feeds = inputs(T)
    actual = both.run(feeds)
    expected = moe(RouteSpec(k=k), ExpertsSpec(), feeds["x"], feeds["logits"], None, **weights(), dtype=np.float64)
    np.testing.assert_allclose(actual["y"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(actual["z"], feeds["x"] @ MATRIX, rtol=1e-4, atol=1e-5)


@pytest.mark.nightly
@pytest.mark.parametrize("T", [0, 1, 3, 16, 17, 20])
@pytest.mark.parametrize("number", [ALWAYS, 2, 17, NEVER])
def test_bits_are_those_of_launches_apart(both: CompiledModel, experts: CompiledModel, number: int, T: int):
    for model in (both, experts):
        model.probe.set_crossovers(dict.fromkeys(model.probe.crossovers, number))
    feeds = inputs(T)
    assert both.run(feeds)["y"].tobytes() == experts.run(feeds)["y"].tobytes()

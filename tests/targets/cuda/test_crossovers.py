"""Crossovers between ways to compute: numbers that can change while a program is loaded, and are stored by GPU."""

from __future__ import annotations

import types

import ml_dtypes
import numpy as np
import pytest

import moec
from moec.artifacts.loading import device_of
from moec.common.errors import MoecError, UnsupportedError
from moec.common.specs import TensorSpec
from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.ir.semantics import moe
from moec.runtime import tuning
from moec.runtime.artifact import open_artifact
from moec.runtime.interface import Interface
from moec.runtime.load_options import LoadOptions
from moec.runtime.model import CompiledModel
from moec.runtime.tuning import ALWAYS, NEVER, read_tuned, store_tuned
from moec.targets.cuda import nvcc
from moec.targets.cuda.device.gpu import CudaGpu
from moec.targets.cuda.estimates import crossovers
from moec.tools import tune_gpu
from moec.tools.tune import measure, tune

from ..node_models import node_model

E, k, d, f = 2, 2, 128, 64
ROUTE = RouteSpec(k=k, normalize=True)
SHAPE = f"crossover.sm_80.bfloat16.{E}x{d}x{f}x2+{E}x{f}x{d}.top{k}.blocks_of_"
LAUNCHES = f"crossover.sm_80.{E}.top{k}.three_launches"
ESTIMATES = {f"{SHAPE}16": 17, f"{SHAPE}64": 25, f"{SHAPE}128": 97, LAUNCHES: 101}
WAYS = {
    "pairs": "moe_grouped_gemv",
    "16": "moe_grouped_gemm_mma",
    "64": "moe_grouped_gemm_mma_2",
    "128": "moe_grouped_gemm_mma_3",
}
"""The kernel of the first product in each way."""


@pytest.fixture(autouse=True)
def nothing_measured(tmp_path, monkeypatch):
    """A folder for what this test measures."""
    monkeypatch.setattr(tuning, "user_cache", lambda: tmp_path / "measured")


@pytest.fixture(scope="module")
def weights():
    random = np.random.default_rng(1)
    up, down = random.standard_normal((E, 2 * f, d)) / 11, random.standard_normal((E, d, f)) / 8
    return {"up": up.astype(ml_dtypes.bfloat16), "down": down.astype(ml_dtypes.bfloat16)}


@pytest.fixture(scope="module")
def path(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("crossovers") / "art"
    feeds = {name: np.zeros((1, size), ml_dtypes.bfloat16) for name, size in (("x", d), ("logits", E))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvcc, "find_tool", lambda _name: None)
        patch.setattr(crossovers, "_ONE_LAUNCH_PAIRS", 100 * k)
        model = node_model("MoE", feeds, weights, ROUTE, ExpertsSpec())
        moec.compile(model, target="cuda", output=path, emulate=True)
    return path


@pytest.fixture
def load(path):
    """A function that loads the model on an emulated GPU of the given name."""

    def load(gpu: str = "a GPU") -> CompiledModel:
        artifact = open_artifact(path)
        device = device_of(artifact, LoadOptions(emulate=True))
        device.__class__ = type("NamedGpu", (CudaGpu,), {"gpu": gpu})
        return CompiledModel(artifact, device=device)

    return load


def inputs_of(T: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    x, logits = random.standard_normal((T, d)), random.standard_normal((T, E))
    return {"x": x.astype(ml_dtypes.bfloat16), "logits": logits.astype(ml_dtypes.bfloat16)}


def launched(model: CompiledModel, T: int) -> set[str]:
    """The kernels that write something at T tokens, found by comparing memory before and after each call. Inputs differ
    in every call, because otherwise memory might already hold the results."""
    launched.calls += 1
    memory: dict[str, list[bytes]] = {}
    results: set[str] = set()

    def before(name, arguments):
        memory[name] = [argument.array.tobytes() for argument in arguments]

    def after(name, arguments):
        if memory[name] != [argument.array.tobytes() for argument in arguments]:
            results.add(name)

    model.probe.watch_kernels(inputs_of(T, launched.calls), after, before)
    return results


launched.calls = 0


def test_the_artifact_holds_estimates(load):
    assert load().probe.crossovers == ESTIMATES
    kernel = next(kernel for kernel in load().describe()["kernels"] if kernel["name"] == WAYS["16"])
    assert kernel["crossovers"] == [f"{SHAPE}16", f"{SHAPE}64"]
    assert kernel["parameters"][0]["name"] == "rows", "the numbers are the host's alone"


@pytest.mark.parametrize(
    ("crossovers", "way"),
    [
        ((NEVER, NEVER, NEVER), "pairs"),
        ((20, NEVER, NEVER), "16"),
        ((21, ALWAYS, ALWAYS), "pairs"),
        ((ALWAYS, 20, 21), "64"),
        ((ALWAYS, ALWAYS, ALWAYS), "128"),
        ((ALWAYS, 21, ALWAYS), "16"),
    ],
)
def test_one_way_is_taken_whatever_the_numbers_are(load, weights, crossovers, way):
    model = load()
    model.probe.set_crossovers(dict(zip(list(ESTIMATES)[:3], crossovers, strict=True)))
    assert launched(model, 20) & set(WAYS.values()) == {WAYS[way]}
    feeds = inputs_of(20)
    expected = moe(ROUTE, ExpertsSpec(), feeds["x"], feeds["logits"], None, **weights, dtype=np.float64)
    np.testing.assert_allclose(model.run(feeds)["y"].astype(np.float64), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("crossover", "one_launch"), [(21, True), (20, False)])
def test_dispatch_follows_its_own_crossover(load, crossover, one_launch):
    model = load()
    model.probe.set_crossovers({**dict.fromkeys(ESTIMATES, ALWAYS), LAUNCHES: crossover})
    actual = launched(model, 20)
    assert any(name.startswith("moe_dispatch") for name in actual) == one_launch
    assert ("moe_scatter_pairs" in actual) == (not one_launch)


def test_pair_by_pair_has_a_limit(load):
    model = load()
    model.probe.set_crossovers({f"{SHAPE}16": NEVER, f"{SHAPE}64": NEVER})
    assert launched(model, 128) & set(WAYS.values()) == {WAYS["pairs"]}
    assert launched(model, 129) & set(WAYS.values()) == {WAYS["16"]}


def test_measured_numbers_are_used_on_the_gpu_they_were_measured_on(load, path, monkeypatch):
    """Tuned crossovers are stored and loaded by GPU. Times come from a stand-in, on which blocks of 16 rows are slow
    and launches cost nothing."""
    monkeypatch.setattr(tune_gpu, "_SHARES", (0.8, 1, 1.2))
    model = load()

    def seconds(inputs):
        T = len(inputs["x"])
        low, middle, high, launches = (rows <= T for rows in model.probe.crossovers.values())
        if launches:
            return 1.0
        if low and middle and high:
            return 5.0 if T < 97 else 3.0
        return 4.0 if low and middle else 7.0 if low else 5.0

    monkeypatch.setattr(model.probe, "time_run", seconds)
    tuned = measure(model)
    expected = {f"{SHAPE}16": 21, f"{SHAPE}64": 20, f"{SHAPE}128": 97, LAUNCHES: 81}
    assert {crossover.name: crossover.rows for crossover in tuned} == expected
    assert {crossover.name: crossover.before for crossover in tuned} == ESTIMATES
    assert all(WAYS["128"] in crossover.kernels for crossover in tuned[:3]) and "moe_scatter_pairs" in tuned[3].kernels
    assert load().probe.crossovers == read_tuned("a GPU") == expected
    monkeypatch.setattr("moec.tools.tune.measure", lambda *_arguments: tuned)
    assert model.probe.crossovers == ESTIMATES and tune(model).probe.crossovers == expected
    assert load("another GPU").probe.crossovers == moec.load(path, emulate=True).probe.crossovers == ESTIMATES
    assert WAYS["64"] in launched(load(), 22) and WAYS["64"] not in launched(load("another GPU"), 22)


def test_a_run_is_timed_where_it_runs(load, monkeypatch):
    model = load()
    assert model.probe.time_run(inputs_of(3)) > 0
    monkeypatch.setattr(model._executor._program, "_main", None)
    with pytest.raises(MoecError, match="failed on inputs of sizes"):
        model.probe.time_run(inputs_of(3))


def test_what_was_measured_for_other_models_and_processors_does_not_count(load):
    store_tuned({f"{SHAPE}16": 5})
    store_tuned({"crossover.sm_80.another": 5}, "a GPU")
    assert load().probe.crossovers == ESTIMATES


@pytest.mark.parametrize(
    ("sizes", "tokens", "expected"),
    [(("T",), 4097, (4097,)), (("B", "T"), 17, (1, 17)), (("B", "T"), 34, (2, 17)), (("B", "T"), 4097, (129, 32))],
)
def test_many_tokens_are_many_sequences(sizes, tokens, expected):
    inputs = [TensorSpec("x", "float32", sizes)]
    model = types.SimpleNamespace(inputs=inputs, interface=Interface(inputs, []), guards=[])
    assert tune_gpu._inputs(model, tokens)["x"].shape == expected


def test_a_model_of_fixed_sizes_is_refused():
    inputs = [TensorSpec("x", "float32", (3,))]
    model = types.SimpleNamespace(inputs=inputs, interface=Interface(inputs, []), guards=[])
    with pytest.raises(MoecError, match="all sizes of the model's inputs are fixed"):
        tune_gpu._inputs(model, 17)


@pytest.mark.parametrize(
    ("gpu", "rows", "error", "message"),
    [
        (None, 20, UnsupportedError, "runs emulated; expected one"),
        ("a GPU", 1, MoecError, "blocks_of_16' is 1 for all sizes of the model's inputs; expected one that grows"),
    ],
)
def test_what_cannot_be_tuned_stays_as_it_was(load, monkeypatch, gpu, rows, error, message):
    model = load()
    monkeypatch.setattr(CompiledModel, "gpu", gpu)
    monkeypatch.setattr(tune_gpu, "_tokens", lambda *_arguments: rows)
    monkeypatch.setattr(model.probe, "time_run", lambda _inputs: 1.0)
    with pytest.raises(error, match=message):
        measure(model)
    assert model.probe.crossovers == ESTIMATES and read_tuned("a GPU") == {}

"""Layers of experts in artifacts: which launches there are, with which sizes, and what is printed of them."""

from __future__ import annotations

import copy
import dataclasses
import io
import pathlib

import numpy as np
import pytest
from rich.console import Console

from moec import targets
from moec.common.specs import TensorSpec
from moec.errors import ArtifactError, MoecError
from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.runtime.artifact import Artifact
from moec.runtime.manifest import Manifest, ProgramEntry
from moec.targets.cuda.launch_model.layers import not_predicted, predict_layers
from moec.targets.cuda.launch_model.plans import SLOTS, TOKENS, Product, StreamPlan, TilePlan, WalkPlan, WarpPlan
from moec.targets.cuda.launch_model.sizes import evaluate
from moec.targets.cuda.launch_model.tables import launch_data, launch_tables

from ...node_models import node_model

PRODUCT = Product(8, 1024, 2048, 1024, "bfloat16", 16.0, 2, 2, gathered=True)
SIZES = {
    TOKENS: "batch * sequence",
    SLOTS: "2",
    "B": "max(min(batch * sequence * 2, (batch * sequence * 2 + 120) / 16), 1)",
}

INPUTS = [TensorSpec("past", "float32", ("length", 4))]


def kernel(name: str, plan: object, grid: str, *, least: int = 0, most: int | None = None, threads: int = 128) -> dict:
    launch = {
        "function": f"{name}_kernel",
        "grid": [grid],
        "block": [str(threads)],
        "shared_bytes": "65536",
        "static_shared_bytes": 0,
        "cluster": 1,
        "registers": 64,
        "begins_early": False,
        "only_if": {"size": TOKENS, "sizes": {"least": least, "most": most}},
    }
    return {
        "name": name,
        "op": "moec.MoE",
        "nodes": ["y"],
        "computes": "",
        "candidates": [],
        "attributes": {},
        "crossovers": [],
        "work": None,
        "sources": {},
        "parameters": [{"name": "pairs", "dtype": "float32", "shape": [TOKENS, 1024]}],
        "launches": [launch],
        "sizes": SIZES,
        "plan": None if plan is None else plan.as_data(),  # type: ignore[attr-defined]
    }


KERNELS = [
    kernel("route", WalkPlan("1", 1, 8), "(tokens + 3) / 4"),
    kernel("few", WarpPlan(PRODUCT, 4, 4, 8), "tokens * slots * 128", most=16),
    kernel("many", TilePlan(PRODUCT, 16, 128, 64, 4, "mma"), "B * 16", least=17),
    kernel("combine", StreamPlan(("pairs",), (), 16), "tokens"),
    kernel("other", None, "length * 0 * multiprocessors"),
]


def artifact(*kernels: dict, architecture: str = "sm_80", binary: str | None = "code") -> Artifact:
    program = ProgramEntry(architecture, [], [], binary=binary, kernels=list(kernels))
    return Artifact(pathlib.Path(), Manifest("0", "cuda", INPUTS, [], [program], [], {}), "art")


def test_the_host_launches_what_is_for_so_many_tokens():
    gpu, (few, many) = predict_layers(artifact(*KERNELS), None, [3, 40])
    assert gpu.name == "A100 SXM 80GB"
    assert [launch.function for launch in few.launches] == ["route_kernel", "few_kernel", "combine_kernel"]
    assert [launch.function for launch in many.launches] == ["route_kernel", "many_kernel", "combine_kernel"]
    # 80 pairs, ten of each expert: a block each of 16 rows, of at most 12 blocks.
    assert [launch.grid for launch in many.launches] == [10, 12 * 16, 40]
    assert many.launches[1].prediction.blocks == 8 * 16
    assert many.launches[1].facts.shared_bytes == 65536
    assert many.launches[2].facts.bytes_read == 40 * 1024 * 4
    assert few.seconds == sum(launch.prediction.seconds for launch in few.launches)
    # Six matrices, and rows in and out, at the published bandwidth.
    assert few.least == pytest.approx((6 * 2048 * 1024 * 2 + 2 * 3 * 1024 * 2) / 2039e9)
    assert many.operations == 2 * 80 * 2048 * 1024


def test_a_launch_that_begins_early_saves_time_where_the_one_before_lets_it():
    def seconds(*early: str) -> list[float]:
        kernels = copy.deepcopy(KERNELS)
        for one in kernels:
            one["launches"][0]["begins_early"] = one["name"] in early
        _, (layer,) = predict_layers(artifact(*kernels, architecture="sm_90a"), "h100", [3])
        return [launch.prediction.seconds for launch in layer.launches]

    one_by_one = seconds()
    assert seconds("route") == seconds("few") == one_by_one
    saved = [before - after for before, after in zip(one_by_one, seconds("route", "few", "combine"), strict=True)]
    trips = 2 * 281 / 1.83e9  # to the second-level cache
    assert saved == pytest.approx([0, 1e-6 - trips, 1e-6 - trips])


def test_what_is_printed():
    gpu, layers = predict_layers(artifact(*KERNELS), "h100", [40])
    layers = [dataclasses.replace(layer, node="y[/z]") for layer in layers]
    out = io.StringIO()
    for one in launch_tables(gpu, layers):
        Console(file=out, width=200).print(one)
    text = out.getvalue()
    assert text.startswith("Predicted for H100 SXM, not measured: ")
    title, rows = text.splitlines()[1], text.splitlines()[3:]
    assert title.startswith("y[/z], 40 tokens: predicted ")
    assert "predicted µs" in rows[0]
    cells = rows[3].split()
    assert cells[:9] == ["many", "192", "x", "128", "64,", "64.0", "KiB", "3", "(shared"]
    assert cells[10:14] == ["128", "1,", "32%", "33.6,"]
    data = launch_data(gpu, layers)["predicted"][0]
    assert data["launches"][1]["blocks_with_work"] == 128
    assert data["seconds"] == layers[0].seconds


def test_kernels_outside_of_layers_are_listed_and_nothing_is_predicted_of_them():
    attention = {**kernel("attention[/b]", None, "tokens"), "op": "Attention", "nodes": ["z"]}
    made = artifact(*KERNELS, attention, {**attention, "name": "view", "launches": []})
    gpu, layers = predict_layers(made, None, [3])
    others = not_predicted(made, gpu)
    assert not_predicted(artifact(*KERNELS), gpu) == [] and others == [attention]
    assert launch_data(gpu, layers, others)["not_predicted"] == [
        {"kernel": "attention[/b]", "op": "Attention", "nodes": ["z"], "functions": ["attention[/b]_kernel"]}
    ]
    *_, last = launch_tables(gpu, layers, others)
    out = io.StringIO()
    Console(file=out, width=200).print(last)
    assert "Not predicted: 1 kernels" in out.getvalue()
    assert ["attention[/b]", "Attention", "1"] in [line.split() for line in out.getvalue().splitlines()]
    assert len(list(launch_tables(gpu, layers))) == len(list(launch_tables(gpu, layers, others))) - 1


@pytest.mark.parametrize(
    ("made", "gpu", "message"),
    [
        (artifact(*KERNELS), "gtx", "GPU 'gtx' is not known to the model; use one of a100, h100, rtx4090"),
        (artifact(*KERNELS, architecture="sm_90a"), "a100", "holds code for sm_90a, and the GPU is sm_80"),
        (artifact(*KERNELS, architecture="sm_120"), None, "for sm_120, which no GPU runs whose figures are known"),
        (artifact(*KERNELS, binary=None), None, "holds no code for a GPU, for no nvcc was found"),
        (artifact({**KERNELS[0], "op": "Softmax"}), None, "has no layer of experts"),
        (artifact({**KERNELS[0], "launches": []}), None, "has no layer of experts"),
        (artifact({**KERNELS[0], "sizes": {TOKENS: "64"}}), None, "the layer has 64 tokens; 3 are none"),
    ],
)
def test_what_cannot_be_predicted_is_refused(made, gpu, message):
    with pytest.raises(MoecError, match=message):
        predict_layers(made, gpu, [3])


def test_artifacts_of_other_kinds_are_refused():
    made = artifact(*KERNELS)
    made.manifest.target = "cpu"
    with pytest.raises(MoecError, match="art: is for cpu, and launches are those of a GPU; choose an artifact for"):
        targets.kind_of("cpu").predict_launches(made, None, [3])


def _altered(**changes: object) -> dict:
    changed = copy.deepcopy(KERNELS[0])
    changed["launches"][0].update(changes)
    return changed


@pytest.mark.parametrize(
    ("changes", "found"),
    [({"block": ["0"]}, "0 threads"), ({"shared_bytes": "999999"}, "999999 b"), ({"registers": 999}, "999 registers")],
)
def test_blocks_that_do_not_fit_are_refused(changes, found):
    with pytest.raises(MoecError, match=f"kernel 'route': a block of .*{found}.* does not fit on A100"):
        predict_layers(artifact(_altered(**changes)), None, [3])


@pytest.mark.parametrize(
    "altered",
    [
        _altered(grid=["__import__('os')"]),
        _altered(grid=["tokens / 0"]),
        _altered(grid=[3]),
        _altered(grid=["nothing"]),
        _altered(grid=["tokens * 99999999999999"]),
        _altered(registers=None),
        _altered(only_if={}),
        _altered(only_if={"size": TOKENS, "sizes": {"least": 4, "most": None}}),
        {**KERNELS[0], "sizes": {**SIZES, TOKENS: 7}},
        {**KERNELS[0], "sizes": {**SIZES, TOKENS: "os.system"}},
        {**KERNELS[0], "plan": {"kind": "walk", "steps": "tokens ** tokens"}},
        {**KERNELS[3], "parameters": [{"name": "pairs", "dtype": "object", "shape": [1]}]},
        {**KERNELS[3], "parameters": [{"name": "pairs", "dtype": "float32", "shape": [10**400]}]},
    ],
)
def test_records_that_were_altered_are_refused(altered):
    with pytest.raises(ArtifactError):
        predict_layers(artifact(altered), None, [3])


def test_kernels_of_a_layer_say_how_they_are_called(program_of):
    """Every launch of a compiled layer has its sizes and a plan, from which its grid can be computed."""
    random = np.random.default_rng(0)
    up, down = (random.standard_normal(shape, dtype=np.float32) for shape in ((3, 32, 16), (3, 16, 16)))
    feeds = {"x": np.zeros((1, 16), np.float32), "logits": np.zeros((1, 3), np.float32)}
    program = program_of(node_model("MoE", feeds, {"up": up, "down": down}, RouteSpec(k=2), ExpertsSpec()))
    (tokens,) = {tensor.shape[0] for tensor in program.inputs}
    kernels = [kernel for kernel in program.kernels if kernel.op == "moec.MoE"]
    names = {"moe_route", "moe_scatter_pairs", "moe_grouped_gemv", "moe_grouped_gemm_simt", "moe_combine"}
    assert names <= {kernel.name for kernel in kernels}
    for one in kernels:
        assert one.plan is not None, one.name
        sizes = {name: evaluate(text, {tokens: 5}, one.name) for name, text in one.sizes.items()}
        assert sizes[TOKENS] == 5
        assert sizes.get("B", 3) == 3  # at most a block for each expert: ten pairs, blocks of 64 rows
        for launch in one.launches:
            assert all(evaluate(extent, sizes, one.name) > 0 for extent in launch.grid)

"""Predictions for layers of experts in artifacts: the launches, their sizes, and the printed tables."""

from __future__ import annotations

import copy
import dataclasses
import io
import pathlib
from collections.abc import Sequence

import numpy as np
import pytest
from rich.console import Console

from moec import targets
from moec.common.errors import ArtifactError, MoecError
from moec.common.specs import HeldState, TensorSpec
from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.runtime.artifact import Artifact
from moec.runtime.manifest import Manifest, ProgramEntry
from moec.targets.cuda.launch_model.attention import AttentionSizes
from moec.targets.cuda.launch_model.layers import PredictedModel, predict_model
from moec.targets.cuda.launch_model.plans import (
    SLOTS,
    TOKENS,
    AttentionPlan,
    MemoryBoundPlan,
    ProductPlan,
    TilePlan,
    WalkPlan,
    WarpPlan,
)
from moec.targets.cuda.launch_model.sizes import evaluate
from moec.targets.cuda.launch_model.tables import launch_data, launch_tables

from ...node_models import node_model

PRODUCT = ProductPlan(8, 1024, 2048, 1024, "bfloat16", 16.0, 2, 2, gathered=True)
SIZES = {
    TOKENS: "batch * sequence",
    SLOTS: "2",
    "B": "max(min(batch * sequence * 2, (batch * sequence * 2 + 120) / 16), 1)",
}

INPUTS = [TensorSpec("past", "float32", ("length", 4)), TensorSpec("ids", "int64", ("batch", "sequence"))]


def kernel(name: str, plan: object, grid: str, *, least: int = 0, most: int | None = None, threads: int = 128) -> dict:
    launch = {
        "function": f"{name}_kernel",
        "arguments": ["pairs_ptr", "rows_ptr"],
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
        "calls": 1,
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
    kernel("combine", MemoryBoundPlan(("pairs",), (), 16), "tokens"),
    kernel("other", None, "length * 0 * multiprocessors"),
]


def artifact(
    *kernels: dict, architecture: str = "sm_80", binary: str | None = "code", held: Sequence[HeldState] = ()
) -> Artifact:
    program = ProgramEntry(architecture, [], [], binary=binary, kernels=list(kernels), held=list(held))
    return Artifact(pathlib.Path(), Manifest("0", "cuda", INPUTS, [], [program], [], {}), "art")


def test_the_host_launches_what_is_for_so_many_tokens():
    model = predict_model(artifact(*KERNELS), None, [3, 40])
    few, many = model.layers
    assert model.outside == model.others == ()
    assert model.gpu.name == "A100 SXM 80GB"
    assert [launch.function for launch in few.launches] == ["route_kernel", "few_kernel", "combine_kernel"]
    assert [launch.function for launch in many.launches] == ["route_kernel", "many_kernel", "combine_kernel"]
    # 80 pairs, ten for each expert, are one block of 16 rows per expert; the grid is for 12 blocks at most.
    assert [launch.grid for launch in many.launches] == [10, 12 * 16, 40]
    assert many.launches[1].prediction.blocks == 8 * 16
    assert many.launches[1].facts.shared_bytes == 65536
    assert many.launches[2].facts.bytes_read == 40 * 1024 * 4
    assert few.seconds == sum(launch.prediction.seconds for launch in few.launches)
    # Six matrices, and the rows of input and output, at the published bandwidth.
    assert few.least == pytest.approx((6 * 2048 * 1024 * 2 + 2 * 3 * 1024 * 2) / 2039e9)
    assert many.operations == 2 * 80 * 2048 * 1024


def test_a_launch_that_begins_early_saves_time_where_the_one_before_lets_it():
    def seconds(*early: str) -> list[float]:
        kernels = copy.deepcopy(KERNELS)
        for one in kernels:
            one["launches"][0]["begins_early"] = one["name"] in early
        (layer,) = predict_model(artifact(*kernels, architecture="sm_90a"), "h100", [3]).layers
        return [launch.prediction.seconds for launch in layer.launches]

    one_by_one = seconds()
    assert seconds("route") == seconds("few") == one_by_one
    saved = [before - after for before, after in zip(one_by_one, seconds("route", "few", "combine"), strict=True)]
    trips = 2 * 281 / 1.83e9  # two trips to the second-level cache
    assert saved == pytest.approx([0, 1e-6 - trips, 1e-6 - trips])


def test_what_is_printed():
    model = predict_model(artifact(*KERNELS), "h100", [40])
    layers = [dataclasses.replace(layer, node="y[/z]") for layer in model.layers]
    model = dataclasses.replace(model, layers=tuple(layers))
    text = printed(model)
    assert text.startswith("Predicted for H100 SXM, not measured: ")
    title, rows = text.splitlines()[1], text.splitlines()[3:]
    assert title.startswith("y[/z], 40 tokens: predicted ")
    assert "predicted µs" in rows[0]
    cells = rows[3].split()
    assert cells[:9] == ["many", "192", "x", "128", "64,", "64.0", "KiB", "3", "(shared"]
    assert cells[10:14] == ["128", "1,", "32%", "33.6,"]
    data = launch_data(model)["predicted"][0]
    assert data["launches"][1]["blocks_with_work"] == 128
    assert data["seconds"] == layers[0].seconds


def printed(model: PredictedModel) -> str:
    out = io.StringIO()
    for one in launch_tables(model):
        Console(file=out, width=200).print(one)
    return out.getvalue()


DENSE = ProductPlan(1, 256, 512, 512, "bfloat16", 16.0, 2, 2, gathered=True)
ATTENTION = AttentionPlan("bfloat16", 2, 2, 64, 64, 1, 4, "last", 64, 64, "mma", "B * G", "S", "P")


def outside(name: str, op: str, plan: object, grid: str, sizes: dict[str, str], nodes: tuple[str, ...]) -> dict:
    """The record of a kernel outside of layers, which is launched at all sizes."""
    record = kernel(name, plan, grid)
    record["launches"][0]["only_if"] = None
    parameters = [{"name": "rows", "dtype": "bfloat16", "shape": [next(iter(sizes))]}]
    return {**record, "op": op, "sizes": sizes, "nodes": list(nodes), "calls": len(nodes), "parameters": parameters}


TILES = outside("product", "MatMul", TilePlan(DENSE, 64, 128, 64, 3, "mma"), "M", {"M": "batch * sequence"}, ("a", "b"))
ATTENDS = outside(
    "attention",
    "Attention",
    ATTENTION,
    "S",
    {"B": "batch", "G": "2", "S": "sequence", "P": "length + sequence"},
    ("c",),
)
HELD = HeldState("past", "present", 0, "float32", "sequence")


def test_products_and_attention_outside_of_layers_are_predicted_too():
    model = predict_model(artifact(*KERNELS, TILES, ATTENDS, held=[HELD]), None, [40], 100)
    (found,) = model.outside
    product, attention = found.launches
    assert (product.calls, attention.calls) == (2, 1)
    # 40 rows are one block of 64 rows, which has four tiles.
    assert product.launch.prediction.blocks == 4
    assert product.launch.prediction.operations == 2 * 40 * 512 * 256
    # Two heads of keys, each with 160 rows in tiles of 64; query i sees 100 keys of the past and i + 1 new ones.
    assert attention.launch.facts.attention == AttentionSizes(2, 40, 140, 1)
    assert attention.launch.prediction.blocks == 2 * 3
    seen = 40 * 100 + 40 * 41 // 2
    assert attention.launch.prediction.operations == 2 * 2 * 4 * seen * (64 + 64)
    assert found.seconds == 2 * product.launch.prediction.seconds + attention.launch.prediction.seconds
    assert found.operations == sum(one.calls * one.launch.prediction.operations for one in found.launches)
    text, data = printed(model), launch_data(model)["outside"]
    total = (found.seconds + model.layers[0].seconds) * 1e6
    assert f"With 1 layers of experts, 40 tokens: predicted {total:.1f} µs" in text
    assert [(one["function"], one["calls"]) for one in data[0]["launches"]] == [
        ("product_kernel", 2),
        ("attention_kernel", 1),
    ]


def test_a_model_without_layers_of_experts_is_predicted_by_the_rows_of_its_products():
    model = predict_model(artifact(ATTENDS, TILES), None, [40])
    assert model.layers == () and len(model.outside[0].launches) == 2
    assert "With " not in printed(model)


def test_what_says_nothing_of_itself_or_has_computed_sizes_is_listed():
    unsaid = {**ATTENDS, "name": "attention[/b]", "plan": None}
    computed = {**TILES, "name": "computed", "sizes": {"M": "chosen * 2"}}
    made = artifact(*KERNELS, unsaid, computed, {**unsaid, "name": "view", "launches": []})
    model = predict_model(made, None, [3])
    assert model.others == (unsaid, computed) and model.outside == ()
    assert launch_data(model)["not_predicted"] == [
        {"kernel": "attention[/b]", "op": "Attention", "nodes": ["c"], "functions": ["attention_kernel"]},
        {"kernel": "computed", "op": "MatMul", "nodes": ["a", "b"], "functions": ["product_kernel"]},
    ]
    lines = [line.split() for line in printed(model).splitlines()]
    assert ["attention[/b]", "Attention", "1"] in lines and ["computed", "MatMul", "2"] in lines
    assert "Not predicted: 2 kernels" in printed(model)


def test_a_past_of_a_model_that_keeps_none_is_refused():
    with pytest.raises(MoecError, match="art: keeps no keys and values between runs on a GPU; leave out --past"):
        predict_model(artifact(*KERNELS), None, [3], 5)


@pytest.mark.parametrize(
    ("made", "gpu", "message"),
    [
        (artifact(*KERNELS), "gtx", "GPU 'gtx' is not known to the model; use one of a100, h100, rtx4090"),
        (artifact(*KERNELS, architecture="sm_90a"), "a100", "holds code for sm_90a, and the GPU is sm_80"),
        (artifact(*KERNELS, architecture="sm_120"), None, "for sm_120, which no GPU runs whose figures are known"),
        (artifact(*KERNELS, binary=None), None, "holds no code for a GPU, for no nvcc was found"),
        (
            artifact({**KERNELS[0], "op": "Softmax"}),
            None,
            "has no layer of experts and no product with a constant matrix",
        ),
        (artifact({**KERNELS[0], "launches": []}), None, "has no layer of experts"),
        (artifact({**KERNELS[0], "sizes": {TOKENS: "64"}}), None, "the layer has 64 tokens; 3 are none"),
    ],
)
def test_what_cannot_be_predicted_is_refused(made, gpu, message):
    with pytest.raises(MoecError, match=message):
        predict_model(made, gpu, [3])


def test_artifacts_of_other_kinds_are_refused():
    made = artifact(*KERNELS)
    made.manifest.target = "cpu"
    with pytest.raises(MoecError, match="art: is for cpu, and launches are those of a GPU; choose an artifact for"):
        targets.kind_of("cpu").predict_launches(made, None, [3], None)


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
        predict_model(artifact(_altered(**changes)), None, [3])


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
        predict_model(artifact(altered), None, [3])


def test_kernels_of_a_layer_say_how_they_are_called(program_of):
    """Every launch of a compiled layer has a plan and its sizes, from which its grid can be computed."""
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
        assert sizes.get("B", 3) == 3  # at most one block for each expert: ten pairs, blocks of 64 rows
        for launch in one.launches:
            assert all(evaluate(extent, sizes, one.name) > 0 for extent in launch.grid)

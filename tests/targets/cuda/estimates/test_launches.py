"""Estimates of launches in artifacts: which are made, their sizes and least times, and the printed tables."""

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
from moec.common.kernel_sizes import evaluate
from moec.common.specs import HeldState, TensorSpec
from moec.common.work import SizedWork
from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.runtime.artifact import Artifact
from moec.runtime.manifest import Manifest, ProgramEntry
from moec.targets.cuda.estimates.draws import Draws
from moec.targets.cuda.estimates.launches import ModelEstimate, estimate_launches
from moec.targets.cuda.estimates.sizes import SLOTS, TOKENS
from moec.targets.cuda.estimates.tables import launch_data, launch_tables

from ...node_models import node_model

PRODUCT = SizedWork(
    "2 * tokens * slots * 2097152",
    "bfloat16",
    {"pairs": "tokens * slots * 1024", "matrix": "min(tokens * slots, 8) * 2097152"},
)
"""The work of a product with 8 matrices of 2048 x 1024, which reads and writes a row of 1024 numbers."""
SIZES = {
    TOKENS: "batch * sequence",
    SLOTS: "2",
    "B": "max(min(batch * sequence * 2, (batch * sequence * 2 + 120) / 16), 1)",
}

MATRIX = {"name": "matrix", "dtype": "bfloat16", "shape": [8, 2048, 1024]}
INPUTS = [TensorSpec("past", "float32", ("length", 4)), TensorSpec("ids", "int64", ("batch", "sequence"))]


def kernel(
    name: str, work: SizedWork | None, grid: str, *, least: int = 0, most: int | None = None, threads: int = 128
) -> dict:
    launch = {
        "function": f"{name}_kernel",
        "arguments": ["pairs_ptr", "matrix_ptr"],
        "tensor_maps": [],
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
        "parameters": [
            {"name": "pairs", "dtype": "bfloat16", "shape": ["tokens * slots * 2", 1024]},
            *([] if work is None or not work.moved else [MATRIX]),
        ],
        "launches": [launch],
        "sizes": SIZES,
        "sized_work": None if work is None else dataclasses.asdict(work),
    }


KERNELS = [
    kernel("route", SizedWork(), "(tokens + 3) / 4"),
    kernel("few", PRODUCT, "tokens * slots * 128", most=16),
    kernel("many", PRODUCT, "B * 16", least=17),
    kernel("combine", SizedWork(), "tokens"),
    kernel("other", None, "length * 0 * multiprocessors"),
]


def artifact(
    *kernels: dict, architecture: str = "sm_80", binary: str | None = "code", held: Sequence[HeldState] = ()
) -> Artifact:
    program = ProgramEntry(architecture, [], [], binary=binary, kernels=list(kernels), held=list(held))
    return Artifact(pathlib.Path(), Manifest("0", "cuda", INPUTS, [], [program], [], {}), "art")


def test_the_host_launches_what_is_for_so_many_tokens():
    model = estimate_launches(artifact(*KERNELS), None, [3, 40])
    few, many = model.layers
    assert model.outside == model.others == ()
    assert model.gpu.name == "A100 SXM 80GB"
    assert [launch.function for launch in few.launches] == ["route_kernel", "few_kernel", "combine_kernel"]
    assert [launch.function for launch in many.launches] == ["route_kernel", "many_kernel", "combine_kernel"]
    # 80 pairs, ten for each expert; the grid is for 12 blocks of 16 rows at most.
    assert [launch.blocks for launch in many.launches] == [10, 12 * 16, 40]
    assert many.launches[1].shared_bytes == 65536
    # All eight matrices, and a row for each pair; of the other launches the whole tensor.
    assert many.launches[1].work.bytes_moved == 8 * 2048 * 1024 * 2 + 80 * 1024 * 2
    assert many.launches[2].work.bytes_moved == 2 * 80 * 1024 * 2
    # Six pairs have six of the eight matrices.
    assert few.launches[1].work.bytes_moved == 6 * 2048 * 1024 * 2 + 6 * 1024 * 2
    assert few.launches[1].seconds == pytest.approx(few.launches[1].work.bytes_moved / 2039e9)
    assert few.seconds == sum(launch.seconds for launch in few.launches)
    assert many.operations == many.launches[1].work.operations == 2 * 80 * 2048 * 1024


def test_tensor_memory_limits_the_blocks_at_once():
    product = kernel("few", PRODUCT, "tokens * slots * 128")
    launch = product["launches"][0]
    limits = {}
    for columns in (None, 512):
        launch |= {"shared_bytes": "0"} | ({} if columns is None else {"tensor_columns": columns})
        (layer,) = estimate_launches(artifact(product, architecture="sm_100a"), None, [3]).layers
        limits[columns] = (
            layer.launches[0].occupancy.blocks,
            layer.launches[0].occupancy.limit,
            layer.launches[0].waves,
        )
    assert limits == {None: (8, "registers", 1), 512: (1, "tensor memory", 6)}


def test_one_program_of_several_is_estimated_on_its_own_gpu():
    both = artifact(*KERNELS)
    both.manifest.programs.append(dataclasses.replace(both.manifest.programs[0], architecture="sm_90a"))
    names = {choice: estimate_launches(both, None, [3], architecture=choice).gpu.name for choice in (None, "sm_80")}
    assert names == {None: "H100 SXM", "sm_80": "A100 SXM 80GB"}


def test_the_longer_time_limits():
    """A matrix that many tokens read takes less time than their products; that of few takes longer."""
    limits = {}
    for count in (40, 8192, 1 << 20):  # the last has more operations than a size may be
        (layer,) = estimate_launches(artifact(*KERNELS), "a100", [count]).layers
        launch = layer.launches[1]
        limits[count] = launch.limit
        times = launch.work.operations / 312e12, launch.work.bytes_moved / 2039e9
        assert launch.seconds == pytest.approx(max(times))
    assert limits == {40: "memory", 8192: "arithmetic", 1 << 20: "arithmetic"}


def test_what_is_printed():
    model = estimate_launches(artifact(*KERNELS), "h100", [40])
    layers = [dataclasses.replace(layer, node="y[/z]") for layer in model.layers]
    model = dataclasses.replace(model, layers=tuple(layers))
    text = printed(model)
    assert text.startswith("Least times on H100 SXM, not measured: ")
    title, rows = text.splitlines()[1], text.splitlines()[3:]
    assert title.startswith("y[/z], 40 tokens: at least ")
    assert "least µs" in rows[0]
    cells = rows[3].split()
    assert cells[:11] == ["many", "1", "192", "x", "128", "64,", "64.0", "KiB", "3", "(shared", "memory)"]
    assert cells[11:14] == ["1", "33.7", "0.336"] and cells[-1] == "memory"
    data = launch_data(model)
    assert data["measured"] is False
    (layer,) = data["layers"]
    assert (layer["launches"][1]["waves"], layer["launches"][1]["blocks_at_once"]) == (1, 3)
    assert layer["least_seconds"] == layers[0].seconds


@pytest.mark.parametrize("nodes", [(), ("the sum", "a state"), ("a", "b", "c", "d")])
def test_sessions_without_graphs_are_named(nodes):
    model = dataclasses.replace(estimate_launches(artifact(*KERNELS), "h100", [40]), fixed_lengths=nodes)
    listed = {0: "", 2: "the sum, a state;", 4: "a, b, c and 1 more;"}[len(nodes)]
    text = printed(model)
    assert ("Sessions run without captured graphs, because of" in text) == bool(nodes)
    assert listed in text
    assert launch_data(model)["sessions_without_graphs_for"] == [*nodes]


def printed(model: ModelEstimate) -> str:
    out = io.StringIO()
    for launch_table in launch_tables(model):
        Console(file=out, width=200).print(launch_table)
    return out.getvalue()


DENSE = SizedWork("2 * M * 131072", "bfloat16")
ATTENTION = SizedWork("B * G * S * P", "bfloat16")


def outside(name: str, op: str, work: SizedWork, grid: str, sizes: dict[str, str], nodes: tuple[str, ...]) -> dict:
    """The record of a kernel outside of layers, which is launched at all sizes."""
    record = kernel(name, work, grid)
    record["launches"][0]["only_if"] = None
    parameters = [{"name": "pairs", "dtype": "bfloat16", "shape": [next(iter(sizes))]}]
    return {**record, "op": op, "sizes": sizes, "nodes": list(nodes), "calls": len(nodes), "parameters": parameters}


TILES = outside("product", "MatMul", DENSE, "M", {"M": "batch * sequence"}, ("a", "b"))
ATTENDS = outside(
    "attention",
    "Attention",
    ATTENTION,
    "S",
    {"B": "batch", "G": "2", "S": "sequence", "P": "length + sequence"},
    ("c",),
)
HELD = HeldState("past", "present", 0, "float32", "sequence")


def test_products_and_attention_outside_of_layers_are_estimated_too():
    model = estimate_launches(artifact(*KERNELS, TILES, ATTENDS, held=[HELD]), None, [40], 100)
    (group,) = model.outside
    product, attention = group.launches
    assert (product.calls, attention.calls) == (2, 1)
    assert product.work.operations == 2 * 40 * 512 * 256
    assert attention.work.operations == 2 * 40 * 140
    assert group.seconds == 2 * product.seconds + attention.seconds
    assert group.operations == 2 * product.work.operations + attention.work.operations
    (run,) = model.runs
    assert (run.tokens, run.launches, run.seconds) == (40, 6, group.seconds + model.layers[0].seconds)
    # Nobody measured it: 6 us for each launch, and 750 for the run.
    assert run.host_seconds == pytest.approx(786e-6)
    # In a graph, 1.3 us of the GPU for each.
    assert run.graph_seconds == pytest.approx(run.seconds + 7.8e-6)
    text, data = printed(model), launch_data(model)
    cells = [line.split() for line in text.splitlines()]
    assert ["40", "6", f"{run.seconds * 1e6:.3g}", f"{run.graph_seconds * 1e6:.3g}", "786"] in cells
    assert data["runs"] == [dataclasses.asdict(run)]
    assert [(launch["function"], launch["calls"]) for launch in data["outside"][0]["launches"]] == [
        ("product_kernel", 2),
        ("attention_kernel", 1),
    ]


@pytest.mark.parametrize(("size", "is_estimated"), [("wanted", True), ("found", False)])
def test_logits_of_the_last_token_are_estimated_and_sizes_of_results_are_not(size, is_estimated):
    logits = outside("logits", "MatMul", DENSE, "M", {"M": f"batch * {size}"}, ("l",))
    model = estimate_launches(artifact(*KERNELS, TILES, logits), None, [40])
    names = [launch.kernel for launch in model.outside[0].launches]
    assert names == ["product", "logits"] if is_estimated else ["product"]
    assert [kernel["name"] for kernel in model.others] == ([] if is_estimated else ["logits"])
    if is_estimated:
        assert model.outside[0].launches[1].work.operations == 2 * 512 * 256


def test_a_model_without_layers_of_experts_is_estimated_by_the_rows_of_its_products():
    model = estimate_launches(artifact(ATTENDS, TILES), None, [40])
    assert model.layers == () and len(model.outside[0].launches) == 2
    assert [(run.launches, run.seconds) for run in model.runs] == [(3, model.outside[0].seconds)]


def drawing(work: SizedWork) -> dict:
    record = kernel("many", work, "B * 16")
    return {**record, "attributes": {"experts": 8, "inner": 1024, "width": 2048, "gated": False}}


def test_a_matrix_that_is_given_by_a_tensor_map_counts():
    work = dataclasses.replace(PRODUCT, experts=8, block_rows=16)
    record = drawing(work)
    by_map = copy.deepcopy(record)
    (launch,) = by_map["launches"]
    launch["arguments"] = ["pairs_ptr", "matrix_map"]
    launch["tensor_maps"] = [{"name": "matrix_map", "tensor": "matrix", "dtype": "bfloat16", "rank": 3, "numbers": []}]
    without = copy.deepcopy(by_map)
    without["launches"][0]["tensor_maps"] = []
    works, reads = [], []
    for each in (record, by_map, without):
        (layer,) = estimate_launches(artifact(each), "a100", [40]).layers
        works.append(layer.launches[0].work)
        reads.append(layer.launches[0].reads)
    assert works[0] == works[1] and reads[0] == reads[1]
    assert reads[2] is None and works[2].bytes_moved < works[0].bytes_moved


@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_tokens_draw_their_experts(tokens):
    """Two tokens may draw the same expert, and the rows of an expert fill its last block in part. Without experts that
    are drawn, an estimate stays even."""
    experts = 8 * (1 - (6 / 8) ** tokens)
    cases = {"even": PRODUCT, "pairs": {"experts": 8}, "blocks": {"experts": 8, "block_rows": 16}}
    works, reads = {}, {}
    for name, case in cases.items():
        work = case if isinstance(case, SizedWork) else dataclasses.replace(PRODUCT, **case)
        (layer,) = estimate_launches(artifact(drawing(work)), "a100", [tokens]).layers
        works[name], reads[name] = layer.launches[0].work, layer.launches[0].reads
    assert reads["even"].count == min(2 * tokens, 8) * 2048 * 1024
    for name in ("pairs", "blocks"):
        assert reads[name].count == pytest.approx(experts * 2048 * 1024)
        saved = works["even"].bytes_moved - works[name].bytes_moved
        assert saved == pytest.approx(2 * (reads["even"].count - reads[name].count), abs=1)
    assert works["pairs"].operations == works["even"].operations == 2 * tokens * 2 * 2097152
    blocks = Draws(tokens, 2, 8).blocks(16)
    assert works["blocks"].operations == pytest.approx(2 * blocks * 16 * 2097152)


def test_each_figure_says_whether_it_was_measured():
    model = estimate_launches(artifact(*KERNELS), None, [3])
    figures = launch_data(model)["figures"]
    assert {each["figure"] for each in figures if each["measured"] == "never"} >= {"least µs, limit", "µs of the host"}
    for figure in figures:
        assert figure["source"] in printed(model)


def test_kernels_with_computed_sizes_are_listed():
    computed = {**TILES, "name": "computed[/b]", "sizes": {"M": "chosen * 2"}}
    built = artifact(*KERNELS, computed, {**computed, "name": "view", "launches": []})
    model = estimate_launches(built, None, [3])
    assert model.others == (computed,) and model.outside == ()
    assert launch_data(model)["not_estimated"] == [
        {"kernel": "computed[/b]", "op": "MatMul", "nodes": ["a", "b"], "functions": ["product_kernel"]},
    ]
    assert ["computed[/b]", "MatMul", "2"] in [line.split() for line in printed(model).splitlines()]
    assert "Not estimated: 1 kernels" in printed(model)


def test_a_past_of_a_model_that_keeps_none_is_refused():
    with pytest.raises(MoecError, match="art: keeps no keys and values between runs on a GPU; leave out --past"):
        estimate_launches(artifact(*KERNELS), None, [3], 5)


@pytest.mark.parametrize(
    ("compiled", "gpu", "message"),
    [
        (artifact(*KERNELS), "gtx", "GPU 'gtx' is unknown; expected one of a100, h100, b200, rtx4090"),
        (artifact(*KERNELS, architecture="sm_90a"), "a100", "has code for sm_90a; expected code for the GPU, sm_80"),
        (artifact(*KERNELS, architecture="sm_130"), None, "for sm_130; expected code for one of"),
        (artifact(*KERNELS, binary=None), None, "has no code for a GPU, because nvcc was not found"),
        (
            artifact({**KERNELS[0], "op": "Softmax"}),
            None,
            "has no layer of experts and no product with a constant matrix",
        ),
        (artifact({**KERNELS[0], "launches": []}), None, "has no layer of experts"),
        (artifact({**KERNELS[0], "sizes": {TOKENS: "64"}}), None, "the layer has 64 tokens; 3 are none"),
    ],
)
def test_what_cannot_be_estimated_is_refused(compiled, gpu, message):
    with pytest.raises(MoecError, match=message):
        estimate_launches(compiled, gpu, [3])


def test_artifacts_of_other_kinds_are_refused():
    built = artifact(*KERNELS)
    built.manifest.target = "cpu"
    with pytest.raises(MoecError, match="art: is for cpu, which has no launches of a GPU; choose an artifact for"):
        targets.kind_of("cpu").estimate_launches(built, None, [3], None)


def _altered(**changes: object) -> dict:
    changed = copy.deepcopy(KERNELS[0])
    changed["launches"][0].update(changes)
    return changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"block": ["0"]}, "0 threads"), ({"shared_bytes": "999999"}, "999999 b"), ({"registers": 999}, "999 registers")],
)
def test_blocks_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(MoecError, match=f"kernel 'route': a block of .*{message}.* does not fit on A100"):
        estimate_launches(artifact(_altered(**changes)), None, [3])


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
        {**KERNELS[0], "sized_work": {"operations": "tokens ** tokens"}},
        {**KERNELS[0], "sized_work": {"moved": {"pairs": "open('x')"}}},
        {**KERNELS[0], "sized_work": {"bytes": "1"}},
        {**drawing(PRODUCT), "sized_work": {**dataclasses.asdict(PRODUCT), "experts": "os"}},
        {**drawing(PRODUCT), "sized_work": {**dataclasses.asdict(PRODUCT), "experts": 8, "block_rows": []}},
        {**drawing(PRODUCT), "sized_work": {**dataclasses.asdict(PRODUCT), "experts": -8}},
        {**KERNELS[3], "parameters": [{"name": "pairs", "dtype": "object", "shape": [1]}]},
        {**KERNELS[3], "parameters": [{"name": "pairs", "dtype": "float32", "shape": [10**400]}]},
    ],
)
def test_records_that_were_altered_are_refused(altered):
    with pytest.raises(ArtifactError):
        estimate_launches(artifact(altered), None, [3])


def test_kernels_of_a_layer_say_how_they_are_called(program_of):
    """Every launch of a compiled layer has its work and its sizes, from which grid and operations can be computed."""
    random = np.random.default_rng(0)
    up, down = (random.standard_normal(shape, dtype=np.float32) for shape in ((3, 32, 16), (3, 16, 16)))
    feeds = {"x": np.zeros((1, 16), np.float32), "logits": np.zeros((1, 3), np.float32)}
    program = program_of(node_model("MoE", feeds, {"up": up, "down": down}, RouteSpec(k=2), ExpertsSpec()))
    (tokens,) = {tensor.shape[0] for tensor in program.inputs}
    kernels = [kernel for kernel in program.kernels if kernel.op == "moec.MoE"]
    names = {"moe_route", "moe_scatter_pairs", "moe_grouped_gemv", "moe_grouped_gemm_simt", "moe_combine"}
    assert names <= {kernel.name for kernel in kernels}
    operations = {}
    for entry in kernels:
        sizes = {name: evaluate(text, {tokens: 5}, entry.name) for name, text in entry.sizes.items()}
        assert sizes[TOKENS] == 5
        operations[entry.name] = evaluate(entry.sized_work.operations, sizes, entry.name)
        assert sizes.get("B", 3) == 3  # at most one block for each expert: ten pairs, blocks of 64 rows
        for launch in entry.launches:
            assert all(evaluate(extent, sizes, entry.name) > 0 for extent in launch.grid)
    assert {name: count for name, count in operations.items() if count} == {
        "moe_grouped_gemv": 2 * 10 * 32 * 16,
        "moe_grouped_gemm_simt": 2 * 10 * 32 * 16,
        "moe_combining_gemv": 2 * 10 * 16 * 16,
        "moe_grouped_gemm_simt_2": 2 * 10 * 16 * 16,
    }

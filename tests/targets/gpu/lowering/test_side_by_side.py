"""Launches of several kernels, and the launches of a decode step."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest
import tvm
import tvm_ffi
from tvm import relax, te, tirx

import moec
from moec import targets
from moec.common.kernel_sizes import evaluate
from moec.runtime.artifact import open_artifact
from moec.targets.base import KernelRecord
from moec.targets.cuda import nvcc
from moec.targets.gpu.kernels.append import THREADS as APPEND_THREADS
from moec.targets.gpu.kernels.append import append
from moec.targets.gpu.lowering.element_formula import formula_of
from moec.targets.gpu.lowering.shared_launches import ELEMENT_THREADS, element_kernel
from moec.targets.gpu.lowering.side_by_side import side_by_side
from moec.targets.tvm.lowering.paged_tensors import AppendProblem

from ....frontend.gguf.tiny_models import write_model
from .written_calls import Calls, kernels_after


@pytest.fixture(autouse=True)
def without_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvcc, "find_tool", lambda _name: None)


LAUNCHES = [
    ("mixtral", 11, 10),
    ("gpt-oss", 11, 8),
    ("granitemoe", 11, 12),
    ("qwen2moe", 11, 10),
    ("qwen3moe", 12, 8),
    ("olmoe", 12, 8),
    ("ernie4_5-moe", 11, 9),
    ("glm4moe", 12, 7),
    ("dots1", 12, 7),
    ("phimoe", 11, 10),
    ("dbrx", 11, 10),
    ("deepseek2 of keys and values", 13, 8),
    ("deepseek2", 17, 8),
]
"""Models, their launches per layer, and those outside of layers."""


def kernels_of(body: str) -> list[KernelRecord]:
    scale = ",".join(["1.5"] * 64)
    head = '<ir_version: 10, opset_import: ["" : 24]> g (float[T,64] x, float[S,64] y) => (float[T,N] v, float[S,M] w)'
    text = f"{head} <float[64] scale = {{{scale}}}> {{{body}}}"
    model = onnx.parser.parse_model(text)
    for name, columns in (("a", 8), ("b", 12)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((64, columns), np.float32), name))
    return list(targets.get("cuda:sm_80").compile(ir.from_proto(model)).kernels)


def names(body: str) -> list[str]:
    return [kernel.name for kernel in kernels_of(body)]


def test_normalisations_of_different_rows_share_a_launch():
    (name,) = names("v = RMSNormalization (x, scale) w = RMSNormalization (y, scale)")
    assert name == "norm_norm"


@pytest.mark.parametrize(
    ("body", "kernels"),
    [
        ("v = MatMul (x, a) w = MatMul (x, b)", ["gemv_gemv", "gemm_simt", "gemm_simt_2"]),
        ("v = MatMul (x, a) w = MatMul (y, b)", ["gemv", "gemm_simt", "gemv_2", "gemm_simt_2"]),
    ],
    ids=["the same rows", "other rows"],
)
def test_products_share_a_launch_that_is_made_for_the_sizes_of_both(body: str, kernels: list[str]):
    """Each product has a kernel for few rows, of which the launch depends on their number."""
    assert names(body) == kernels


@pytest.mark.parametrize(
    ("body", "operations"),
    [
        ("v = MatMul (x, a) w = MatMul (x, b)", "2 * M * 512 + 2 * M_2 * 768"),
        ("v = MatMul (x, a) w = MatMul (y, b)", "2 * M * 512"),
    ],
    ids=["a launch of both", "a launch each"],
)
def test_a_launch_has_the_operations_of_all_its_kernels(body: str, operations: str):
    (first, *_) = kernels_of(body)
    assert first.sized_work is not None and first.sized_work.operations == operations
    assert first.sizes == ({"M": "T", "M_2": "T"} if "M_2" in operations else {"M": "T"})


def test_kernels_name_the_nodes_of_their_own_calls():
    """Two calls of a kernel, of which one is joined to a sum, and another's launch has two products."""
    body = """n = RMSNormalization (x, scale) s = Add (x, n) r = RMSNormalization (s, scale)
        v = MatMul (r, a) w = MatMul (r, b)"""
    nodes = {kernel.name: [name.split("_")[-1] for name in kernel.nodes] for kernel in kernels_of(body)}
    assert nodes == {
        "rms_norm": ["n"],
        "add_rms_norm": ["s", "r"],
        "gemv_gemv": ["v", "w"],
        "gemm_simt": ["v"],
        "gemm_simt_2": ["w"],
    }


def test_elements_are_computed_beside_kernels_with_fewer_threads_which_have_several_results():
    def write(calls: Calls) -> list[Any]:
        weights, chosen = calls.route(calls.logits)
        return [weights, chosen, calls.add(calls.x, calls.y)]

    assert kernels_after(lambda module: side_by_side(module).module, write) == ["route_add"]


@pytest.mark.parametrize("is_first", [True, False])
def test_elements_join_kernels_of_rows_that_share_a_launch(is_first: bool):
    """The kernels of rows are grouped before, wherever the elements are computed."""

    def write(calls: Calls) -> list[Any]:
        results = [calls.add(calls.x, calls.y)] if is_first else []
        results += [calls.norm(calls.x, calls.scale), calls.norm(calls.y, calls.scale)]
        return results if is_first else [*results, calls.add(calls.x, calls.y)]

    assert kernels_after(lambda module: side_by_side(module).module, write) == ["norm_norm_add"]


def test_no_launch_has_more_than_four_kernels():
    def write(calls: Calls) -> list[Any]:
        return [*(calls.norm(calls.x, calls.scale) for _ in range(5)), calls.add(calls.x, calls.y)]

    assert kernels_after(lambda module: side_by_side(module).module, write) == ["norm_norm_norm_norm", "norm_add"]


def test_elements_that_need_a_result_are_computed_after_it():
    def write(calls: Calls) -> list[Any]:
        weights, chosen = calls.route(calls.logits)
        return [chosen, calls.elements("scaled", lambda weights, at: weights[at[1], 0] * 2, weights)]

    assert kernels_after(lambda module: side_by_side(module).module, write) == ["route", "scaled"]


def test_elements_wait_for_their_number_where_it_follows_from_a_result():
    def write(calls: Calls) -> list[Any]:
        count = tirx.Var("count", "int64")
        shape = relax.call_pure_packed("count", calls.norm(calls.x, calls.scale), ty_args=relax.ShapeType(ndim=1))
        calls.builder.match_cast(calls.builder.emit(shape), relax.ShapeType([count]))
        ones = te.create_prim_func([te.compute((count,), lambda i: tirx.const(1, "float32"))], "int64")
        symbol = calls.builder.add_func(ones.without_attr("global_symbol"), "ones")
        counted = calls.builder.emit(relax.call_tir(symbol, [], relax.TensorType([count], "float32")))
        return [counted, calls.norm(calls.y, calls.scale)]

    assert kernels_after(lambda module: side_by_side(module).module, write) == ["norm_norm", "ones"]


def test_grids_count_more_than_two_to_the_31_elements():
    size = tirx.Var("T", "int64")
    x = te.placeholder((size, 64), "float32")
    copy = te.create_prim_func([x, te.compute((size, 64), lambda *at: x(*at))], "int64").without_attr("global_symbol")
    formula = formula_of(copy)
    assert formula is not None
    elements = element_kernel(formula)
    for rows in (1, 2**27):
        assert blocks_of(elements, rows) == -(-rows * 64 // ELEMENT_THREADS)
    appended = append(AppendProblem((None,), (64,), "float32", "float32"))
    assert blocks_of(appended, 2**27) == 2**27 * 64 // 4 // APPEND_THREADS


def blocks_of(kernel: tirx.PrimFunc, rows: int) -> int:
    """The blocks of a launch where the first size is ``rows`` and others are 1, in the arithmetic of the host."""
    count = getattr(kernel.body.body.seq[0], "def").extents[0]
    sizes = {size for parameter in kernel.params for size in parameter.ty.shape if isinstance(size, tirx.Var)}
    numbers = {size: tirx.IntImm(str(size.ty.dtype), rows if size.name in ("T", "b0") else 1) for size in sizes}
    blocks = tvm_ffi.structural_map(count, [(tvm.ir.Var, lambda variable: numbers.get(variable, variable))])
    return int(tvm.sym.Analyzer().simplify(blocks))


@pytest.mark.nightly
def test_what_needs_a_result_or_has_other_threads_does_not_share_it():
    body = "n = RMSNormalization (x, scale) v = RMSNormalization (n, scale) w = Softmax (y)"
    assert sorted(names(body)) == ["rms_norm", "softmax"]


@pytest.mark.parametrize(
    ("write", "kernels"),
    [
        (lambda calls: [calls.append(calls.x, calls.state), calls.append(calls.x, calls.other)], ["append_append"]),
        (lambda calls: [calls.append(calls.x, calls.state), calls.append(calls.y, calls.state)], ["append"] * 2),
        (lambda calls: [calls.append(calls.x, calls.state), calls.first(calls.other)], ["append_first"]),
        (lambda calls: [calls.append(calls.x, calls.state), calls.first(calls.state)], ["append", "first"]),
        (lambda calls: [calls.first(calls.state), calls.append(calls.x, calls.state)], ["first", "append"]),
    ],
    ids=["two states", "one state", "reads another state", "reads what was written", "reads before it is written"],
)
def test_memory_is_read_and_written_in_order(write: Callable[[Calls], list[Any]], kernels: list[str]):
    assert kernels_after(lambda module: side_by_side(module).module, write) == kernels


@pytest.mark.parametrize("is_read_between", [False, True])
def test_calls_that_need_an_early_result_wait(is_read_between: bool):
    """An append of a normalised row waits for two normalisations, except where its state is read first."""

    def write(calls: Calls) -> list[Any]:
        row = calls.builder.emit(relax.op.reshape(calls.norm(calls.x, calls.scale), [4, 2, 64]))
        appended = calls.append(row, calls.state)
        other = calls.first(calls.state) if is_read_between else calls.y
        return [appended, calls.norm(other, calls.scale)]

    expected = ["norm", "append", "first", "norm"] if is_read_between else ["norm_norm", "append"]
    assert kernels_after(lambda module: side_by_side(module).module, write) == expected


def _is_made(launch: Mapping[str, Any]) -> bool:
    """Whether a launch is made where every size is 1."""
    if launch["only_if"] is None:
        return True
    sizes, ones = launch["only_if"]["sizes"], collections.defaultdict[str, int](lambda: 1)
    size = evaluate(launch["only_if"]["size"], ones, launch["function"])
    return sizes["least"] <= size and (sizes["most"] is None or size <= sizes["most"])


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "layer", "others"), LAUNCHES)
def test_launches_of_a_decode_step(tmp_path: pathlib.Path, name: str, layer: int, others: int):
    """One token of a session: norms 2, queries, keys and values 1, rotation and appending 1, attention 2, output 1,
    router 1, experts 3. Norms of queries and keys are one more. A shared expert has none: gate and up are in the launch
    of the router, the activation in that of routing, the second product in that of the experts' first. The models have
    two layers; a dense one has one launch less, so the number outside of layers is one less than there are."""
    path = write_model(name, tmp_path / "model.gguf")
    moec.compile(path, target="cuda:sm_80", output=tmp_path / "model.moec", emulate=True)
    program = open_artifact(tmp_path / "model.moec").program()
    kernels = program.kernels
    assert program.fixed_lengths == []
    assert sum(kernel["calls"] * sum(map(_is_made, kernel["launches"])) for kernel in kernels) == 2 * layer + others

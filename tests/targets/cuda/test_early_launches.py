"""Kernels that begin before the preceding one has ended: each waits first, and reads nothing before that."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tvm
from tvm import tirx

from moec.ir.dialect import RouteSpec
from moec.simulators.cuda import emulated_library
from moec.targets.cuda.early_launches import has_early_launches
from moec.targets.cuda.kernels.grouped_gemm_mma import grouped_gemm_mma
from moec.targets.cuda.launches import LaunchRecorder, facts_of
from moec.targets.cuda.nvcc import compile_source, find_tool
from moec.targets.cuda.pipeline import lowered_kernels
from moec.targets.gpu.kernels import combine, dispatch, route
from moec.targets.gpu.kernels.combining_gemv import CombiningProblem, combining_gemv
from moec.targets.gpu.kernels.grouped_gemv import grouped_gemv
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.launch import ATTRIBUTES, EARLY_ATTRIBUTES
from moec.targets.tvm.heavy.experts import CombineProblem
from moec.targets.tvm.heavy.route import RouteProblem

from ...products import thinned
from .kernels import kernel_runner
from .kernels.kernel_runner import source_of

WAIT, TRIGGER = "griddepcontrol_wait();", "griddepcontrol_launch_dependents();"
PROBLEM = GroupedProblem(4, 64, 32, 16, dtype="bfloat16", matrix_dtype="bfloat16", out_dtype="bfloat16")
RANDOM = np.random.default_rng(0)
IDS = np.int32([[2, 0], [1, 2], [3, 1]])

Case = tuple[tirx.PrimFunc, list[np.ndarray]]


def _numbers(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)


def _route() -> Case:
    outputs = [np.zeros((3, 2), np.float32), np.zeros((3, 2), np.int32)]
    return route.route(RouteProblem(RouteSpec(k=2), 4)), [RANDOM.standard_normal((3, 4), np.float32), *outputs]


def _gemv() -> Case:
    weights, bias = np.ones((3, 2), np.float32), np.zeros(PROBLEM.bias_shape, np.float32)
    arrays = [_numbers(6, 64), _numbers(4, 32, 64), bias, weights, IDS, _numbers(6, 32)]
    return grouped_gemv(PROBLEM, lambda total: total), arrays


def _combine() -> Case:
    problem = CombineProblem(4, 64, "bfloat16", weighted=True, pair_dtype="bfloat16")
    arrays = [_numbers(3, 64), RANDOM.random((3, 2), np.float32), IDS, _numbers(6, 64), _numbers(3, 64)]
    return combine.combine(problem), arrays


def _dispatch() -> Case:
    blocks = dispatch.most_blocks(4, IDS.size, 16)
    return dispatch.dispatch(4, 16), [IDS, *(np.zeros(size, np.int32) for size in (blocks * 16, blocks, 1))]


KERNELS: dict[str, Callable[[], Case]] = {
    "grouped_gemv": _gemv,
    "route": _route,
    "dispatch": _dispatch,
    "combine": _combine,
}


def _lowered(kernel: tirx.PrimFunc, architecture: str) -> tuple[tvm.IRModule, LaunchRecorder]:
    recorder = LaunchRecorder()
    target = tvm.target.Target({"kind": "cuda", "arch": architecture}, host={"kind": "llvm"})
    with tvm.transform.PassContext(instruments=[recorder]):
        _, device = lowered_kernels(tvm.IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")}), target)
    return device, recorder


def test_which_gpus_have_them():
    architectures = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_100a", "sm_120", "sm_120a")
    assert [name for name in architectures if has_early_launches(name)] == list(architectures[3:])


@pytest.mark.parametrize("name", KERNELS)
def test_every_thread_waits_before_it_does_anything(name):
    kernel, _ = KERNELS[name]()
    body = source_of(kernel, "sm_90a").rpartition('extern "C"')[2]
    before = body[body.index("{") : body.index(WAIT)]
    assert body.count(WAIT) == body.count(TRIGGER) == 1
    assert body.index(WAIT) < body.index(TRIGGER)
    assert "_ptr" not in re.sub(r"alignas.*|__shared__.*", "", before)
    assert "__restrict__" not in body


def _combining() -> Case:
    product = GroupedProblem(4, 64, 32, 16, dtype="bfloat16", matrix_dtype="bfloat16", out_dtype="float32")
    summed = CombineProblem(4, 32, "bfloat16", weighted=True)
    weights, bias = RANDOM.random((3, 2), np.float32), np.zeros(product.bias_shape, np.float32)
    arrays = [_numbers(6, 64), _numbers(4, 32, 64), bias, weights, IDS, _numbers(3, 32)]
    return combining_gemv(CombiningProblem(product, summed, 2)), arrays


def test_numbers_of_the_matrix_are_fetched_before_the_wait():
    """The expert is read by a load that is free to race, and again after the wait. Older GPUs fetch nothing ahead."""
    kernel, arrays = _combining()
    body = source_of(kernel, "sm_90a").rpartition('extern "C"')[2]
    before, _, behind = body[body.index("{") :].partition(WAIT)
    used = re.findall(r"(\w+)\((?:\w+, )?&(\w+_ptr)\[", before)
    assert used == [("ld_relaxed_gpu_s32", "chosen_ptr"), ("prefetch_L2", "matrix_ptr")]
    assert behind.count(TRIGGER) == 1 and "= chosen_ptr[" in behind and "prefetch" not in behind
    older = source_of(kernel, "sm_80").rpartition('extern "C"')[2]
    assert "prefetch" not in older and "relaxed" not in older and "= chosen_ptr[" in older
    results = [kernel_runner.build(kernel, architecture, watch=True)(*arrays) for architecture in ("sm_80", "sm_90a")]
    assert np.any(results[0]) and np.array_equal(*(result.view(np.uint16) for result in results))


@pytest.mark.parametrize("name", KERNELS)
def test_older_gpus_have_none(name):
    source = source_of(KERNELS[name]()[0], "sm_80")
    assert "griddepcontrol" not in source
    assert "__restrict__" in source


def test_products_on_tensor_cores_begin_in_their_turn():
    device, recorder = _lowered(grouped_gemm_mma(PROBLEM, lambda total: total), "sm_90a")
    assert "griddepcontrol" not in str(device)
    assert [launch.begins_early for launch in recorder.launches["kernel"]] == [False]


@pytest.mark.parametrize(("architecture", "early"), [("sm_80", False), ("sm_90a", True), ("sm_120", True)])
def test_the_artifact_says_how_a_kernel_is_launched(architecture, early):
    _, recorder = _lowered(_combine()[0], architecture)
    (launch,) = recorder.launches["kernel"]
    assert launch.begins_early is early
    assert launch.block == ("32",)  # the tag does not count as an extent
    assert ("begins before the launch before it has ended" in facts_of([launch], {})[0]) is early


@pytest.mark.parametrize(("name", "at_the_end"), [*((name, True) for name in KERNELS), ("combine", False)])
def test_a_wait_that_is_missing_or_late_is_noticed(monkeypatch, name, at_the_end):
    kernel, arrays = KERNELS[name]()
    kernel_runner.build(kernel, "sm_90a", watch=True).run_on(*map(kernel_runner.over, arrays))

    def hasty(source: str, launches: Any, **options: Any) -> Any:
        assert source.count(WAIT) == 1
        text, _, behind = source.replace(WAIT, "").rpartition("}")
        return emulated_library(f"{text}{WAIT if at_the_end else ''}}}{behind}", launches, **options)

    monkeypatch.setattr(kernel_runner, "emulated_library", hasty)
    too_early = kernel_runner.build(kernel, "sm_90a", watch=True)
    message = "reaches global memory before griddepcontrol.wait"
    if not at_the_end:  # some threads only end
        message += "|ends without griddepcontrol.wait"
    with pytest.raises(RuntimeError, match=message):
        too_early.run_on(*map(kernel_runner.over, arrays))


@pytest.mark.skipif(find_tool("nvcc") is None, reason="there is no nvcc")
@thinned("name", KERNELS, 2)
def test_nvcc_reads_nothing_before_the_wait(name):
    """There are no loads by ``ld.global.nc``, which no barrier keeps in place; nvcc would emit them for
    ``__restrict__``."""
    kernel, _ = KERNELS[name]()

    def ptx(attributes: dict[str, Any]) -> str:
        compiled = compile_source(source_of(kernel.with_attrs(attributes), "sm_90a"), "sm_90a")
        assert compiled is not None
        return compiled.ptx["kernel_kernel"]

    text = ptx(EARLY_ATTRIBUTES)
    before, _, behind = text.partition("griddepcontrol.wait")
    assert "ld.global" in behind
    assert "ld.global" not in before and "st.global" not in before
    assert "ld.global.nc" not in text
    assert "ld.global.nc" in ptx({**ATTRIBUTES, "moec.begins_early": False})

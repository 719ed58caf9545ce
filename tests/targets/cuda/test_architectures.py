"""Programs for several architectures in one artifact: the right kernels in each, weights once, one result."""

from __future__ import annotations

import re
import subprocess
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import moec
from moec import targets
from moec.common.errors import MoecError, UnsupportedError
from moec.compiling import compiler
from moec.compiling.compile_options import CompileOptions
from moec.exploring.kernel_levels import kernel_levels
from moec.exploring.subject import Subject
from moec.ir.dialect import LinearSpec
from moec.runtime.artifact import open_artifact
from moec.runtime.description import find_kernel
from moec.targets.cuda import doctor, nvcc
from moec.targets.cuda.device.driver import GpuFacts
from moec.targets.cuda.hardware.architectures import LIMITS
from moec.targets.cuda.kernels.mma_tile import SHAPES, tile_shape
from moec.targets.cuda.standalone import program_text
from moec.targets.gpu.kernels.fp8_rows import FP8
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem

from ..node_models import node_model

INNER, WIDTH = 128, 128
ROWS = 130  # enough for tiles, which wgmma computes on sm_90a


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """The artifact of a product of rows with a constant matrix, for three architectures."""
    dtype = ml_dtypes.bfloat16
    matrix = (np.random.default_rng(0).standard_normal((WIDTH, INNER)) / INNER**0.5).astype(dtype)
    model = node_model("Linear", {"x": np.zeros((1, INNER), dtype)}, {"weight": matrix}, LinearSpec())
    path = tmp_path_factory.mktemp("architectures") / "art"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvcc, "find_tool", lambda _name: None)
        compiler.write(model, path, CompileOptions(target="cuda:sm_120+sm_90a+sm_80"))
    return open_artifact(path)


def _texts(artifact, architecture):
    """The CUDA C of each kernel."""
    names = [kernel["name"] for kernel in artifact.program(architecture).kernels]
    return {name: find_kernel(artifact, name, architecture).source("cuda") for name in names}


def _kernel_alone(text):
    """The text of the kernel without helper functions, whose order depends on the other kernels of the program."""
    return text[text.index('extern "C" __global__') :]


def test_kernels_differ_and_weights_are_stored_once(artifact):
    old, new, blackwell = artifact.manifest.programs
    assert artifact.manifest.target == "cuda:sm_80+sm_90a+sm_120"
    assert [old.architecture, new.architecture, blackwell.architecture] == ["sm_80", "sm_90a", "sm_120"]
    assert not any("wgmma" in kernel["name"] for kernel in old.kernels)
    assert any("wgmma" in kernel["name"] for kernel in new.kernels)
    of_ampere, of_blackwell = _texts(artifact, "sm_80"), _texts(artifact, "sm_120")
    assert of_ampere.keys() == of_blackwell.keys()
    early = {name for name in of_ampere if _kernel_alone(of_ampere[name]) != _kernel_alone(of_blackwell[name])}
    assert early == {name for name, text in of_blackwell.items() if "griddepcontrol.wait" in text} == {"gemv"}
    assert "griddepcontrol" not in of_ampere["gemv"]
    assert old.weights == new.weights == blackwell.weights == list(range(len(artifact.manifest.weights)))
    assert set(old.objects).isdisjoint(new.objects)
    assert len(artifact.manifest.remarks) == 1  # the one remark is that nvcc is missing


def test_each_computes_the_same(artifact):
    values = {"x": np.random.default_rng(1).standard_normal((ROWS, INNER)).astype(ml_dtypes.bfloat16)}
    newest, new = (
        moec.load(artifact.folder, emulate=True, architecture=name).run(values)["y"].astype(np.float32)
        for name in (None, "sm_90a")
    )
    np.testing.assert_allclose(newest, new, atol=3e-2 * np.abs(newest).max())


def test_shared_memory_is_aligned_alike_in_all_kernels_of_a_program(artifact):
    """All declarations have the same alignment, since nvcc uses that of the first one for all of them."""
    texts = _texts(artifact, "sm_90a").values()
    actual = [re.findall(r"extern __shared__ __align__\((\d+)\)", text) for text in texts]
    assert [alignment for alignment in actual if alignment] == [["1024"]] * 3


def test_lines_of_cuda_come_from_tir_and_levels_that_nvcc_makes_are_absent(artifact):
    wgmma = next(kernel["name"] for kernel in artifact.program("sm_90a").kernels if "wgmma" in kernel["name"])
    described = kernel_levels(Subject("a", artifact, "sm_90a"), wgmma)
    levels = {level["level"]: level for level in described["levels"]}
    tir = dict(zip(levels["tir"]["lines"], levels["tir"]["text"].splitlines(), strict=True))
    pairs = zip(levels["cuda"]["text"].splitlines(), levels["cuda"]["lines"], strict=True)
    fences = [tir[link] for line, link in pairs if line.strip().startswith("wgmma_fence(")]
    assert fences
    assert all(origin.strip().startswith('T.ptx.wgmma("fence"') for origin in fences)
    assert levels["ptx"] == {
        "level": "ptx",
        "text": "",
        "lines": [],
        "absent": "nvcc was not installed when it was compiled",
    }
    assert "cuobjdump" in levels["sass"]["absent"]
    assert [resources["registers"] for resources in described["resources"]] == [None]
    shared = [buffer for buffer in described["buffers"] if buffer["scope"].startswith("shared")]
    assert sum(buffer["bytes"] > 0 for buffer in shared) >= 2, "tiles of both factors in a pool without a shape"
    assert {loop["kind"] for loop in described["loops"]} == {"gpu thread"}


def test_kernels_are_found_by_architecture(artifact):
    wgmma = next(kernel["name"] for kernel in artifact.program("sm_90a").kernels if "wgmma" in kernel["name"])
    assert "wgmma" in find_kernel(artifact, wgmma, "sm_90a").source("cuda")
    for other in ("sm_80", "sm_120", None):
        with pytest.raises(MoecError, match=f"has no kernel '{wgmma}'"):
            find_kernel(artifact, wgmma, other)
    with pytest.raises(MoecError, match="no program for architecture 'sm_86'; its programs are for sm_80, sm_90a, sm_"):
        moec.load(artifact.folder, emulate=True, architecture="sm_86")


@pytest.mark.skipif(nvcc.find_tool("nvcc") is None, reason="nvcc is not installed")
def test_nvcc_compiles_a_program_with_tensor_maps(artifact, tmp_path):
    kernel = next(
        kernel["name"] for kernel in artifact.program("sm_90a").kernels if kernel["launches"][0]["tensor_maps"]
    )
    source = program_text(artifact, kernel, "sm_90a")
    assert "encode_tensor_map(matrix_ptr, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, {128, 128, 1}, {256, 32768}" in source
    (tmp_path / f"{kernel}.cu").write_text(source)
    command = re.search(r"^//     nvcc (.*) && ", source, re.MULTILINE)[1]
    subprocess.run([str(nvcc.find_tool("nvcc")), *command.split()], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:sm_80+sm_80", "target 'cuda:sm_80\\+sm_80': sm_80 is listed twice"),
        ("cuda:sm_80+sm_70", "'sm_70' is not supported; expected one of sm_80"),
        ("cuda:sm_80+", "an architecture is missing next to '\\+'"),
        ("cpu:avx2+avx512", "only cuda takes several architectures; choose one, cpu:avx2"),
    ],
)
def test_lists_that_are_refused(name, message):
    with pytest.raises(UnsupportedError, match=message):
        targets.get_all(name)


def test_programs_go_from_the_oldest_to_the_newest_by_number():
    actual = targets.get_all("cuda:sm_120a+sm_120+sm_100a+sm_90a+sm_100+sm_80")
    names = [target.architecture for target in actual]
    assert names == ["sm_80", "sm_90a", "sm_100", "sm_100a", "sm_120", "sm_120a"]


def test_what_is_for_no_single_gpu_needs_no_more_shared_memory_than_the_least_has():
    """A GPU with 99 KiB of shared memory also runs code for older ones with 163 and 227 KiB."""
    least = min(limits.shared_bytes for limits in LIMITS.values())
    problems = [GroupedProblem(2, 128, 128, rows, dtype=dtype) for rows in SHAPES for dtype in ("float16", FP8)]
    assert max(tile_shape(problem).shared_bytes for problem in problems) <= least


@pytest.mark.parametrize(
    ("capability", "target"),
    [
        ("12.0", "cuda:sm_120a"),
        ("12.1", "cuda:sm_120"),
        ("10.0", "cuda:sm_100a"),
        ("10.3", "cuda:sm_103a"),
        ("11.0", "cuda:sm_100"),
        ("7.5", None),
    ],
)
def test_the_doctor_names_the_target_of_a_gpu(capability, target, monkeypatch):
    gpu = GpuFacts("a GPU", capability, 1 << 30)
    monkeypatch.setattr(doctor, "open_driver", lambda: SimpleNamespace(version=(13, 0), gpus=lambda: [gpu]))
    actual = doctor.examine_gpus()
    assert [device["target"] for device in actual["devices"]] == [target]
    (shown,) = doctor.gpu_tables(actual)
    assert [str(cell) for cell in shown.columns[-1].cells] == [target or "none"]


def test_one_architecture_is_no_list():
    assert [target.name for target in targets.get_all("cuda")] == ["cuda"]

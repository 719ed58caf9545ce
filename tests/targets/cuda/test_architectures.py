"""Programs for several architectures in one artifact: the right kernels in each, weights once, one result."""

from __future__ import annotations

import re
import subprocess

import ml_dtypes
import numpy as np
import pytest

import moec
from moec import compiler, targets
from moec.errors import MoecError, UnsupportedError
from moec.ir.dialect import LinearSpec
from moec.runtime.artifact import open_artifact
from moec.runtime.description import find_kernel
from moec.targets.cuda import nvcc
from moec.targets.cuda.standalone import program_text

from ..node_models import node_model

INNER, WIDTH = 128, 128
ROWS = 130  # in tiles, which wgmma computes where it can


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """Rows times a constant matrix."""
    dtype = ml_dtypes.bfloat16
    matrix = (np.random.default_rng(0).standard_normal((WIDTH, INNER)) / INNER**0.5).astype(dtype)
    model = node_model("Linear", {"x": np.zeros((1, INNER), dtype)}, {"weight": matrix}, LinearSpec())
    path = tmp_path_factory.mktemp("architectures") / "art"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvcc, "find_tool", lambda _name: None)
        compiler.write(model, path, "cuda:sm_90a+sm_80")
    return open_artifact(path)


def test_kernels_differ_and_weights_are_stored_once(artifact):
    old, new = artifact.manifest.programs
    assert artifact.manifest.target == "cuda:sm_80+sm_90a"
    assert [old.architecture, new.architecture] == ["sm_80", "sm_90a"]
    assert not any("wgmma" in kernel["name"] for kernel in old.kernels)
    assert any("wgmma" in kernel["name"] for kernel in new.kernels)
    assert old.weights == new.weights == list(range(len(artifact.manifest.weights)))
    assert set(old.objects).isdisjoint(new.objects)
    assert len(artifact.manifest.remarks) == 1  # that nvcc is missing, for both


def test_each_computes_the_same(artifact):
    values = {"x": np.random.default_rng(1).standard_normal((ROWS, INNER)).astype(ml_dtypes.bfloat16)}
    old, new, newest = (
        moec.load(artifact.folder, emulate=True, architecture=name).run(values)["y"].astype(np.float32)
        for name in ("sm_80", "sm_90a", None)
    )
    np.testing.assert_array_equal(new, newest)
    np.testing.assert_allclose(old, new, atol=3e-2 * np.abs(old).max())


def test_shared_memory_is_aligned_alike_in_all_kernels_of_a_program(artifact):
    """nvcc takes the alignment of the first for all."""
    texts = [find_kernel(artifact, one["name"]).source("cuda") for one in artifact.program().kernels]
    found = [re.findall(r"extern __shared__ __align__\((\d+)\)", text) for text in texts]
    assert [one for one in found if one] == [["1024"]] * 3


def test_kernels_are_found_by_architecture(artifact):
    wgmma = next(one["name"] for one in artifact.program().kernels if "wgmma" in one["name"])
    assert "wgmma" in find_kernel(artifact, wgmma).source("cuda")
    with pytest.raises(MoecError, match=f"has no kernel '{wgmma}'"):
        find_kernel(artifact, wgmma, "sm_80")
    with pytest.raises(MoecError, match="no program for architecture 'sm_86'; its programs are for sm_80, sm_90a"):
        moec.load(artifact.folder, emulate=True, architecture="sm_86")


@pytest.mark.skipif(nvcc.find_tool("nvcc") is None, reason="nvcc is not installed")
def test_nvcc_compiles_a_program_with_tensor_maps(artifact, tmp_path):
    kernel = next(one["name"] for one in artifact.program("sm_90a").kernels if one["launches"][0]["tensor_maps"])
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
        ("cuda:sm_80+", "an architecture is missing beside '\\+'"),
        ("cpu:avx2+avx512", "only cuda takes several architectures; choose one, cpu:avx2"),
    ],
)
def test_lists_that_are_refused(name, message):
    with pytest.raises(UnsupportedError, match=message):
        targets.get_all(name)


def test_one_architecture_is_no_list():
    assert [one.name for one in targets.get_all("cuda")] == ["cuda"]

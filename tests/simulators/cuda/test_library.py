"""Builds of libraries: code that cannot be emulated is refused by name, and built libraries are cached."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moec.common.errors import MoecError, UnsupportedError
from moec.simulators.cuda import EmulatedLaunch, emulated_library

from .emulated import load_one

KERNEL = 'extern "C" __global__ void simple(int* results) {{ {body} }}'
LAUNCHES = [EmulatedLaunch("simple", ("blockIdx.x", "threadIdx.x"))]
OTHER_SETTINGS: list[Any] = [{"completion": "earliest"}, {"first_thread": 3}, {"architecture": "sm_86"}]


def _build(body: str, launches=LAUNCHES, **options):
    return emulated_library(KERNEL.format(body=body), launches, soon_ready=True, **options)


def test_a_library_is_built_once_and_linked_again_for_other_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = _build("results[threadIdx.x] = 1;")
    built = path.stat().st_ino
    assert _build("results[threadIdx.x] = 1;") == path and path.stat().st_ino == built
    libraries = {_build("results[threadIdx.x] = 1;", **other) for other in OTHER_SETTINGS}
    assert len({path, *libraries}) == 1 + len(OTHER_SETTINGS) and path.is_relative_to(tmp_path)
    files = sorted("".join(file.suffixes) for file in path.parent.iterdir())
    emulator, kernels = ".o", ".o"
    assert files == [".h.gch", emulator, kernels, *[".so"] * (1 + len(OTHER_SETTINGS))]
    assert _build("results[threadIdx.x] = 2;") not in {path, *libraries}


def test_an_instruction_without_a_model_is_refused():
    with pytest.raises(UnsupportedError, match=r"PTX instruction tcgen05\.alloc\.b32: the CUDA emulator has no model"):
        _build('asm volatile("tcgen05.alloc.b32 [%0], %1;" : : "r"(0), "r"(1));')


@pytest.mark.parametrize("function", ["__unknown_builtin", "__nv_cvt_float_to_fp4"])
def test_a_function_without_a_model_is_refused(function):
    with pytest.raises(UnsupportedError, match=f"CUDA function or type {function}: the emulator has no model of it"):
        _build(f"results[0] = {function}(1.0f);")


def test_a_source_that_is_no_cuda_is_refused():
    with pytest.raises(UnsupportedError, match=r"does not compile for emulation: .*expected CUDA C"):
        _build("results[0] = ;")


def test_clusters_along_other_dimensions_are_refused():
    source = KERNEL.format(body="").replace("void simple", "void __cluster_dims__(1, 2, 1) simple")
    with pytest.raises(UnsupportedError, match="kernel simple: clusters of 1, 2, 1 blocks are not emulated"):
        emulated_library(source, LAUNCHES, soon_ready=True)
    assert emulated_library(source.replace("(1, 2", "(1, 1"), LAUNCHES, soon_ready=True).exists()


def test_a_kernel_that_is_not_there_is_an_error():
    with pytest.raises(MoecError, match="kernel other: not defined in the CUDA source, which has simple"):
        _build("", [EmulatedLaunch("other", ())])


def test_an_unknown_completion_is_an_error():
    with pytest.raises(MoecError, match="completion 'sometimes': expected one of latest, earliest, late copies"):
        _build("", completion="sometimes")


def test_an_unknown_launch_tag_is_an_error():
    with pytest.raises(MoecError, match=r"kernel simple: launch tag 'clusterIdx\.x' is not known to the emulator"):
        _build("", [EmulatedLaunch("simple", ("clusterIdx.x",))])


def test_without_a_compiler_the_message_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MoecError, match=r"g\+\+ was not found; .* install a C\+\+ compiler"):
        _build("")


def test_arguments_are_checked():
    kernel = load_one(KERNEL.format(body="results[0] = 1;"), "simple")
    results = np.zeros(1, np.int32)
    kernel(results, block=1)
    assert results[0] == 1
    with pytest.raises(RuntimeError, match=r"emulated kernel simple: expects 5 values .* got 6"):
        kernel(results, 3)
    with pytest.raises(RuntimeError, match="emulated kernel simple: expects an address"):
        kernel(3)

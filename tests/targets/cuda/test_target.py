"""The CUDA target: its names, and the contents of a program with and without nvcc."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from moec import targets
from moec.common.errors import DefectError, MoecError, UnsupportedError
from moec.targets.cuda import nvcc
from moec.targets.cuda.pipeline import sources_of

TEXT = '<ir_version: 10, opset_import: ["" : 24]> g (float[T,4] x) => (float[T,4] y) { a = Exp (x) y = Softmax (a) }'


def compiled(name: str):
    return targets.get(name).compile(ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(TEXT))))


def test_unknown_architectures_are_refused():
    with pytest.raises(UnsupportedError, match="target 'cuda:sm_70': 'sm_70' is not supported; expected one of sm_80"):
        targets.get("cuda:sm_70")


def test_without_nvcc_the_text_is_there_and_the_user_is_told(monkeypatch):
    monkeypatch.setattr(nvcc, "find_tool", lambda _name: None)
    program = compiled("cuda")
    assert program.binary is None
    assert program.warnings == [nvcc.MISSING]
    kernel = program.kernels[0]
    assert "__global__" in kernel.sources["cuda"]
    assert set(kernel.sources) == {"tir", "cuda"}


@pytest.mark.skipif(nvcc.find_tool("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize(("name", "architecture"), [("cuda", "sm_80"), ("cuda:sm_120a", "sm_120a")])
def test_with_nvcc_there_is_code(name, architecture):
    program = compiled(name)
    assert program.warnings == []
    assert program.architecture == architecture and program.binary.startswith(b"P\xedU\xba")  # a fat binary
    kernel = program.kernels[0]
    assert ".entry" in kernel.sources["ptx"]
    assert "0 bytes spill stores" in kernel.sources["resources"]


def test_the_head_of_a_kernel_says_how_it_is_launched_and_what_it_needs(monkeypatch):
    monkeypatch.setattr(nvcc, "find_tool", lambda _name: None)
    kernel = compiled("cuda").kernels[0]
    head, _, code = kernel.sources["cuda"].partition("\n\n")
    (launch,) = kernel.launches
    assert f"// launch: grid ({launch.grid[0]}), blocks of ({launch.block[0]}) threads\n" in head
    assert "T" in launch.grid[0] and launch.block[0].isdigit()  # the number of blocks follows from the number of rows
    assert f"// shared memory: {launch.static_shared_bytes} bytes in arrays, 0 at the launch\n" in head
    assert "// memory: 32 * T bytes in all tensors\n" in head
    assert "ptxas" not in head
    assert launch.arguments == ("exp_ptr", "input_0_ptr", "T")
    parameters = "float* __restrict__ exp_ptr, float* __restrict__ input_0_ptr, int64_t T"
    assert f" {launch.function}({parameters})" in " ".join(code.split())


@pytest.mark.skipif(nvcc.find_tool("nvcc") is None, reason="nvcc is not installed")
def test_source_that_nvcc_refuses_is_a_defect():
    with pytest.raises(DefectError, match="nvcc refuses the generated CUDA C"):
        nvcc.compile_source("this is no CUDA C", "sm_80")


@pytest.mark.skipif(nvcc.find_tool("nvcc") is None, reason="nvcc is not installed")
def test_an_architecture_that_nvcc_does_not_know_is_no_defect():
    with pytest.raises(MoecError, match="Unsupported gpu architecture 'compute_999'; install one of CUDA 13") as caught:
        nvcc.compile_source("", "sm_999")
    assert not isinstance(caught.value, DefectError)


def test_the_text_of_a_kernel_is_its_functions_and_their_helpers():
    helpers = "template <typename T>\n__forceinline__ __device__ T {0}(T x) {{\n  return {1};\n}}\n"
    kernels = 'extern "C" __global__ void __launch_bounds__(32) {0}_kernel(float* p) {{\n  {1}(p[0]);\n}}\n'
    text = (
        helpers.format("zero", "x")
        + helpers.format("one", "zero(x)")
        + helpers.format("two", "x")
        + kernels.format("a", "one")
        + kernels.format("b", "two")
    )
    actual = sources_of(text, ["a", "b"])
    assert actual["a"].startswith("template <typename T>\n__forceinline__ __device__ T zero(T x)")
    assert "T one(" in actual["a"]  # which calls zero
    assert "two" not in actual["a"] and "zero" not in actual["b"]
    assert "b_kernel" in actual["b"]
    assert "a_kernel" not in actual["b"]

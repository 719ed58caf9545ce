"""Variables in generated CUDA C in place of arrays of one element, if they are used as nothing else."""

from __future__ import annotations

import pytest

from moec.targets.cuda.text.plain_scalars import with_plain_scalars

_KERNEL = 'extern "C" __global__ void kernel(float* __restrict__ out_ptr) {{\n{}\n}}\n'


def _rewritten(body: str) -> str:
    head, _, rest = with_plain_scalars(_KERNEL.format(body)).partition("{\n")
    assert head == _KERNEL.partition("{{")[0]
    return rest.removesuffix("\n}\n")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("  alignas(64) float x_ptr[1];\n  x_ptr[0] = x_ptr[0] + 1;", "  float x;\n  x = x + 1;"),
        ("  alignas(64) uint x_ptr[1];\n  f(7 & x_ptr[0], threadIdx.x);", "  uint x;\n  f(7 & x, threadIdx.x);"),
        ("  alignas(64) int x_ptr[1];\n  int x = x_ptr[0];", "  int x_1;\n  int x = x_1;"),
        (
            "  alignas(64) int x_ptr[1];\n  alignas(64) int x_ptr_1[1];\n  x_ptr[0] = x_ptr_1[0];",
            "  int x;\n  int x_1;\n  x = x_1;",
        ),
        ("  alignas(64) int new_ptr[1];\n  new_ptr[0] = 0;", "  int new_number;\n  new_number = 0;"),
        ("  alignas(64) int _ptr_1[1];\n  _ptr_1[0] = 0;", "  int number;\n  number = 0;"),
        (
            "  alignas(64) int x_ptr[1];\n  alignas(64) int x_ptr_2[4];\n  x_ptr[0] = x_ptr_2[0];",
            "  int x;\n  alignas(64) int x_ptr_2[4];\n  x = x_ptr_2[0];",
        ),
    ],
    ids=["one", "operands of and", "taken name", "numbered", "word of C++", "nameless", "beside an array"],
)
def test_arrays_of_one_element_become_variables(before, after):
    assert _rewritten(before) == after


@pytest.mark.parametrize(
    "body",
    [
        "  alignas(64) float x_ptr[2];\n  x_ptr[0] = 1;",
        "  __shared__ alignas(64) float x_ptr[1];\n  x_ptr[0] = 1;",
        "  alignas(64) float x_ptr[1];\n  f((&(x_ptr[0])));",
        "  alignas(64) float x_ptr[1];\n  *(int*)(x_ptr + 0) = 1;",
        "  alignas(64) float x_ptr[1];\n  x_ptr[i] = x_ptr[0];",
        "  alignas(64) half x_ptr[1];\n  ((short*)x_ptr)[0] = 1;",
        "  {\n    alignas(64) int x_ptr[1];\n  }\n  alignas(64) int x_ptr[1];",
    ],
    ids=["two elements", "shared", "address", "vector", "any element", "another type", "declared twice"],
)
def test_other_arrays_stay(body):
    assert _rewritten(body) == body


def test_helpers_stay():
    helper = "__forceinline__ __device__ float f() {\n  alignas(64) float x_ptr[1];\n  return x_ptr[0];\n}\n"
    assert with_plain_scalars(helper) == helper


def test_names_are_of_one_kernel():
    single = _KERNEL.format("  alignas(64) int x_ptr[1];\n  x_ptr[0] = 0;")
    other = _KERNEL.format("  alignas(64) int x_ptr[2];\n  x_ptr[0] = 0;")
    assert with_plain_scalars(single + other) == _KERNEL.format("  int x;\n  x = 0;") + other

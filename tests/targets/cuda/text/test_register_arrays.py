"""Array parameters of helpers in generated CUDA C, in place of one parameter for each element."""

from __future__ import annotations

import pytest

from moec.targets.cuda.text.register_arrays import with_register_arrays


def _helper(count: int, types: str = "float") -> str:
    parameters = "".join(f"{types}& __d{i}, " for i in range(count))
    places = ", ".join(f"%{i}" for i in range(count))
    constraints = ", ".join(f'"+f"(__d{i})' for i in range(count))
    return (
        f"__forceinline__ __device__ void multiply({parameters}uint64_t __a_desc) {{\n"
        f'  asm volatile("multiply {{{places}}}, %{count};" : {constraints} : "l"(__a_desc));\n'
        "}\n"
    )


def _call(*elements: str) -> str:
    return f"    multiply({', '.join(elements)}, (left + (uint64_t)2));\n"


EIGHT = f"""__forceinline__ __device__ void multiply(float __d[8], uint64_t __a_desc) {{
  asm volatile("multiply {{%0, %1, %2, %3, %4, %5, %6, %7}}, %8;"
               : {", ".join(f'"+f"(__d[{i}])' for i in range(8))} : "l"(__a_desc));
}}
"""


@pytest.mark.parametrize(
    ("elements", "array"),
    [
        ([f"sums[{i}]" for i in range(8)], "sums"),
        ([f"sums[{i}]" for i in range(8, 16)], "&sums[8]"),
        (["sums[(i * 8)]", *(f"sums[((i * 8) + {i})]" for i in range(1, 8))], "&sums[(i * 8)]"),
    ],
    ids=["a whole array", "a part", "a part of a loop"],
)
def test_neighbours_are_an_array(elements, array):
    assert with_register_arrays(_helper(8) + 2 * _call(*elements)) == EIGHT + 2 * _call(array)


def test_assembly_of_many_registers_is_in_lines():
    text = with_register_arrays(_helper(20) + _call(*(f"sums[{i}]" for i in range(20))))
    assert [line.strip() for line in text.splitlines() if line.strip().startswith('"')] == [
        '"%8, %9, %10, %11, %12, %13, %14, %15, "',
        '"%16, %17, %18, %19}, %20;"',
        ", ".join(f'"+f"(__d[{i}])' for i in range(8, 16)) + ",",
        ", ".join(f'"+f"(__d[{i}])' for i in range(16, 20)) + ' : "l"(__a_desc));',
    ]


@pytest.mark.parametrize(
    "source",
    [
        _helper(7) + _call(*(f"sums[{i}]" for i in range(7))),
        _helper(8) + _call(*(f"sums[{i}]" for i in (0, 1, 2, 3, 4, 5, 7, 6))),
        _helper(8) + _call(*(f"sums[{i}]" for i in range(7)), "others[7]"),
        _helper(8) + _call(*(f"sums[{i}]" for i in range(8))) + _call(*(f"number_{i}" for i in range(8))),
        _helper(8).replace("float& __d4", "int& __d4") + _call(*(f"sums[{i}]" for i in range(8))),
        _helper(8).replace("float& ", "float ") + _call(*(f"sums[{i}]" for i in range(8))),
    ],
    ids=["few", "another order", "two arrays", "variables elsewhere", "two types", "values"],
)
def test_other_helpers_stay(source):
    assert with_register_arrays(source) == source

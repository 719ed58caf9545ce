"""Named arrays in shared memory of generated CUDA C."""

from __future__ import annotations

import pytest

from moec.targets.cuda.text.shared_arrays import with_shared_arrays

HEAD = 'extern "C" __global__ void __launch_bounds__(128) f_kernel(half* __restrict__ x_ptr) {\n'
NAMED = """  extern __shared__ __align__(1024) uchar shared_ptr[];
  moec_shared_array("tiles", (&(((half*)shared_ptr)[0])));
  moec_shared_array("more", (&(((half*)shared_ptr)[4096])));
  moec_shared_array("full", (&(((uint64_t*)shared_ptr)[2048])));
  moec_shared_array("empty", (&(((uint64_t*)shared_ptr)[2053])));
  moec_shared_array("codes", (&(shared_ptr[20480])));
"""
DECLARED = """  extern __shared__ __align__(1024) uchar shared_ptr[];
  half* tiles = (half*)shared_ptr;
  half* more = (half*)shared_ptr + 4096;
  uint64_t* full = (uint64_t*)shared_ptr + 2048;
  uint64_t* empty = (uint64_t*)shared_ptr + 2053;
  uchar* codes = shared_ptr + 20480;
"""


@pytest.mark.parametrize(
    ("access", "named"),
    [
        ("((half*)shared_ptr)[0]", "tiles[0]"),
        ("((half*)shared_ptr)[thread]", "tiles[thread]"),
        ("((half*)shared_ptr)[((stage * 64) + (k * 8))]", "tiles[(stage * 64) + (k * 8)]"),
        ("((half*)shared_ptr)[(thread + 4095)]", "tiles[thread + 4095]"),
        ("((half*)shared_ptr)[(thread + 4096)]", "more[thread]"),
        ("((uint64_t*)shared_ptr)[2049]", "full[1]"),
        ("((uint64_t*)shared_ptr)[(2054 - consumer)]", "empty[1 - consumer]"),
        ("(&(((uint64_t*)shared_ptr)[(stage + 2053)]))", "&empty[stage]"),
        (
            "((uint64_t*)shared_ptr)[(((stage < 1) ? (stage + 4) : (stage - 1)) + 2053)]",
            "empty[(stage < 1) ? (stage + 4) : (stage - 1)]",
        ),
        ("((half*)shared_ptr)[(((int)((half*)shared_ptr)[(i + 4096)]) + 4097)]", "more[((int)more[i]) + 1]"),
        ("((half*)shared_ptr)[((a + 4096) * (b + 5000))]", "tiles[(a + 4096) * (b + 5000)]"),
        ("(&(shared_ptr[((stage * 16) + 20480)]))", "&codes[stage * 16]"),
        ("x_ptr[(stage + 20480)]", "x_ptr[(stage + 20480)]"),
        # Arrays without a name, and arrays of another pool or type.
        ("((uint64_t*)shared_ptr)[(stage + 2047)]", "((uint64_t*)shared_ptr)[(stage + 2047)]"),
        ("((float*)shared_ptr)[0]", "((float*)shared_ptr)[0]"),
        ("((half*)other_ptr)[0]", "((half*)other_ptr)[0]"),
    ],
)
def test_an_access_is_one_to_the_array_that_holds_it(access, named):
    text = with_shared_arrays(f"{HEAD}{NAMED}  use({access});\n}}\n")
    assert text == f"{HEAD}{DECLARED}  use({named});\n}}\n"


def test_a_kernel_without_names_stays():
    kernel = f"{HEAD}  use(((half*)shared_ptr)[(thread + 4096)]);\n}}\n"
    assert with_shared_arrays(kernel) == kernel
    named = f"{HEAD}{NAMED}}}\n"
    assert with_shared_arrays(named + kernel) == with_shared_arrays(named) + kernel

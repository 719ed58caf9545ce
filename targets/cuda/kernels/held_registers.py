"""A fence for registers that an asynchronous instruction writes."""

from __future__ import annotations

import math

from tvm.script import tirx as T

_HOLD = """__forceinline__ __device__ void hold(float* number) {
  asm volatile("" : "+f"(*number));
}
"""


@T.inline
def hold(numbers):
    """Keep nvcc from reading float32 ``numbers`` before this place, which follows a wait for whatever writes them.

    Registers are no operands of such a wait, so nvcc might read them before it. An empty statement that may change each
    of them stands here, and makes no instruction.
    """
    count = T.meta_var(math.prod(map(int, numbers.shape)))
    registers = T.decl_buffer((count,), "float32", data=numbers.data)
    for i in T.unroll(count):
        T.evaluate(T.cuda.func_call("hold", T.address_of(registers[i]), source_code=_HOLD))

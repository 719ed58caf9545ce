"""An emulator that runs CUDA C on the processor, to check its results and its use of the hardware.

A source is compiled by g++. Every CUDA thread has a stack of its own; the threads of a block run in turn on one OS
thread, from wait to wait. PTX instructions, barriers and asynchronous copies are C++ models in ``include/emulator``;
``models`` maps instructions to them. An instruction without a model is refused when a library is built.

The emulator reports, in addition to wrong numbers:

- accesses outside of shared memory, at misaligned addresses, or to the shared memory of a block that has ended;
- reads of bytes that a copy is still bringing, copies over bytes that a product still reads, and writes and barriers
  that were not published to the asynchronous proxy;
- tensor memory that is not allocated or not given back, that another warp's lanes hold, that an operation still writes
  or reads, or that another warp has touched without fences;
- divergence in instructions of a warp, deadlocks, and registers that no warp group gives back;
- launches that a driver for the architecture would refuse;
- assembly whose effects are not declared to nvcc;
- threads of a kernel with an early launch that do not wait for the kernels before;
- if accesses are watched, races between threads in shared memory and between blocks in global memory.

Results that depend on the order of warps show under adverse schedules (:func:`schedule_threads`).

Not emulated are clusters along y and z, loads and stores to another block's shared memory, and blocks of different
clusters that wait for one another.
"""

from __future__ import annotations

from moec.simulators.cuda.launch import EmulatedLaunch
from moec.simulators.cuda.library import emulated_library, schedule_threads, watch_arrays

__all__ = ["EmulatedLaunch", "emulated_library", "schedule_threads", "watch_arrays"]

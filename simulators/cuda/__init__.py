"""Runs CUDA C on the processor, to find out whether it computes what it should.

A source is compiled by g++. Every CUDA thread is a stack of its own; the threads of a block run in turn on one OS
thread, from wait to wait. PTX instructions, barriers and asynchronous copies are C++ models in ``include/emulator``;
``models`` says which instruction is which. One without a model is refused when a library is built.

What is found beside wrong numbers: accesses outside of shared memory, or at addresses that are no multiple of their
size; reads of bytes that a copy is still bringing, copies over bytes that a product still reads, writes and barriers
that were not published to the asynchronous proxy; divergence in instructions of a warp, deadlocks, registers that no
warp group gives back; accesses to the shared memory of a block that has ended; launches that a driver for the
architecture would refuse; assembly that hides from nvcc what it does; threads that do not wait for the kernels before,
where theirs begins before these have ended; and, where accesses are watched, races between threads in shared memory and
between blocks in global memory. What depends on the order in which warps run is found under schedules that are hard on
it (:func:`schedule_threads`).

What is not emulated: clusters along y and z, loads and stores to another block's shared memory, and blocks of different
clusters that wait for one another.
"""

from __future__ import annotations

from moec.simulators.cuda.launch import Launch
from moec.simulators.cuda.library import emulated_library, schedule_threads, watch_arrays

__all__ = ["Launch", "emulated_library", "schedule_threads", "watch_arrays"]

"""Runs CUDA C on the processor, to find out whether it computes what it should.

A source is compiled by g++. Every CUDA thread is a stack of its own; the threads of a block run in turn on one OS
thread, from wait to wait. PTX instructions, barriers and asynchronous copies are C++ models in ``include/emulator``.
"""

from __future__ import annotations

from moec.targets.cuda.emulator.launch import Launch
from moec.targets.cuda.emulator.library import emulated_library

__all__ = ["Launch", "emulated_library"]

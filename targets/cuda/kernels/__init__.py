"""Kernels for CUDA in TIRX, which says what every thread does: one idea per file, each a function from static sizes to
a TIR function. None is touched by a schedule."""

from moec.targets.tvm import quick_script

quick_script.install()

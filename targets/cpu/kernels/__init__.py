"""Kernels for CPUs: one idea per file, each a function from static sizes and a machine to a TIR function."""

from moec.targets.tvm.kernels import quick_script

quick_script.install()

"""Kernels for GPUs, written thread by thread in TIRX, one idea per file. Each is a function from static sizes to a TIR
function, which no schedule changes. Instructions of a vendor are in :mod:`.instructions` alone."""

from moec.targets.tvm.kernels import quick_script

quick_script.install()

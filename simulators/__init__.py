"""Simulators of absent machines for generated code: CUDA C block by block, FPGA projects with clocks.

Both run many threads or processes in turn on one OS thread as fibers (``fibers``), each with a stack of its own. Each
simulator has its own rules for which fiber runs next.
"""

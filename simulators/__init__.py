"""Runs generated code for machines that are not there: CUDA C block by block, FPGA projects with clocks.

Both run many threads or processes in turn on one OS thread, as fibers (``fibers``): a stack each, and a switch between
stacks. Which runs next is what each simulator is about, and its own.
"""

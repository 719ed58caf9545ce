"""Lowering of nodes to kernels for GPUs: routing, scatters, experts by format, and the choice of a launch."""

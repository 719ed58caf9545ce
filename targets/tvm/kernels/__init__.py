"""Kernels and the expressions that they are built of, without the graph that they are for."""

"""Processors that kernels are made for."""

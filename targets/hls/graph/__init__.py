"""Readers of a graph around its blocks: dense products, residual streams, calibration, and the nodes left outside."""

"""Traces: the calls of kernels in single runs over time, with memory and caches."""

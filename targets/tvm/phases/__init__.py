"""Phases from a Relax module to object files, and records of the kernels that come out."""

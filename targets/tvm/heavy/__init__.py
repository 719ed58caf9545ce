"""Operators that more than one target lowers in one way, up to the operands of its kernels."""

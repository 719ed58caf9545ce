"""Shapes over named sizes: integer tensors as expressions, and the sizes of outputs."""

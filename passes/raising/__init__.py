"""MoE formulations found in the wild, one file each, and what they share. See :mod:`moec.passes.raise_moe`."""

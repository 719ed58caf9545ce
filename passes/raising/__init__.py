"""What finds MoE blocks, checks proposals for them and writes them. See :mod:`moec.passes.raise_moe`."""

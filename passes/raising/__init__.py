"""Search for MoE blocks, checks of proposals for them, and their replacement. See :mod:`moec.passes.raise_moe`."""

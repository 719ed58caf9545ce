"""MoE formulations found in the wild, one file each: their appearance, and whether a block's experts match it."""

from __future__ import annotations

from collections.abc import Callable

from moec.passes.raising.block import Block
from moec.passes.raising.formulations import batched, dense, loop
from moec.passes.raising.mlps import Mlp

FORMULATIONS: dict[str, Callable[[Block, list[Mlp]], bool]] = {
    "batched": batched.matches,
    "loop": loop.matches,
    "dense": dense.matches,
}

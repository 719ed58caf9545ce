"""The instructions of a GPU that TIR has no operators for, as the kernels of this folder use them: barriers, exchanges
between the lanes of a warp, and conversions. They are NVIDIA's; another vendor states its own here."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from moec.targets.gpu.constants import WARP

_AND_OR = 0xEA
"""The number by which ``lop3`` knows the function (a & b) | c."""
ALL_LANES = 0xFFFFFFFF
"""The mask of warp instructions in which all lanes take part."""


def sync_block() -> Any:
    """Wait for all threads of the block."""
    return T.cuda.cta_sync()


def sync_warp() -> Any:
    """Wait for all lanes of the warp."""
    return T.cuda.warp_sync()


def reduce_lanes(value: Any, operation: str, lanes: int = WARP) -> Any:
    """The ``sum`` or ``max`` over a warp, or over ``lanes`` neighbouring lanes; every lane gets it."""
    return T.cuda.warp_reduce(value, operation, lanes)


def lanes_where(condition: Any) -> Any:
    """The lanes of the warp for which the condition holds, uint32, a bit each."""
    return T.cuda.ballot_sync(T.uint32(ALL_LANES), condition)


def from_lane(value: Any, lane: Any) -> Any:
    """The value of another lane."""
    return T.cuda.__shfl_sync(T.uint32(ALL_LANES), value, lane, WARP)


def from_lower_lane(value: Any, distance: Any) -> Any:
    """The value of the lane that is ``distance`` lanes before this one; its own value if there is none."""
    return T.cuda.__shfl_up_sync(T.uint32(ALL_LANES), value, distance, WARP)


def largest_of_lanes(value: Any) -> Any:
    """The largest value (int32) of the lanes of the warp; every lane gets it."""
    return T.call_extern("int32", "__reduce_max_sync", T.uint32(ALL_LANES), value)


def smallest_of_lanes(value: Any) -> Any:
    """The smallest value (int32) of the lanes of the warp; every lane gets it."""
    return T.call_extern("int32", "__reduce_min_sync", T.uint32(ALL_LANES), value)


def pick_bytes(low: Any, high: Any, places: Any) -> Any:
    """Four bytes of two words, uint32. ``places``: for each of them 4 bits, a number from 0 to 7."""
    return T.call_extern("uint32", "__byte_perm", low, high, places)


def set_and_or(target: Any, left: Any, right: Any, other: Any) -> Any:
    """Set ``target`` to ``(left & right) | other``, all uint32."""
    return T.ptx["lop3.b32"](target, left, right, other, _AND_OR)


def set_halves_of_fp8(target: Any, pair: Any) -> Any:
    """Set ``target`` (uint32) to the two float16 of two codes of e4m3 (uint16), exactly; NaN stays NaN.

    The instruction needs sm_89 or newer.
    """
    return T.ptx["cvt.rn.f16x2.e4m3x2"](target, pair)


def set_tf32(target: Any, value: Any) -> Any:
    """Set ``target`` (uint32) to the bits of a float32 rounded to 10 bits of fraction, ties away from zero."""
    return T.ptx["cvt.rna.tf32.f32"](target, value)


def set_without_waiting(target: Any, address: Any) -> Any:
    """Set ``target`` (int32) to the number at an address, which another kernel may be writing."""
    return T.ptx["ld.relaxed.gpu.global.s32"](target, address)


def fetch_into_cache(address: Any) -> Any:
    """Start to fetch the bytes around an address into the second-level cache."""
    return T.ptx["prefetch.global.L2"](address)

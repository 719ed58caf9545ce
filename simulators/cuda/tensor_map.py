"""The emulator's counterpart of the driver function that encodes a tensor map for TMA."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from moec.common.errors import MoecError, UnsupportedError

_SIZE = 128
_MOST_DIMENSIONS, _LARGEST_BOX, _ALIGNMENT = 5, 256, 16
_SWIZZLED_BYTES = {1: 32, 2: 64, 3: 128}


def encode_tensor_map(target: Any, dtype: str, rank: int, address: Any, *numbers: int) -> None:
    """Fill the 128 bytes at ``target`` with a tensor map; takes the arguments of TVM's
    ``runtime.cuTensorMapEncodeTiled``.

    ``numbers``: ``rank`` extents in elements, innermost first; ``rank - 1`` strides in bytes; ``rank`` extents of the
    box; ``rank`` element strides; interleaving, swizzle, L2 promotion, fill. Raises MoecError for a map that the driver
    would refuse, UnsupportedError for interleaving, strided elements, and fills other than zero.
    """
    numbers = tuple(map(int, numbers))
    extents, rest = numbers[:rank], numbers[rank:]
    strides, rest = rest[: rank - 1], rest[rank - 1 :]
    box, element_strides, modes = rest[:rank], rest[rank : 2 * rank], rest[2 * rank :]
    interleave, swizzle, _, fill = modes
    if interleave or fill or any(stride != 1 for stride in element_strides):
        raise UnsupportedError(
            f"tensor map with interleave {interleave}, fill {fill}, element strides {element_strides}: not emulated; "
            "expected 0, 0 and ones; run this kernel on a GPU"
        )
    location, element_bytes = _address(address), _element_bytes(dtype)
    _check(location, extents, strides, box, swizzle, element_bytes)
    packed = struct.pack(
        "<QIIII5Q4Q5I",
        *(location, rank, element_bytes, swizzle, 0),
        *_padded(extents, 5, 1),
        *_padded(strides, 4, 0),
        *_padded(box, 5, 1),
    )
    ctypes.memmove(_address(target), packed.ljust(_SIZE, b"\0"), _SIZE)


def _check(
    address: int, extents: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...], swizzle: int, size: int
) -> None:
    row = box[0] * size
    problems = {
        f"{len(extents)} dimensions are more than {_MOST_DIMENSIONS}": len(extents) > _MOST_DIMENSIONS,
        f"address {address:#x} is no multiple of {_ALIGNMENT}": address % _ALIGNMENT != 0,
        f"strides {strides} are no multiples of {_ALIGNMENT} bytes": any(stride % _ALIGNMENT for stride in strides),
        f"extents {extents} are not between 1 and 2^32": not all(1 <= extent <= 2**32 for extent in extents),
        f"box {box} is not between 1 and {_LARGEST_BOX}": not all(1 <= extent <= _LARGEST_BOX for extent in box),
        f"a row of the box has {row} bytes, no multiple of {_ALIGNMENT}": row % _ALIGNMENT != 0,
        f"a row of the box has {row} bytes, more than swizzle {swizzle} allows": row
        > _SWIZZLED_BYTES.get(swizzle, row),
    }
    present_problems = [problem for problem, present in problems.items() if present]
    if present_problems:
        raise MoecError(
            f"tensor map: {'; '.join(present_problems)}; the driver refuses such maps: change how the tensor lies"
        )


def _address(pointer: Any) -> int:
    return int(getattr(pointer, "value", pointer) or 0)


def _element_bytes(dtype: str) -> int:
    bits = int("".join(character for character in dtype.rsplit("_", 1)[0] if character.isdigit()) or 8)
    return max(1, bits // 8)


def _padded(values: tuple[int, ...], count: int, fill: int) -> tuple[int, ...]:
    return values + (fill,) * (count - len(values))

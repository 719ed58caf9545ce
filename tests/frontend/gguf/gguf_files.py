"""Writer of GGUF files, right ones and wrong ones, and encoder of weights in the formats that have a simple rule."""

from __future__ import annotations

import dataclasses
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from moec.frontend.gguf.file.formats import FLOATS
from moec.frontend.gguf.file.reader import BLOCKS

Array = np.ndarray[Any, Any]
ALIGNMENT = 32


@dataclasses.dataclass
class Stored:
    """A tensor: the number of its type, its shape as in numpy, its bytes, and its offset in a wrong file."""

    kind: int
    shape: tuple[int, ...]
    data: bytes
    offset: int | None = None


def write_file(path: Path, metadata: dict[str, Any], tensors: dict[str, Stored], version: int = 3) -> Path:
    """Write a file of these entries and tensors."""
    path.write_bytes(file_bytes(list(metadata.items()), list(tensors.items()), version))
    return path


def file_bytes(metadata: list[tuple[str, Any]], tensors: list[tuple[str, Stored]], version: int = 3) -> bytes:
    """Make the bytes of such a file, in which keys and names may come twice."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, value in metadata:
        head += text(key) + value_bytes(value)
    data = b""
    for name, stored in tensors:
        data += bytes(-len(data) % ALIGNMENT)
        offset = len(data) if stored.offset is None else stored.offset
        sizes = struct.pack(f"<I{len(stored.shape)}Q", len(stored.shape), *stored.shape[::-1])
        head += text(name) + sizes + struct.pack("<IQ", stored.kind, offset)
        data += stored.data
    return head + bytes(-len(head) % ALIGNMENT) + data


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value_bytes(value: Any) -> bytes:
    """Encode a metadata value with its type: whole numbers are uint32, others float32."""
    if isinstance(value, bytes):  # as it is
        return value
    if isinstance(value, list):
        kind, parts = _parts(value)
        return struct.pack("<IIQ", 9, kind, len(value)) + b"".join(parts)
    kind, parts = _parts([value])
    return struct.pack("<I", kind) + parts[0]


def _parts(values: list[Any]) -> tuple[int, list[bytes]]:
    if all(isinstance(value, str) for value in values):
        return 8, [text(value) for value in values]
    kind, code = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}[type(values[0])]
    return kind, [struct.pack(f"<{code}", value) for value in values]


HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
HALVES |= {"IQ4_NL": (0,), "IQ4_XS": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,)}
"""Places of the float16 numbers of a block; all other bytes may be arbitrary."""


def random_blocks(kind: str, count: int, scale: float = 1.0) -> Array:
    """Draw random blocks [count, bytes]; quantised weights are about as large as ``scale``."""
    random = np.random.default_rng(zlib.crc32(kind.encode()))
    weights, size = next((weights, size) for name, weights, size in BLOCKS.values() if name == kind)
    if weights == 1:
        return random.normal(size=(count, 1)).astype(FLOATS[kind].numpy()).view(np.uint8).reshape(count, size)
    blocks = random.integers(0, 256, (count, size)).astype(np.uint8)
    for place in HALVES.get(kind, ()):
        numbers = random.normal(size=(count, 1)) * scale
        blocks[:, place : place + 2] = numbers.astype("<f2").view(np.uint8)
    if kind == "MXFP4":
        blocks[:, 0] = random.integers(100, 130, count)
    if kind == "NVFP4":
        blocks[:, :4] = random.integers(0, 127, (count, 4))
    return blocks


def stored(array: Array, kind: str = "F32") -> Stored:
    """Encode an array in a format, rounding each number; a format without a simple rule gets other numbers of the same
    shape."""
    if kind == "F32":
        data = array.astype("<f4").tobytes()
    elif kind == "F16":
        data = array.astype("<f2").tobytes()
    elif kind == "BF16":
        data = (array.astype("<f4").view(np.uint32) >> 16).astype("<u2").tobytes()
    elif kind in _BLOCKS:
        data = _BLOCKS[kind](array.astype(np.float32).reshape(-1, 32)).tobytes()
    else:
        weights = next(weights for name, weights, _ in BLOCKS.values() if name == kind)
        data = random_blocks(kind, array.size // weights, 0.002).tobytes()
    return Stored(next(number for number, block in BLOCKS.items() if block[0] == kind), array.shape, data)


def _q8_0(blocks: Array) -> Array:
    scale = (np.abs(blocks).max(1, keepdims=True) / 127).astype("<f2")
    numbers = np.rint(blocks / scale.astype(np.float32)).clip(-127, 127).astype(np.int8)
    return np.concatenate([scale.view(np.uint8), numbers.view(np.uint8)], axis=1)


def _nibbles(numbers: Array) -> Array:
    numbers = numbers.astype(np.uint8)
    return numbers[:, :16] | (numbers[:, 16:] << 4)


def _q4_0(blocks: Array) -> Array:
    scale = (np.abs(blocks).max(1, keepdims=True) / 7).astype("<f2")
    numbers = np.rint(blocks / scale.astype(np.float32)).clip(-8, 7) + 8
    return np.concatenate([scale.view(np.uint8), _nibbles(numbers)], axis=1)


def _q4_1(blocks: Array) -> Array:
    low = blocks.min(1, keepdims=True).astype("<f2")
    scale = ((blocks.max(1, keepdims=True) - low) / 15).astype("<f2")
    numbers = np.rint((blocks - low.astype(np.float32)) / scale.astype(np.float32)).clip(0, 15)
    return np.concatenate([scale.view(np.uint8), low.view(np.uint8), _nibbles(numbers)], axis=1)


_BLOCKS = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1}

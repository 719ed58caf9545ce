"""Weights of ggml's formats: moec stores exactly the numbers of the format's definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import MoecError
from moec.frontend.gguf.file import formats
from moec.frontend.gguf.file.reader import BLOCKS, GgufFile, GgufTensor
from moec.frontend.gguf.graph.builder import Builder
from moec.frontend.gguf.parts.embedding import embed
from moec.ir.interpreter import run
from moec.ir.weights.stored import StoredWeight

from ..gguf_files import random_blocks

Array = np.ndarray[Any, Any]
ROWS, PER_ROW = 3, 2


def tensor(kind: str) -> GgufTensor:
    weights = next(weights for name, weights, _ in BLOCKS.values() if name == kind)
    blocks = random_blocks(kind, ROWS * PER_ROW)
    return GgufTensor(kind, kind, (ROWS, PER_ROW * weights), blocks.reshape(ROWS, PER_ROW, -1))


def half(block: Array, place: int) -> np.float32:
    return np.float32(block[place : place + 2].view("<f2")[0])


# Each weight of a block as a formula of its number i: the definitions of ggml-quants.c, one weight at a time.


def q4_0(b: Array, i: int) -> np.float32:
    return half(b, 0) * np.float32(int(b[2 + i % 16] >> 4 * (i // 16)) % 16 - 8)


def q4_1(b: Array, i: int) -> np.float32:
    return half(b, 0) * np.float32(int(b[4 + i % 16] >> 4 * (i // 16)) % 16) + half(b, 2)


def fifth(b: Array, first: int, i: int) -> int:
    return (int.from_bytes(b[first : first + 4].tobytes(), "little") >> i & 1) << 4


def q5_0(b: Array, i: int) -> np.float32:
    return half(b, 0) * np.float32((int(b[6 + i % 16] >> 4 * (i // 16)) % 16 | fifth(b, 2, i)) - 16)


def q5_1(b: Array, i: int) -> np.float32:
    return half(b, 0) * np.float32(int(b[8 + i % 16] >> 4 * (i // 16)) % 16 | fifth(b, 4, i)) + half(b, 2)


def q8_0(b: Array, i: int) -> np.float32:
    return half(b, 0) * np.float32(b[2:].view(np.int8)[i])


def mxfp4(b: Array, i: int) -> np.float32:
    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    code = int(b[1 + i % 16] >> 4 * (i // 16)) % 16
    return np.float32((-1 if code > 7 else 1) * values[code % 8]) * np.float32(2.0 ** (int(b[0]) - 127))


def nvfp4(b: Array, i: int) -> np.float32:
    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    code = int(b[4 + i // 16 * 8 + i % 8] >> 4 * (i % 16 // 8)) % 16
    exponent, fraction = divmod(int(b[i // 16]), 8)
    scale = (1 + fraction / 8) * 2.0 ** (exponent - 7) if exponent else fraction * 2.0**-9
    return np.float32((-1 if code > 7 else 1) * values[code % 8]) * np.float32(scale)


def q2_k(b: Array, i: int) -> np.float32:
    number = int(b[16 + i // 128 * 32 + i % 32] >> 2 * (i % 128 // 32)) & 3
    scale = int(b[i // 16])
    return half(b, 80) * np.float32(scale & 15) * np.float32(number) - half(b, 82) * np.float32(scale >> 4)


def q3_k(b: Array, i: int) -> np.float32:
    number = int(b[32 + i // 128 * 32 + i % 32] >> 2 * (i % 128 // 32)) & 3
    number -= 0 if b[i % 32] >> (i // 32) & 1 else 4
    j = i // 16
    low = b[96 + j] & 15 if j < 8 else b[96 + j - 8] >> 4
    scale = (int(low) | (int(b[104 + j % 4]) >> 2 * (j // 4) & 3) << 4) - 32
    return half(b, 108) * np.float32(scale) * np.float32(number)


def six_bits(packed: Array, j: int) -> tuple[int, int]:
    packed = packed.astype(int)
    if j < 4:
        return int(packed[j] & 63), int(packed[j + 4] & 63)
    scale = packed[j + 4] & 15 | packed[j - 4] >> 6 << 4
    return int(scale), int(packed[j + 4] >> 4 | packed[j] >> 6 << 4)


def q4_k(b: Array, i: int) -> np.float32:
    scale, minimum = six_bits(b[4:16], i // 32)
    number = int(b[16 + i // 64 * 32 + i % 32] >> 4 * (i % 64 // 32)) & 15
    return half(b, 0) * np.float32(scale) * np.float32(number) - half(b, 2) * np.float32(minimum)


def q5_k(b: Array, i: int) -> np.float32:
    scale, minimum = six_bits(b[4:16], i // 32)
    number = int(b[48 + i // 64 * 32 + i % 32] >> 4 * (i % 64 // 32)) & 15 | (int(b[16 + i % 32]) >> i // 32 & 1) << 4
    return half(b, 0) * np.float32(scale) * np.float32(number) - half(b, 2) * np.float32(minimum)


def q6_k(b: Array, i: int) -> np.float32:
    low = int(b[i // 128 * 64 + i % 64] >> 4 * (i % 128 // 64)) & 15
    high = int(b[128 + i // 128 * 32 + i % 32] >> 2 * (i % 128 // 32)) & 3
    scale = b[192:208].view(np.int8)[i // 16]
    return half(b, 208) * np.float32(scale) * np.float32((low | high << 4) - 32)


IQ4 = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]


def iq4_nl(b: Array, i: int) -> np.float32:
    return half(b, 0) * np.float32(IQ4[int(b[2 + i % 16] >> 4 * (i // 16)) % 16])


def iq4_xs(b: Array, i: int) -> np.float32:
    group = i // 32
    high = (int(b[2]) | int(b[3]) << 8) >> 2 * group & 3
    scale = (int(b[4 + group // 2]) >> 4 * (group % 2) & 15 | high << 4) - 32
    return half(b, 0) * np.float32(scale) * np.float32(IQ4[int(b[8 + group * 16 + i % 16] >> 4 * (i % 32 // 16)) % 16])


DEFINITIONS: dict[str, Callable[[Array, int], np.float32]] = {
    "Q4_0": q4_0,
    "Q4_1": q4_1,
    "Q5_0": q5_0,
    "Q5_1": q5_1,
    "Q8_0": q8_0,
    "MXFP4": mxfp4,
    "NVFP4": nvfp4,
    "Q2_K": q2_k,
    "Q3_K": q3_k,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
    "IQ4_NL": iq4_nl,
    "IQ4_XS": iq4_xs,
}


def weights(kind: str) -> Iterator[Array]:
    """Compute the rows of :func:`tensor` by the definition."""
    result = tensor(kind)
    size = result.shape[1] // PER_ROW
    for row in result.blocks:
        yield np.array([DEFINITIONS[kind](block, i) for block in row for i in range(size)], np.float32)


def test_every_format_has_a_definition() -> None:
    assert set(DEFINITIONS) == set(formats.QUANTISED) == {name for name, *_ in BLOCKS.values()} - set(formats.FLOATS)


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_stored_numbers(kind: str) -> None:
    expected, actual = np.stack(list(weights(kind))), tensor(kind)
    np.testing.assert_array_equal(formats.decoded(actual), expected)
    weight = formats.weight_of(actual)
    assert weight.form is not None
    tables = {name: array.read() for name, array in weight.tables.items()}
    for name, array in weight.tables.items():
        assert tables[name].shape == array.shape and tables[name].dtype == array.dtype.numpy()
    np.testing.assert_array_equal(stored_weight(kind).decoded(0, transposed=False).T, expected)


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_rows_of_an_embedding(kind: str) -> None:
    table = tensor(kind)
    metadata = {"general.architecture": "t", "t.block_count": 1, "t.embedding_length": table.shape[1]}
    builder = Builder(GgufFile(Path("model.gguf"), metadata, {"token_embd.weight": table}), with_cache=False)
    builder.write.output(embed(builder), "y")
    ids = np.array([[ROWS - 1, 0], [1, 1]])
    rows = run(ir.Model(builder.write.graph, ir_version=10), {"input_ids": ids})["y"]
    np.testing.assert_array_equal(rows, formats.decoded(table)[ids])


def stored_weight(kind: str) -> StoredWeight:
    """Read the stored weight from the nodes that a builder makes of :func:`tensor`."""
    result = tensor(kind)
    metadata = {"general.architecture": "t", "t.block_count": 1, "t.embedding_length": result.shape[1]}
    builder = Builder(GgufFile(Path("model.gguf"), metadata, {"w": result}), with_cache=False)
    weight = StoredWeight.of(builder.matrix("w", *result.shape))
    assert weight.formats == [formats.QUANTISED[kind].form]
    return weight


def numbers_of(factors: list[float], *shape: int) -> Array:
    """Decode the matrix ``w.weight`` [shape, 128] in NVFP4, beside tensors of its float and of the scale of inputs."""
    plain, floats = tensor("NVFP4"), np.array(factors, "<f4")
    weight = GgufTensor("w", "NVFP4", (*shape, plain.shape[1]), plain.blocks.reshape(*shape, PER_ROW, -1))
    scale = GgufTensor("w.scale", "F32", floats.shape, floats.view(np.uint8).reshape(-1, 4))
    metadata = {"general.architecture": "t", "t.block_count": 1, "t.embedding_length": plain.shape[1]}
    tensors = {"w.weight": weight, "w.scale": scale, "w.input_scale": scale}
    builder = Builder(GgufFile(Path("model.gguf"), metadata, tensors), with_cache=False)
    value = builder.matrix("w.weight", *weight.shape)
    stored = StoredWeight.of(value)
    decoded = np.stack([stored.decoded(expert, transposed=False).T for expert in range(stored.experts)])
    np.testing.assert_array_equal(formats.decoded(builder.tensor("w.weight", *weight.shape)).ravel(), decoded.ravel())
    return decoded


def test_nvfp4_is_multiplied_by_floats_of_another_tensor() -> None:
    plain = formats.decoded(tensor("NVFP4"))
    np.testing.assert_array_equal(numbers_of([0.25], ROWS)[0], plain / 4)
    np.testing.assert_array_equal(numbers_of([1, 2, 0.5], ROWS, 1)[:, 0], plain * [[1], [2], [0.5]])
    with pytest.raises(MoecError, match=r"is \[2\], but the metadata asks for \[3\]"):
        numbers_of([1, 2], ROWS, 1)


@pytest.mark.parametrize("kind", ["Q4_1", "NVFP4", "Q6_K"])
def test_one_expert_is_read_alone(kind: str) -> None:
    result = tensor(kind)
    stack = GgufTensor(kind, kind, (ROWS, 1, result.shape[1]), result.blocks[:, None])
    for array in formats.weight_of(stack).tables.values():
        np.testing.assert_array_equal(array.entry(1), array.read()[1])


def test_bits() -> None:
    assert formats.stored_bits("Q4_1") == (5, 5) and formats.stored_bits("BF16") == (16, 16)
    assert formats.stored_bits("Q4_K") == (4.625, 4.5) and formats.stored_bits("Q6_K") == (6.5625, 6.5625)
    assert formats.stored_bits("IQ4_XS") == (4.3125, 4.25)

"""Checkpoints quantised by other tools: moec stores exactly the numbers that their formats define."""

from __future__ import annotations

import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import MoecError, UnsupportedError
from moec.frontend.huggingface.checkpoint.safetensors import FileTensor
from moec.frontend.huggingface.checkpoint.weights import CheckpointWeight
from moec.frontend.huggingface.quantised import decode_names
from moec.ir.weights.encode import Encoded, decode
from moec.ir.weights.lazy import LazyMatrix

OUT, IN, GROUP = 16, 64, 32
RNG = np.random.default_rng(0)
Arrays = dict[str, np.ndarray]


def weights(arrays: Arrays, **settings: Any) -> dict[str, CheckpointWeight]:
    """Decode the product ``p`` from tensors with these ends of names."""
    tensors = {f"p{end}": file_tensor(f"p{end}", array) for end, array in arrays.items()}
    return decode_names(tensors, {"quantization_config": settings}, "folder")


def file_tensor(name: str, array: np.ndarray) -> FileTensor:
    stored = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return FileTensor(f"file: {name}", ir.DataType.from_numpy(array.dtype), array.shape, stored)


def numbers(weight: CheckpointWeight) -> np.ndarray:
    """Decode the stored weight to float32."""
    assert weight.form is not None
    tables = weight.tables
    stored = LazyMatrix(lambda table: tables[table].read() if table in tables else None)
    if "scale_code" in tables:
        scale = tables["scale_code"].read().astype(np.float32) * tables["scale_factor"].read()
        stored = Encoded(tables["data"].read(), scale)
    result = decode(stored, weight.form, weight.axis)
    for array in tables.values():
        assert array.read().shape == array.shape and array.read().dtype == array.dtype.numpy()
    return result


def along(values: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Pack numbers of few bits into int32 along an axis, the first in the lowest bits."""
    values = np.moveaxis(values.astype(np.int64), axis, -1)
    each = 32 // bits
    words = np.zeros((*values.shape[:-1], values.shape[-1] // each), np.int64)
    for place in range(each):
        words |= values[..., place::each] << (bits * place)
    return np.ascontiguousarray(np.moveaxis(words.astype(np.uint32).view(np.int32), -1, axis))


def made(bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Make numbers [out,in], zero points and scales [out,groups], and the weight."""
    q = RNG.integers(0, 2**bits, (OUT, IN))
    zero = RNG.integers(1, 2**bits, (OUT, IN // GROUP))
    scale = RNG.uniform(0.01, 1, (OUT, IN // GROUP)).astype(np.float16)
    return q, zero, scale, weight_of(q, zero, scale, np.arange(IN) // GROUP)


def weight_of(q: np.ndarray, zero: np.ndarray, scale: np.ndarray, group: np.ndarray) -> np.ndarray:
    return (q - zero[:, group]).astype(np.float32) * scale[:, group].astype(np.float32)


def gptq(q: np.ndarray, zero: np.ndarray, scale: np.ndarray, bits: int, added: int = 1) -> Arrays:
    stored = along((zero - added) % 2**bits, bits, 0).T
    return {
        ".qweight": along(q.T, bits, 0),
        ".qzeros": np.ascontiguousarray(stored),
        ".scales": np.ascontiguousarray(scale.T),
        ".g_idx": (np.arange(IN) // GROUP).astype(np.int32),
    }


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("form", "added"), [("gptq", 1), ("gptq_v2", 0)])
def test_gptq(bits: int, form: str, added: int) -> None:
    q, zero, scale, expected = made(bits)
    actual = weights(gptq(q, zero, scale, bits, added), quant_method="gptq", bits=bits, checkpoint_format=form)
    assert list(actual) == ["p.weight"] and str(actual["p.weight"].form) == f"int{bits}/{GROUP}z"
    np.testing.assert_array_equal(numbers(actual["p.weight"]), expected)
    np.testing.assert_array_equal(numbers(actual["p.weight"].transposed()), expected.T)


def test_gptq_without_zero_points_is_signed() -> None:
    q, zero, scale, _ = made(4)
    zero[:] = 8
    (actual,) = weights(gptq(q, zero, scale, 4), quant_method="gptq", bits=4).values()
    assert str(actual.form) == f"int4/{GROUP}"
    np.testing.assert_array_equal(numbers(actual), weight_of(q, zero, scale, np.arange(IN) // GROUP))


def test_gptq_in_another_order() -> None:
    q, zero, scale, _ = made(4)
    group = RNG.permutation(np.arange(IN) // GROUP)
    arrays = gptq(q, zero, scale, 4) | {".g_idx": group.astype(np.int32)}
    (actual,) = weights(arrays, quant_method="gptq", bits=4).values()
    assert actual.order is not None
    back = np.empty_like(numbers(actual))
    back[:, actual.order] = numbers(actual)
    np.testing.assert_array_equal(back, weight_of(q, zero, scale, group))
    group[0] = 1 - group[0]
    with pytest.raises(UnsupportedError, match="are of different sizes"):
        weights(arrays | {".g_idx": group.astype(np.int32)}, quant_method="gptq", bits=4)


COMPRESSED_NVFP4 = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}


def test_awq() -> None:
    q, zero, scale, expected = made(4)

    def packed(values: np.ndarray) -> np.ndarray:
        return along(values.reshape(len(values), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(values.shape), 4, 1)

    arrays = {".qweight": packed(q.T), ".qzeros": packed(zero.T), ".scales": np.ascontiguousarray(scale.T)}
    (actual,) = weights(arrays, quant_method="awq", bits=4, version="GEMM").values()
    np.testing.assert_array_equal(numbers(actual), expected)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_pack_quantized(bits: int, symmetric: bool) -> None:
    q, zero, scale, _ = made(bits)
    zero = np.full_like(zero, 2 ** (bits - 1)) if symmetric else zero
    arrays = {
        ".weight_packed": along(q, bits, 1),
        ".weight_scale": scale.astype(ml_dtypes.bfloat16),
        ".weight_shape": np.array([OUT, IN]),
        ".weight_zero_point": along(zero, bits, 0),
    }
    if symmetric:
        del arrays[".weight_zero_point"]
    (actual,) = weights(arrays, quant_method="compressed-tensors", format="pack-quantized").values()
    assert actual.form is not None and actual.form.zero_points == (not symmetric)
    expected = weight_of(q, zero, arrays[".weight_scale"], np.arange(IN) // GROUP)
    np.testing.assert_array_equal(numbers(actual), expected)


@pytest.mark.parametrize("shape", [(OUT, 1), (1,), (OUT, 2)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_int_quantized(shape: tuple[int, ...], symmetric: bool) -> None:
    q, scale = RNG.integers(-128, 128, (OUT, IN)), RNG.uniform(0.1, 1, shape).astype(np.float32)
    zero = np.zeros(shape, int) if symmetric else RNG.integers(-128, 128, shape)
    arrays = {".weight": q.astype(np.int8), ".weight_scale": scale, ".weight_zero_point": zero.astype(np.int8)}
    if symmetric:
        del arrays[".weight_zero_point"]
    (actual,) = weights(arrays, quant_method="compressed-tensors", format="int-quantized").values()
    groups = shape[1] if len(shape) == 2 else 1
    zero, scale = (np.broadcast_to(table.reshape(-1, groups), (OUT, groups)) for table in (zero, scale))
    np.testing.assert_array_equal(numbers(actual), weight_of(q, zero, scale, np.arange(IN) // (IN // groups)))


@pytest.mark.parametrize("shape", [(OUT, 1), (1,)])
def test_float_quantized(shape: tuple[int, ...]) -> None:
    q, scale = fp8((OUT, IN)), RNG.uniform(0.1, 1, shape).astype(ml_dtypes.bfloat16)
    arrays = {".weight": q, ".weight_scale": scale}
    (actual,) = weights(arrays, quant_method="compressed-tensors", format="float-quantized").values()
    np.testing.assert_array_equal(numbers(actual), q.astype(np.float32) * scale.astype(np.float32))


def fp8(shape: tuple[int, ...]) -> np.ndarray:
    return RNG.normal(size=shape).astype(ml_dtypes.float8_e4m3fn)


@pytest.mark.parametrize(("out", "size"), [(256, 256), (200, 256), (64, 128)])
def test_fp8_in_blocks(out: int, size: int) -> None:
    q, scale = fp8((out, size)), RNG.uniform(0.1, 1, (-(-out // 128), -(-size // 128))).astype(np.float32)
    arrays = {".weight": q, ".weight_scale_inv": scale, ".bias": np.zeros(out, np.float32)}
    actual = weights(arrays, quant_method="fp8", weight_block_size=[128, 128])
    expected = q.astype(np.float32) * scale.repeat(128, 0)[:out].repeat(128, 1)[:, :size]
    np.testing.assert_array_equal(numbers(actual["p.weight"]), expected)
    assert actual["p.bias"].form is None


def test_mxfp4() -> None:
    E, groups = 3, 2
    codes, exponents = RNG.integers(0, 16, (E, OUT, groups, 32)), RNG.integers(120, 132, (E, OUT, groups))
    blocks = (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8)
    actual = weights({"_blocks": blocks, "_scales": exponents.astype(np.uint8)}, quant_method="mxfp4")
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    signed = np.concatenate([values, -values])[codes] * np.exp2(exponents - 127.0)[..., None].astype(np.float32)
    expected = signed.reshape(E, OUT, -1).swapaxes(1, 2)
    assert actual["p"].data.shape == expected.shape
    np.testing.assert_array_equal(numbers(actual["p"]), expected)
    entry, whole = actual["p"].data.entry(1), actual["p"].data.read()
    np.testing.assert_array_equal(entry.astype(np.float32), whole[1].astype(np.float32))


@pytest.mark.parametrize(
    ("numbers_end", "float_end", "settings"),
    [
        (".weight", ".weight_scale_2", {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
        (".weight_packed", ".weight_global_scale", COMPRESSED_NVFP4),
    ],
)
@pytest.mark.parametrize("shape", [(), (1,)])
def test_nvfp4(numbers_end: str, float_end: str, settings: dict[str, Any], shape: tuple[int, ...]) -> None:
    codes, scale = RNG.integers(0, 16, (OUT, IN)), fp8((OUT, IN // 16))
    whole = np.full(shape, 0.37, np.float32)
    arrays = {
        numbers_end: (codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8),
        ".weight_scale": scale,
        float_end: whole,
        ".bias": np.zeros(OUT, np.float32),
    }
    actual = weights(arrays, **settings)
    factor = whole.reshape(()) if float_end == ".weight_scale_2" else 1 / whole.reshape(())
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    expected = np.concatenate([values, -values])[codes] * (scale.astype(np.float32) * factor).repeat(16, 1)
    assert str(actual["p.weight"].form) == "nvfp4" and actual["p.bias"].form is None
    np.testing.assert_allclose(numbers(actual["p.weight"]), expected, rtol=1e-6)
    for change, message in (
        ({float_end: None}, f"has no {float_end.strip('.')} beside it"),
        ({float_end: np.ones(2, np.float32)}, r"is \[2\], but the tensors beside it ask for \[1\]"),
        ({".weight_scale": fp8((OUT, IN // 32))}, r"ask for \[16, 4\]"),
        ({".weight_scale": np.ones((OUT, IN // 16), np.float32)}, "is float .*; expected float8e4m3fn of 2 axes"),
        ({numbers_end: np.zeros((OUT, IN), np.int8)}, "is int8 .*; expected uint8 of 2 axes"),
    ):
        changed = {end: array for end, array in {**arrays, **change}.items() if array is not None}
        with pytest.raises(MoecError, match=message):
            weights(changed, **settings)


@pytest.mark.parametrize("number", [0, np.nan, np.inf])
def test_nvfp4_with_a_float_that_nothing_can_be_made_of(number: float) -> None:
    arrays = {
        ".weight_packed": np.zeros((OUT, IN // 2), np.uint8),
        ".weight_scale": fp8((OUT, IN // 16)),
        ".weight_global_scale": np.array([number], np.float32),
    }
    (result,) = weights(arrays, **COMPRESSED_NVFP4).values()
    with pytest.raises(MoecError, match=f"is {number}"):
        numbers(result)


def test_float8_of_modelopt() -> None:
    q, scale = fp8((OUT, IN)), np.float32(0.3)
    arrays = {".weight": q, ".weight_scale": scale, ".input_scale": np.float32(2)}
    (actual,) = weights(arrays, quant_method="modelopt", quant_algo="FP8").values()
    np.testing.assert_array_equal(numbers(actual), q.astype(np.float32) * scale)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "'W4A8_AWQ'; expected NVFP4 or FP8"),
        ({"quant_method": "gptq", "bits": 3}, "GPTQ of 3 bits in the format 'gptq'; expected 4 or 8"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "format 'marlin'"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "layout 'gemv'; expected 4 bits in gemm"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "format 'marlin-24'; expected"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "expected two whole numbers"),
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes'; expected gptq, awq"),
        ({}, "quantised by 'None'"),
    ],
)
def test_other_formats_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        weights({".weight": np.zeros(4, np.float32)}, **settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({".scales": None}, "has no scales beside it"),
        ({".qzeros": None}, "has no qzeros beside it"),
        ({".scales": np.ones((2, OUT + 1), np.float16)}, r"is \[2, 17\], but the tensors beside it ask for \[2, 16\]"),
        ({".scales": np.ones((3, OUT), np.float16), ".qzeros": np.zeros((3, 2), np.int32)}, "a scale per group"),
        ({".qzeros": np.zeros((2, 3), np.int32)}, r"ask for \[2, 2\]"),
        ({".g_idx": np.zeros(3, np.int32)}, r"ask for \[64\]"),
        ({".qweight": np.zeros((8, OUT), np.int64)}, "is int64 .*; expected int32 of 2 axes"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    arrays = {**gptq(*made(4)[:3], 4), **changes}
    with pytest.raises(MoecError, match=message) as caught:
        weights({end: array for end, array in arrays.items() if array is not None}, quant_method="gptq", bits=4)
    assert "\n" not in str(caught.value)


def test_files_are_untouched(tmp_path: pathlib.Path) -> None:
    arrays = gptq(*made(4)[:3], 4)
    before = {end: array.copy() for end, array in arrays.items()}
    numbers(weights(arrays, quant_method="gptq", bits=4)["p.weight"])
    assert all((arrays[end] == before[end]).all() for end in arrays)

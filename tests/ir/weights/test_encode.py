"""Weights in narrower formats and back: every element against its stated error bound, and corner cases."""

import ml_dtypes
import numpy as np
import pytest

from moec.ir.weights.encode import Encoded, codes_of, decode, encode
from moec.ir.weights.format import ELEMENTS, WeightFormat

FORMATS = [
    WeightFormat(name, group, zero_points)
    for name, elements in ELEMENTS.items()
    for group in elements.groups or ((0, 32, 128) if elements.scales else (0,))
    for zero_points in ([False, True] if elements.unsigned is not None else [False])
]
QUANTIZED = [form for form in FORMATS if form.quantized]
SHAPES = [(3, 128), (5, 2, 300), (1, 1), (4, 33), (0, 64)]


def weights(shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of many magnitudes."""
    generator = np.random.default_rng(0)
    return (generator.normal(size=shape) * np.exp(generator.normal(size=shape))).astype(np.float32)


def largest_of_group(weight: np.ndarray, form: WeightFormat) -> np.ndarray:
    """The largest magnitude in the group of each element."""
    largest = np.empty_like(weight)
    for start in range(0, weight.shape[-1], form.group or weight.shape[-1]):
        part = np.s_[..., start : start + (form.group or weight.shape[-1])]
        largest[part] = np.abs(weight[part]).max(-1, keepdims=True)
    if form.shared_outputs > 1:  # fewer outputs than a block has
        largest = np.broadcast_to(largest.max(-2, keepdims=True, initial=0), weight.shape)
    return largest


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_every_element_keeps_its_error_bound(form: WeightFormat, shape: tuple[int, ...]) -> None:
    weight = weights(shape)
    encoded = encode(weight, form)
    bound = 2 / ((1 << form.elements.bits) - 1) if form.zero_points else form.elements.error
    reference = largest_of_group(weight, form) if form.quantized else np.abs(weight)
    assert encoded.data.dtype == form.data_type.numpy() and encoded.data.shape == weight.shape
    # a float16 scale is off by up to 1/2048
    assert (np.abs(decode(encoded, form) - weight) <= 1.001 * bound * reference).all()


LEVELS = [
    WeightFormat("int4", 32, minima=True),
    *(WeightFormat(name, group, minima=True, super_group=256) for name, group in (("int4", 32), ("int5", 32))),
    *(WeightFormat(name, 16, super_group=256) for name in ("int3", "int6")),
    WeightFormat("int2", 16, minima=True, super_group=256),
]


def factor_of(encoded: Encoded, table: str, form: WeightFormat, size: int) -> np.ndarray:
    """The factor of each element's scale or minimum; 0 where it has one level."""
    factor = getattr(encoded, f"{table}_factor")
    if factor is None:
        return np.zeros(1, np.float32)
    return np.repeat(factor.astype(np.float32), form.super_group, axis=-1)[..., :size]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", LEVELS, ids=str)
def test_scales_of_two_levels_and_minima_keep_their_error_bound(form: WeightFormat, shape: tuple[int, ...]) -> None:
    weight, size = weights(shape), shape[-1]
    encoded = encode(weight, form)
    assert encoded.scale is not None and encoded.data.dtype == form.data_type.numpy()
    levels = (1 << form.elements.bits) - 1 if form.minima else 1 << (form.elements.bits - 1)
    scale = np.abs(np.repeat(encoded.scale.astype(np.float32), form.group, axis=-1)[..., :size])
    factors = [np.abs(factor_of(encoded, table, form, size)) for table in ("scale", "minimum")]
    # without minima the element opposite to the largest may lack half a step more
    bound = scale * (0.5 if form.minima else 1) + (levels * factors[0] + factors[1]) / 2
    rounded_factors = largest_of_group(weight, WeightFormat("int8", form.super_group or form.group)) / 512
    assert (np.abs(decode(encoded, form) - weight) <= bound + rounded_factors).all()
    if encoded.scale_code is not None and encoded.scale_factor is not None:
        codes = encoded.scale_code.astype(np.float32)
        factors_of_groups = np.repeat(encoded.scale_factor.astype(np.float32), form.super_group // form.group, axis=-1)
        np.testing.assert_array_equal(encoded.scale, codes * factors_of_groups[..., : codes.shape[-1]])


def test_few_numbers_have_codes() -> None:
    numbers = np.array(ELEMENTS["iq4"].numbers, np.int8)
    np.testing.assert_array_equal(codes_of(numbers.reshape(2, 8), "iq4"), np.arange(16).reshape(2, 8))
    halfway = (numbers[:-1] + numbers[1:].astype(np.float32)) / 2
    weight = np.pad(np.concatenate([numbers, halfway]), (0, 1))[None].astype(np.float32)
    encoded = encode(weight, WeightFormat("iq4", 32))
    assert encoded.scale is not None and encoded.scale == 1
    np.testing.assert_array_equal(encoded.data[0, :-1], [*numbers, *numbers[:-1]])
    with pytest.raises(ValueError, match="none of the 16 of iq4"):
        codes_of(np.array([1, 0], np.int8), "iq4")


@pytest.mark.parametrize("form", LEVELS, ids=str)
def test_zeros_and_one_number_stay_in_two_levels(form: WeightFormat) -> None:
    weight = np.zeros((2, 256), np.float32)
    weight[1, 7] = -1.0
    decoded = decode(encode(weight, form), form)
    assert not decoded[0].any() and np.abs(decoded[1] - weight[1]).max() < 2e-3
    with pytest.raises(ValueError, match="an infinity or a NaN"):
        encode(np.full((1, 256), np.inf, np.float32), form)
    with pytest.raises(ValueError, match="nothing is rounded to int8/32/256"):
        encode(weight, WeightFormat("int8", 32, super_group=256))


@pytest.mark.parametrize("form", [form for form in QUANTIZED if not form.elements.has_factors], ids=str)
def test_the_last_group_is_shorter(form: WeightFormat) -> None:
    weight = weights((3, 300))
    encoded = encode(weight, form)
    assert encoded.scale is not None
    assert encoded.scale.shape == (3, -(-300 // (form.group or 300)))
    if form.group:
        start = 300 // form.group * form.group
        alone = encode(weight[:, start:], form)
        np.testing.assert_array_equal(alone.data.astype(np.float32), encoded.data[:, start:].astype(np.float32))


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_the_axis_of_the_inputs_may_be_any(form: WeightFormat) -> None:
    weight = weights((5, 96))
    plain, transposed = encode(weight, form), encode(np.ascontiguousarray(weight.T), form, 0)
    for first, other in zip(plain, transposed, strict=True):
        assert (first is None) == (other is None)
        if first is not None and other is not None:
            np.testing.assert_array_equal(first.astype(np.float32), other.T.astype(np.float32))
    np.testing.assert_array_equal(decode(transposed, form, 0), decode(plain, form).T)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_what_a_format_can_hold_comes_back_unchanged(form: WeightFormat) -> None:
    once = decode(encode(weights((4, 256)), form), form)
    rtol = 2e-3 * (1 + form.zero_points) if form.quantized else 0  # scales in float16; zero points follow them
    np.testing.assert_allclose(decode(encode(once, form), form), once, rtol=rtol)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_groups_of_zeros_stay_zeros(form: WeightFormat) -> None:
    weight = weights((2, 256))
    weight[1] = 0
    weight[0, :128] = 0
    actual = decode(encode(weight, form), form)
    assert not actual[1].any() and not actual[0, :128].any() if form.group else not actual[1].any()
    assert np.isfinite(actual).all()


@pytest.mark.parametrize("form", QUANTIZED, ids=str)
@pytest.mark.parametrize("magnitude", [1e-45, 1e-40, 1e-30, 1e-7])
def test_tiny_weights_stay_finite_and_close(form: WeightFormat, magnitude: float) -> None:
    weight = np.full((2, 128), magnitude, np.float32)
    weight[:, ::2] *= -1
    actual = decode(encode(weight, form), form)
    assert np.abs(actual - weight).max() <= max(4e-6, magnitude / 4)


@pytest.mark.parametrize("form", QUANTIZED, ids=str)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_quantised_formats_refuse_what_is_not_finite(form: WeightFormat, wrong: float) -> None:
    weight = weights((2, 64))
    weight[1, 3] = wrong
    with pytest.raises(ValueError, match=f"which {form.name} cannot"):
        encode(weight, form)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_floats_keep_what_is_not_finite(name: str) -> None:
    weight = np.array([[np.nan, np.inf, -np.inf, 1]], np.float32)
    np.testing.assert_array_equal(decode(encode(weight, WeightFormat(name)), WeightFormat(name)), weight)


def test_numbers_beyond_the_range_are_refused() -> None:
    huge = np.full((1, 64), 1e9, np.float32)
    with pytest.raises(ValueError, match="beyond the range of float16"):
        encode(huge, WeightFormat("float16"))
    with pytest.raises(ValueError, match="beyond the range of float16; choose larger groups"):
        encode(huge, WeightFormat("int8", 32))
    np.testing.assert_allclose(decode(encode(huge, WeightFormat("int8")), WeightFormat("int8")), huge, rtol=1e-6)


def test_halves_go_to_the_even_number() -> None:
    weight = np.array([[127, 0.5, 1.5, -2.5]], np.float32)
    np.testing.assert_array_equal(encode(weight, WeightFormat("int8")).data, [[127, 0, 2, -2]])


def test_the_largest_int4_is_minus_eight_whatever_its_sign() -> None:
    weight = np.array([[4.0, -1.0, 2.0], [-4.0, -1.0, 2.0]], np.float32)
    encoded = encode(weight, WeightFormat("int4"))
    assert encoded.scale is not None
    np.testing.assert_array_equal(encoded.scale, [[-0.5], [0.5]])
    np.testing.assert_array_equal(encoded.data.astype(int), [[-8, 2, -4], [-8, -2, 4]])


def test_mx_scales_bring_the_largest_below_eight() -> None:
    """The scales of OCP MX v1.0, section 6.3: the largest power of two not above the largest element, over 4."""
    weight = np.zeros((3, 32), np.float32)
    weight[:, 0] = [1.0, 7.9, 12.0]
    encoded = encode(weight, WeightFormat("mxfp4", 32))
    assert encoded.scale is not None and encoded.scale.dtype == ml_dtypes.float8_e8m0fnu
    np.testing.assert_array_equal(encoded.scale.astype(np.float32).ravel(), [0.25, 1, 2])
    np.testing.assert_array_equal(encoded.data[:, 0].astype(np.float32), [4, 6, 6])


def test_nvfp4_has_one_factor_for_a_matrix() -> None:
    """The scales of NVIDIA's Model Optimizer: largest / 6, in e4m3, times the largest of the matrix / (6 * 448)."""
    weight = np.zeros((2, 3, 40), np.float32)
    weight[0, 0, [0, 20, 39]] = [6.0 * 448, -6.0 * 17, 3.0 / 512]
    weight[0, 1, 0] = 6.0 * 448 / 2**15
    weight[1] = weight[0] * 2.0**20
    encoded = encode(weight, WeightFormat("nvfp4", 16))
    assert encoded.scale_code is not None and encoded.scale_code.dtype == ml_dtypes.float8_e4m3fn
    assert encoded.scale_factor is not None and encoded.scale is not None
    np.testing.assert_array_equal(encoded.scale_factor, [[[1]] * 3, [[2.0**20]] * 3])
    codes = [[448, 16, 0], [7 / 512, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(encoded.scale_code.astype(np.float32), [codes] * 2)
    np.testing.assert_array_equal(encoded.scale[1], np.array(codes) * 2.0**20)
    np.testing.assert_array_equal(encoded.data[0, 0, [0, 20]].astype(np.float32), [6, -6])


def test_smallest_mx_scale() -> None:
    scale = np.zeros((1, 1), np.uint8).view(ml_dtypes.float8_e8m0fnu)
    data = np.ones((1, 32), ml_dtypes.float4_e2m1fn)
    np.testing.assert_array_equal(decode(Encoded(data, scale), WeightFormat("mxfp4", 32)), np.float32(2.0**-127))


def test_zero_points_move_the_range() -> None:
    weight = np.array([[0.0, 15.0], [-5.0, 10.0], [-15.0, -1.0]], np.float32)
    encoded = encode(weight, WeightFormat("int4", zero_points=True))
    assert encoded.zero_point is not None
    np.testing.assert_array_equal(encoded.zero_point.astype(int).ravel(), [0, 5, 15])
    np.testing.assert_array_equal(decode(encoded, WeightFormat("int4", zero_points=True)), weight)


def test_gaussian_weights_lose_what_the_documentation_says() -> None:
    weight = np.random.default_rng(0).normal(size=(64, 2048)).astype(np.float32)
    for form, expected in [
        (WeightFormat("bfloat16"), 0.0017),
        (WeightFormat("int8"), 0.0083),
        (WeightFormat("int4", 32), 0.086),
        (WeightFormat("int4", 128), 0.103),
        (WeightFormat("int4", 32, zero_points=True), 0.081),
        (WeightFormat("int3", 32), 0.174),
        (WeightFormat("int2", 32), 0.362),
        (WeightFormat("fp8"), 0.0265),
        (WeightFormat("mxfp4", 32), 0.114),
        (WeightFormat("nvfp4", 16), 0.095),
        (WeightFormat("fp4", 16), 0.094),
        (WeightFormat("fp4", 32), 0.101),
    ]:
        actual = np.linalg.norm(decode(encode(weight, form), form) - weight) / np.linalg.norm(weight)
        assert actual == pytest.approx(expected, rel=0.03), form


@pytest.mark.parametrize(
    "name, group, zero_points, message",
    [
        ("mxfp4", 64, False, "mxfp4 has groups of 64; expected 32"),
        ("nvfp4", 32, False, "nvfp4 has groups of 32; expected 16"),
        ("int3", 128, False, "int3 has groups of 128; expected 64 or 32"),
        ("fp8", 0, True, "fp8 has no zero points"),
        ("mxfp4", 32, True, "no zero points"),
        ("bfloat16", 0, True, "no zero points"),
        ("float16", 32, False, "no groups"),
        ("int8", -1, False, "no groups of -1"),
    ],
)
def test_formats_that_do_not_exist(name: str, group: int, zero_points: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightFormat(name, group, zero_points)


@pytest.mark.parametrize("shape, axis", [((300, 200), -1), ((2, 300, 200), -1), ((200, 300), -2)])
def test_a_block_of_fp8_has_one_scale_for_128_outputs(shape: tuple[int, ...], axis: int) -> None:
    weight = weights(shape)
    encoded = encode(weight, WeightFormat("fp8", 128), axis)
    assert encoded.scale is not None
    scale = np.moveaxis(encoded.scale, axis, -1).reshape(-1, 300, 2)
    moved = np.moveaxis(weight, axis, -1).reshape(-1, 300, 200)
    for outputs in (slice(0, 128), slice(128, 256), slice(256, 300)):
        for group, inputs in enumerate((slice(0, 128), slice(128, 200))):
            largest = np.abs(moved[:, outputs, inputs]).max((1, 2))
            np.testing.assert_allclose(
                scale[:, outputs, group], np.broadcast_to(largest[:, None] / 448, scale[:, outputs, group].shape), 1e-6
            )

"""Experts whose weights are stored in fewer bits, one constant each: loops after a quantiser of dense products."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from moec.ir.dialect import ExpertsSpec, spec_of
from moec.ir.weights.stored import weight_runs
from moec.passes.framework.base import Report

E, D, F = 4, 6, 5


def quantized(text: str, product: str = "") -> str:
    """The loop with weights that DequantizeLinear makes; with ``product`` the operator in place of Gemm."""
    decode = "DequantizeLinear <axis = 1, block_size = 3, output_dtype = 1>"
    for name in (f"{role}_{e}" for e in range(E) for role in ("up", "down")):
        text = f"decoded_{name} = {decode} ({name}_int8, {name}_scale)\n" + text.replace(
            f" {name},", f" decoded_{name},"
        )
    return text.replace("Gemm <transB = 1>", product) if product else text


def constants() -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    results = {}
    for e in range(E):
        for name, (out, size) in {"up": (F, D), "down": (D, F)}.items():
            results[f"{name}_{e}_int8"] = random.integers(-127, 128, (out, size), dtype=np.int8)
            results[f"{name}_{e}_scale"] = random.uniform(0.001, 0.01, (out, -(-size // 3))).astype(np.float32)
    return results


def test_formats_are_kept(build, texts, raise_and_compare):
    _, experts = raise_and_compare(build(quantized(texts["shuffled loop"]), **constants()))
    for position, name in ((3, "up"), (4, "down")):
        (run,) = weight_runs(experts.inputs[position])
        assert (run.format.name, run.format.group, run.count) == ("int8", 3, E)
        np.testing.assert_array_equal(run.encoded(2).data, constants()[f"{name}_2_int8"])
        np.testing.assert_array_equal(run.encoded(2).scale, constants()[f"{name}_2_scale"])


def test_nvfp4_keeps_its_codes_and_factors(build, texts, raise_and_compare):
    text, arrays, random = quantized(texts["shuffled loop"]), {}, np.random.default_rng(5)
    decode = "DequantizeLinear <axis = 1, block_size = 16, output_dtype = 1>"
    for e in range(E):
        for name, (out, size) in {f"up_{e}": (F, D), f"down_{e}": (D, F)}.items():
            arrays[f"{name}_int8"] = random.normal(size=(out, size)).astype(ml_dtypes.float4_e2m1fn)
            arrays[f"{name}_codes"] = random.uniform(0.1, 1, (out, 1)).astype(ml_dtypes.float8_e4m3fn)
            arrays[f"{name}_factor"] = np.full((out, 1), 0.3 + e, np.float32)
            text = f"{name}_scale = DequantizeLinear <axis = 1, block_size = 1> ({name}_codes, {name}_factor)\n" + text
    text = text.replace("DequantizeLinear <axis = 1, block_size = 3, output_dtype = 1>", decode)
    _, experts = raise_and_compare(build(text, **arrays))
    for position, name in ((3, "up"), (4, "down")):
        (run,) = weight_runs(experts.inputs[position])
        assert (str(run.format), run.count) == ("nvfp4", E)
        for table in ("codes", "factor"):
            actual = run.encoded(2).read("scale_code" if table == "codes" else "scale_factor")
            np.testing.assert_array_equal(actual, arrays[f"{name}_2_{table}"])


def test_integer_products_stay_integer_products(build, texts, raise_and_compare):
    product = 'moec.Linear <arithmetic = "int8", activation_group = 3>'
    _, experts = raise_and_compare(build(quantized(texts["loop"], product), **constants()))
    assert spec_of(experts, ExpertsSpec) == ExpertsSpec("gelu", "none", arithmetic="int8", activation_group=3)


def test_sibling_with_an_expert_in_other_groups_becomes_floats(build, texts, raise_and_compare):
    other = constants()
    other["up_1_scale"] = other["up_1_scale"][:, :1]
    text = quantized(texts["loop"]).replace("3, output_dtype = 1> (up_1_int8", f"{D}, output_dtype = 1> (up_1_int8")
    _, experts = raise_and_compare(build(text, **other))
    assert [weight_runs(experts.inputs[position])[0].format.name for position in (3, 4)] == ["float32", "int8"]


def test_sibling_with_two_arithmetics_stays(build, texts, raise_and_compare):
    text = quantized(texts["loop"]).replace("h_0 = Gemm <transB = 1>", 'h_0 = moec.Linear <arithmetic = "int8">')
    report = Report()
    assert [node.op_type for node in raise_and_compare(build(text, **constants()), report)] == ["Linear"]
    assert "different arithmetics" in report.remarks[0].message

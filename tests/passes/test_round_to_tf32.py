from __future__ import annotations

import numpy as np
import pytest

from moec.ir.dialect import ExpertsSpec, LinearSpec, spec_of
from moec.ir.products import rounded_to_tf32
from moec.ir.weight_operands import weight_inputs
from moec.ir.weights.stored import weight_runs

from .before_after import check
from .stored_weights import D, apply, experts_model, formats_of, last_moec_node, linear_model, relative_error

SPECS = {"gated": ExpertsSpec(), "separate": ExpertsSpec("gelu", "separate", down_transposed=True)}


def test_rounding_is_to_nearest_and_away_from_zero() -> None:
    one = 2.0**-10
    numbers = np.array([1 + one / 2, -1 - one / 2, 1 + one * 0.49, np.inf, 0, 3.0e-40], np.float32)
    rounded = rounded_to_tf32(np.append(numbers, np.float32(np.nan)))
    np.testing.assert_array_equal(rounded[:5], np.array([1 + one, -1 - one, 1, np.inf, 0], np.float32))
    assert np.isnan(rounded[6]) and not (rounded[:3].view(np.uint32) & 0x1FFF).any()


@pytest.mark.parametrize("spec", SPECS)
def test_weights_and_rows_are_rounded(spec: str) -> None:
    model, before = experts_model(SPECS[spec]), experts_model(SPECS[spec])
    report = apply(model, "round-to-tf32")
    assert 1e-5 < relative_error(model, before) < 1e-3 and relative_error(model, before, T=0) == 0
    (loss,) = report.losses
    assert 0 < loss.weight_error < 2.0**-11 and 0 < loss.output_error < 1e-3 and not report.remarks
    node = last_moec_node(model)
    assert spec_of(node, ExpertsSpec).arithmetic == "tf32" == loss.arithmetic
    for value in weight_inputs(node).values():
        (run,) = weight_runs(value)
        assert not (np.ascontiguousarray(run.encoded(0).data).view(np.uint32) & 0x1FFF).any()


def test_dense_products_become_linear() -> None:
    weight = np.random.default_rng(0).normal(size=(D, 64)).astype(np.float32)
    model, before = (linear_model("y = MatMul (x, w)", {"w": weight}) for _ in range(2))
    assert "nothing to round" in apply(model, "round-to-tf32{minimum=100000}").remarks[0].message
    apply(model, "round-to-tf32{minimum=0}")
    assert spec_of(last_moec_node(model), LinearSpec) == LinearSpec(arithmetic="tf32", transposed=True)
    assert 0 < relative_error(model, before) < 1e-3


def test_weights_keep_their_type_and_the_node_says_tf32() -> None:
    signature = "(float[T,6] x, float[T,4] logits) => (float[T,6] y)"
    check(
        "round-to-tf32",
        f"{signature} <float[4,10,6] up, float[4,6,5] down> {{ y = moec.MoE <k = 2> (x, logits, , up, down) }}",
        f"""{signature} <float[4,10,6] up_changed, float[4,6,5] down_changed> {{
            y = moec.MoE <k = 2, arithmetic = "tf32"> (x, logits, , up_changed, down_changed) }}""",
    )


def test_another_arithmetic_stays() -> None:
    check(
        "round-to-tf32",
        """(float[T,6] x, float[T,4] logits) => (float[T,6] y) <float[4,10,6] up, float[4,6,5] down> {
            y = moec.MoE <k = 2, arithmetic = "tf32"> (x, logits, , up, down) }""",
    )


def test_other_types_are_left_alone() -> None:
    model = experts_model(ExpertsSpec())
    apply(model, "cast-weights{dtype=bf16}")
    assert "expected float32 for all" in apply(model, "round-to-tf32").remarks[0].message
    assert spec_of(last_moec_node(model), ExpertsSpec).arithmetic == "bfloat16"
    assert set(map(tuple, formats_of(model).values())) == {("bfloat16",)}

from __future__ import annotations

import numpy as np
import pytest

from moec.common.errors import MoecError
from moec.ir.dialect import ExpertsSpec, LinearSpec, spec_of

from .before_after import check
from .stored_weights import (
    D,
    apply,
    expert_arrays,
    experts_model,
    formats_of,
    last_moec_node,
    linear_model,
    relative_error,
)

SPECS = {
    "gated": ExpertsSpec(),
    "separate": ExpertsSpec("gelu", "separate", down_transposed=True),
    "plain": ExpertsSpec("relu", "none", up_transposed=True),
}
BOUNDS = {"bf16": 0.01, "fp16": 0.001}
"""Largest relative error of the output that Gaussian weights may have."""
NAMES = {"bf16": "bfloat16", "fp16": "float16"}


def test_weights_are_halves_and_decoded_in_front_of_their_node() -> None:
    signature = "(float[T,6] x, float[T,4] logits) => (float[T,6] y)"
    check(
        "cast-weights{dtype=fp16}",
        f"{signature} <float[4,10,6] up, float[4,6,5] down> {{ y = moec.MoE <k = 2> (x, logits, , up, down) }}",
        f"""{signature} <float16[4,10,6] up_float16, float16[4,6,5] down_float16> {{
            up_decoded = Cast <to = 1> (up_float16)
            down_decoded = Cast <to = 1> (down_float16)
            y = moec.MoE <k = 2> (x, logits, , up_decoded, down_decoded) }}""",
    )


def test_dense_products_stay_unless_asked() -> None:
    text = "(float[T,6] x) => (float[T,4] y) <float[6,4] w> { y = MatMul (x, w) }"
    check("cast-weights{dtype=fp16}", text)
    check("cast-weights{dtype=fp16,weights=all}", text)  # it is too small


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_layer_stays_within_the_bound_of_the_format(dtype: str, spec: str) -> None:
    model, before = experts_model(SPECS[spec]), experts_model(SPECS[spec])
    report = apply(model, f"cast-weights{{dtype={dtype}}}")
    assert 0 < relative_error(model, before) < BOUNDS[dtype]
    assert relative_error(model, before, T=0) == 0
    (loss,) = report.losses
    assert 0 < loss.output_error < BOUNDS[dtype] and not report.remarks
    assert set(map(tuple, formats_of(model).values())) == {(NAMES[dtype],)}
    arithmetic = spec_of(last_moec_node(model), ExpertsSpec).arithmetic
    assert arithmetic == ("bfloat16" if dtype == "bf16" else "float32") == loss.arithmetic


def test_dense_products_are_cast_on_request() -> None:
    weight = np.random.default_rng(0).normal(size=(D, 64)).astype(np.float32)
    model, before = (linear_model("y = MatMul (x, w)", {"w": weight}) for _ in range(2))
    assert "no MoE block was raised" in apply(model, "cast-weights{dtype=bf16}").remarks[0].message
    (remark,) = apply(model, "cast-weights{dtype=bf16,weights=linears,minimum=1000000}").remarks
    assert "no dense product was found with a constant weight of 1000000 elements" in remark.message
    assert [node.op_type for node in model.graph] == ["MatMul"]
    apply(model, "cast-weights{dtype=bf16,weights=all,minimum=0}")
    assert formats_of(model) == {"weight": ["bfloat16"]}
    assert spec_of(last_moec_node(model), LinearSpec) == LinearSpec(arithmetic="bfloat16", transposed=True)
    assert 0 < relative_error(model, before) < BOUNDS["bf16"]


def test_narrower_weights_stay_as_they_are() -> None:
    model = experts_model(ExpertsSpec())
    apply(model, "quantize-experts{format=int4,down=keep},cast-weights{dtype=bf16}")
    assert formats_of(model) == {"up": ["int4/64"], "down": ["bfloat16"]}
    assert spec_of(last_moec_node(model), ExpertsSpec).arithmetic == "float32"
    assert "nothing to cast" in apply(model, "cast-weights{dtype=fp16}").remarks[0].message


def test_products_of_weights_that_came_as_bfloat16_are_computed_in_it() -> None:
    model = experts_model(ExpertsSpec())
    apply(model, "cast-weights{dtype=bf16}")
    last_moec_node(model).attributes.pop("arithmetic")  # as a file of bfloat16 weights is read
    before = model.clone()
    assert "nothing to cast" in apply(model, "cast-weights{dtype=fp16}").remarks[0].message
    (loss,) = apply(model, "cast-weights{dtype=bf16}").losses
    assert (loss.arithmetic, loss.weight_error) == ("bfloat16", 0) and loss.output_error > 0
    assert 0 < relative_error(model, before) < BOUNDS["bf16"]
    assert "nothing to cast" in apply(model, "cast-weights{dtype=bf16}").remarks[0].message


def test_infinities_stay_and_numbers_beyond_the_range_are_refused() -> None:
    arrays = expert_arrays(ExpertsSpec())
    arrays["up"][2, 0, 0] = np.inf
    (loss,) = apply(experts_model(ExpertsSpec(), arrays), "cast-weights{dtype=fp16}").losses
    assert 0 < loss.output_error < BOUNDS["fp16"], "what is not finite is not counted"
    arrays["up"][2, 0, 1] = 1e6
    apply(experts_model(ExpertsSpec(), arrays), "cast-weights{dtype=bf16}")
    with pytest.raises(MoecError, match=r"weight up of expert 2: .* is beyond the range of float16"):
        apply(experts_model(ExpertsSpec(), arrays), "cast-weights{dtype=fp16}")

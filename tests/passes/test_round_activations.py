from __future__ import annotations

import pytest

from moec.errors import MoecError
from moec.ir.dialect import ExpertsSpec, spec_of

from .before_after import check
from .stored_weights import apply, experts_model, last_moec_node, relative_error

SIGNATURE = "(float[T,64] x) => (float[T,8] y)"
STORED = "decoded = DequantizeLinear <axis = 1, block_size = 64> (w, scale)"


@pytest.mark.parametrize("group", [128, 32, 0])
def test_rows_are_rounded_and_what_that_costs_is_said(group: int) -> None:
    model, before = (experts_model(ExpertsSpec()) for _ in range(2))
    for one in (model, before):
        apply(one, "quantize-experts{format=fp8,group=128}")
    report = apply(model, f"round-activations{{group={group}}}")
    assert 0.005 < relative_error(model, before) < 0.06 and relative_error(model, before, T=0) == 0
    (loss,) = report.losses
    assert loss.weight_error == 0 and 0.005 < loss.output_error < 0.06 and not report.remarks
    spec = spec_of(last_moec_node(model), ExpertsSpec)
    assert (spec.arithmetic, spec.activation_group) == ("fp8", group) == (loss.arithmetic, group)


@pytest.mark.parametrize(
    ("stored", "why"),
    [
        ("float8e4m3fn[8,64] w, float[8,1] scale", None),
        ("int8[8,64] w, float[8,1] scale", "its weights are weight int8, its arithmetic is float32"),
    ],
)
def test_weights_in_another_format_keep_their_arithmetic(stored: str, why: str | None) -> None:
    done = ' <activation_group = 128, arithmetic = "fp8">' if why is None else ""
    remarks = check(
        "round-activations",
        f"{SIGNATURE} <{stored}> {{ {STORED} y = moec.Linear (x, decoded) }}",
        f"{SIGNATURE} <{stored}> {{ {STORED} y = moec.Linear{done} (x, decoded) }}",
    )
    messages = [remark.message for remark in remarks]
    assert messages == [] if why is None else (why in messages[0] and "nothing to round" in messages[1])


@pytest.mark.parametrize(("weights", "changes"), [("linears", True), ("experts", False), ("all", True)])
def test_only_products_that_are_meant(weights: str, changes: bool) -> None:
    stored, done = "float8e4m3fn[8,64] w, float[8,1] scale", ' <activation_group = 128, arithmetic = "fp8">'
    check(
        f"round-activations{{weights={weights}}}",
        f"{SIGNATURE} <{stored}> {{ {STORED} y = moec.Linear (x, decoded) }}",
        f"{SIGNATURE} <{stored}> {{ {STORED} y = moec.Linear{done if changes else ''} (x, decoded) }}",
    )


def test_another_arithmetic_stays() -> None:
    model = experts_model(ExpertsSpec())
    apply(model, "quantize-experts{format=fp8},round-activations{group=64}")
    assert "its arithmetic is fp8" in apply(model, "round-activations").remarks[0].message
    assert spec_of(last_moec_node(model), ExpertsSpec).activation_group == 64


@pytest.mark.parametrize("group", [-1, 2**31, 10**23])
def test_a_group_that_is_none(group: int) -> None:
    with pytest.raises(MoecError, match=rf"group is {group}; expected a positive number of at most 2147483647, or 0"):
        apply(experts_model(ExpertsSpec()), f"round-activations{{group={group}}}")

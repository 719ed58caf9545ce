from __future__ import annotations

import pytest

from moec.common.errors import MoecError
from moec.ir.dialect import ExpertsSpec, spec_of

from .before_after import check, model_of
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


@pytest.mark.parametrize("before", ["", ' <activation_group = 32, arithmetic = "int8">'])
@pytest.mark.parametrize(
    ("arithmetic", "group", "takes"), [("mxfp8", 32, True), ("mxfp4", 32, True), ("nvfp4", 16, False)]
)
def test_small_floats_with_powers_of_two_as_scales(arithmetic: str, group: int, takes: bool, before: str) -> None:
    text = f"{SIGNATURE} <float4e2m1[8,64] w, float8e8m0[8,2] scale> {{{{ decoded = DequantizeLinear <axis = 1, "
    text += "block_size = 32, output_dtype = 1> (w, scale) y = moec.Linear{} (x, decoded) }}"
    done = f' <activation_group = {group}, arithmetic = "{arithmetic}">'
    after = done if takes else before
    remarks = check(f"round-activations{{format={arithmetic}}}", text.format(before), text.format(after))
    assert takes == (not remarks)
    if not takes:
        assert "its weights are weight mxfp4" in remarks[0].message and "expected nvfp4 and" in remarks[0].message


@pytest.mark.parametrize(("stored", "arithmetic", "group"), [("mxfp4", "mxfp8", 32), ("nvfp4", "nvfp4", 16)])
def test_experts_whose_rows_are_small_floats(stored: str, arithmetic: str, group: int) -> None:
    model, before = (experts_model(ExpertsSpec()) for _ in range(2))
    for one in (model, before):
        apply(one, f"quantize-experts{{format={stored}}}")
    assert spec_of(last_moec_node(before), ExpertsSpec).arithmetic == "int8"
    report = apply(model, f"round-activations{{format={arithmetic}}}")
    spec = spec_of(last_moec_node(model), ExpertsSpec)
    assert (spec.arithmetic, spec.activation_group) == (arithmetic, group) and not report.remarks
    assert 0.005 < relative_error(model, before) < (0.06 if arithmetic == "mxfp8" else 0.3)


def test_rows_of_4_bits_choose_no_experts() -> None:
    text = (
        "(float[T,64] x) => (float[T,2] weights, int32[T,2] experts) <float4e2m1[8,64] w, float8e8m0[8,2] scale> {{ "
        "w_ = DequantizeLinear <axis = 1, block_size = 32, output_dtype = 1> (w, scale) "
        "logits = moec.Linear{} (x, w_) weights, experts = moec.Route <k = 2> (logits) }}"
    )
    for arithmetic, stays in (("mxfp4", True), ("mxfp8", False)):
        done = "" if stays else ' <activation_group = 32, arithmetic = "mxfp8">'
        remarks = check(f"round-activations{{format={arithmetic}}}", text.format(""), text.format(done))
        assert any("makes the logits of a router" in remark.message for remark in remarks) == stays


def test_another_arithmetic_stays() -> None:
    model = experts_model(ExpertsSpec())
    apply(model, "quantize-experts{format=fp8},round-activations{group=64}")
    assert "its arithmetic is fp8" in apply(model, "round-activations").remarks[0].message
    assert spec_of(last_moec_node(model), ExpertsSpec).activation_group == 64


@pytest.mark.parametrize(
    ("stored", "decoded", "group"),
    [
        ("int8[8,64] w, float[8,1] scale", "<axis = 1, block_size = 64>", 64),
        ("int4[8,256] w, float16[8,8] scale", "<axis = 1, block_size = 32, output_dtype = 1>", 32),
        ("float4e2m1[8,64] w, float8e8m0[8,2] scale", "<axis = 1, block_size = 32, output_dtype = 1>", 32),
    ],
)
def test_rows_beside_weights_of_up_to_8_bits(stored: str, decoded: str, group: int) -> None:
    size = stored.split(",")[1].split("]")[0]
    text = "(float[T,{}] x) => (float[T,8] y) <{}> {{ w_ = DequantizeLinear {} (w, scale) y = moec.Linear{} (x, w_) }}"
    done = f' <activation_group = {group}, arithmetic = "int8">'
    remarks = check(
        "round-activations{format=int8}",
        text.format(size, stored, decoded, ""),
        text.format(size, stored, decoded, done),
    )
    assert remarks == []


@pytest.mark.parametrize(
    ("stored", "node"),
    [
        ("float16[8,64] w", "w_ = Cast <to = 1> (w)"),
        ("float8e4m3fn[8,64] w, float[8,1] scale", "w_ = DequantizeLinear <axis = 1, block_size = 64> (w, scale)"),
    ],
)
@pytest.mark.parametrize("optional", [False, True])
def test_weights_that_integer_products_do_not_take(stored: str, node: str, optional: bool) -> None:
    text = f"{SIGNATURE} <{stored}> {{ {node} y = moec.Linear (x, w_) }}"
    left, nothing = check(f"round-activations{{format=int8,optional={optional}}}", text, text)
    assert "expected integers or 4-bit floats of up to 8 bits and float32" in left.message
    assert nothing.severity == ("note" if optional else "warning")


def test_the_product_that_a_router_chooses_by_stays() -> None:
    text = (
        "(float[T,64] x) => (float[T,2] weights, int32[T,2] experts, float[T,8] y)"
        " <int8[8,64] w, float[8,1] scale, int8[8,64] v> {{ "
        "w_ = DequantizeLinear <axis = 1, block_size = 64> (w, scale) "
        "v_ = DequantizeLinear <axis = 1, block_size = 64> (v, scale) "
        "logits = moec.Linear (x, w_) weights, experts = moec.Route <k = 2> (logits) "
        "y = moec.Linear{} (x, v_) }}"
    )
    done = ' <activation_group = 64, arithmetic = "int8">'
    (remark,) = check("round-activations{format=int8}", text.format(""), text.format(done))
    assert "makes the logits of a router" in remark.message


def test_errors_are_measured_in_a_few_layers_of_many() -> None:
    count = 20
    nodes = "".join(f"y{i} = moec.Linear (x, decoded) " for i in range(count))
    outputs = ", ".join(f"float[T,8] y{i}" for i in range(count))
    model = model_of(f"(float[T,64] x) => ({outputs}) <int8[8,64] w, float[8,1] scale> {{ {STORED} {nodes} }}")
    report = apply(model, "round-activations{format=int8}")
    assert len(report.losses) == 8 and report.losses[0].layer != report.losses[-1].layer
    assert all(node.attributes["arithmetic"].value == "int8" for node in model.graph if node.op_type == "Linear")


@pytest.mark.parametrize("group", [-1, 2**31, 10**23])
def test_a_group_that_is_none(group: int) -> None:
    with pytest.raises(MoecError, match=rf"group is {group}; expected a positive number of at most 2147483647, or 0"):
        apply(experts_model(ExpertsSpec()), f"round-activations{{group={group}}}")

from __future__ import annotations

import pytest

from moec.common.errors import MoecError
from moec.passes.framework.shorthand import with_arithmetic, with_formats
from moec.passes.pipeline import parse, print_pipeline


@pytest.mark.parametrize(
    "experts, linears, expected",
    [
        (None, None, "O2"),
        ("int4", None, "O2,quantize-experts{format=int4}"),
        (
            "int4/32z",
            "int8",
            "O2,quantize-experts{format=int4,group=32,zero_points=true},quantize-linears{format=int8}",
        ),
        ("bf16", "fp16", "O2,cast-weights{dtype=bf16},cast-weights{dtype=fp16,weights=linears}"),
        ("tf32", "tf32", "O2,round-to-tf32{weights=experts},round-to-tf32{weights=linears}"),
        ("nvfp4", None, "O2,quantize-experts{format=nvfp4}"),
        (None, "mxfp4", "O2,quantize-linears{format=mxfp4}"),
        (
            "fp8/128",
            "int3/32z",
            "O2,quantize-experts{format=fp8,group=128},quantize-linears{format=int3,group=32,zero_points=true}",
        ),
    ],
)
def test_formats_become_passes_behind_all_others(experts: str | None, linears: str | None, expected: str) -> None:
    text = with_formats("O2", experts, linears)
    assert text == expected
    assert print_pipeline(parse(text)).endswith(expected.removeprefix("O2"))


def test_an_empty_pipeline_gets_no_leading_comma() -> None:
    assert with_formats("", "int8") == "quantize-experts{format=int8}"


@pytest.mark.parametrize("text", ["int7", "int4/", "int4z/32", "bf16/32", ""])
def test_formats_that_do_not_exist(text: str) -> None:
    with pytest.raises(
        MoecError,
        match=r"linears: no format .*; expected tf32, bf16, fp16, int8, int6, .*, mxfp4, nvfp4, fp4 or fp8",
    ):
        with_formats("O2", linears=text)


def test_activations_are_rounded_behind_what_stores_weights() -> None:
    assert with_arithmetic("O2", None) == "O2"
    text = with_arithmetic(with_formats("O2", "fp8/128"), "fp8")
    assert text == "O2,quantize-experts{format=fp8,group=128},round-activations{format=fp8}"
    assert "round-activations" in print_pipeline(parse(text))


@pytest.mark.parametrize("text", ["int8", "fp9", ""])
def test_arithmetics_that_nobody_asks_for(text: str) -> None:
    expected = "expected fp8, mxfp8, mxfp4 or nvfp4; int8 and tf32 follow from formats"
    with pytest.raises(MoecError, match=f"arithmetic: '{text}'; {expected}"):
        with_arithmetic("O2", text)

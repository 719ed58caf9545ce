"""Experts of any form, as graphs over dispatched rows: the emulated GPU against dense numpy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.ir import interpreter
from moec.ir.dialect import DispatchSpec
from moec.ir.semantics_dispatch import dispatch
from moec.ir.text import parse_model
from moec.passes import pipeline
from moec.targets.cuda.estimates import crossovers

from ...products import thinned
from ..dispatched_cases import FORMS, E, choices, expected, inputs, k, model_of


@thinned("name", FORMS, 4)
def test_a_gpu_computes_what_dense_experts_do(emulated, name):
    run = emulated(model_of(FORMS[name]))
    cases = [inputs(7, ids) for ids in choices(7)] + [inputs(tokens, next(choices(tokens))) for tokens in (0, 1, 25)]
    for feeds in cases:
        np.testing.assert_allclose(run(feeds)["y"], expected(FORMS[name], feeds), rtol=1e-4, atol=1e-4)


def test_rows_of_many_pairs(monkeypatch, emulated):
    """Pairs are sorted in one launch and in three; the last expert has no pair."""
    monkeypatch.setattr(crossovers, "_ONE_LAUNCH_PAIRS", 30 * k)
    run = emulated(dispatch_model())
    for tokens in (0, 1, 30, 31, 300):
        for ids in (np.minimum(ids, E - 2) for ids in choices(tokens)):
            actual = run({"e": ids.astype(np.int32)})
            for name, array in zip("optn", dispatch(DispatchSpec(E), ids), strict=True):
                np.testing.assert_array_equal(actual[name], array)


def dispatch_model() -> ir.Model:
    return parse_model(
        f"""<ir_version: 11, opset_import: ["" : 24, "moec" : 1]>
        g (int32[T,{k}] e) => (int32[{E + 1}] o, int32[T,{k}] p, int32[R] t, int32[R] n) {{
           o, p, t, n = moec.Dispatch <expert_count = {E}> (e)
        }}"""
    )


@pytest.mark.nightly
def test_products_of_float16_weights_with_float32_tokens(program_of, emulated):
    model = model_of(FORMS["three layers"])
    pipeline.run(model, pipeline.parse("cast-weights{weights=experts,dtype=fp16}"))
    feeds = inputs(9, next(choices(9)))
    reference = interpreter.run(model, feeds, dtype=np.float64)["y"]
    program = program_of(model)
    np.testing.assert_allclose(emulated(program)(feeds)["y"], reference, rtol=1e-4, atol=1e-4)
    assert "float16" in {weight.dtype for weight in program.weights}


@pytest.mark.nightly
def test_experts_in_formats_of_their_own(emulated):
    passes = "quantize-experts{format=int4,group=32,experts=0+3}"
    model = model_of(FORMS["three layers"])
    pipeline.run(model, pipeline.parse(passes))
    feeds = inputs(30, next(choices(30)))
    reference = interpreter.run(model, feeds, dtype=np.float64)["y"]
    y = emulated(model)(feeds)["y"]
    assert np.linalg.norm(y - reference) <= 2e-2 * np.linalg.norm(reference)

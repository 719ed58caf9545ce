"""The harness of the benchmark of one layer: inputs, rounding, results that survive, tables, peers that fail."""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))

import formats
import layers
import report
import worker
from results import Results

LAYER = layers.Layer("tiny", 64, 32, 16, 4)


def chosen(case: layers.Case) -> np.ndarray:
    return layers.chosen_experts(LAYER, case.logits)[0]


@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_cases_have_equal_loads_and_other_experts(tokens):
    cases = layers.make_cases(LAYER, tokens, most=3)
    loads = [sorted(np.bincount(chosen(case).ravel(), minlength=LAYER.experts)) for case in cases]
    assert len(cases) == 3
    assert loads[0] == loads[1] == loads[2]
    assert not np.array_equal(chosen(cases[0]), chosen(cases[1]))


def test_single_tokens_share_no_expert_with_the_one_before():
    cases = layers.make_cases(LAYER, 1, most=16)
    assert len(cases) == 4
    assert sorted(expert for case in cases for expert in chosen(case)[0]) == list(range(LAYER.experts))


def test_reference_is_the_plain_formula(tmp_path):
    weights = layers.Weights(LAYER, tmp_path)
    weights.make()
    gate, up, down = (weights.for_all_experts(weights.projection(name)) for name in ("gate", "up", "down"))
    (case, *_) = layers.make_cases(LAYER, 3, most=2)
    ids, scores = layers.chosen_experts(LAYER, case.logits)
    hidden = np.einsum("tkfd,td->tkf", gate[ids], case.x)
    hidden = hidden / (1 + np.exp(-hidden)) * np.einsum("tkfd,td->tkf", up[ids], case.x)
    expected = np.einsum("tkdf,tkf,tk->td", down[ids], hidden, scores)
    np.testing.assert_allclose(layers.reference(weights, case, 2), expected[:2], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("bits", "group"), [(8, 0), (4, 32)])
def test_integers_are_within_half_a_step(bits, group):
    weights = np.random.default_rng(0).standard_normal((3, 5, 64), dtype=np.float32)
    numbers, scales = formats.round_integers(weights, bits, group, np.float32)
    steps = np.repeat(scales, group or 64, axis=-1)
    assert np.abs(numbers * steps - weights).max() <= steps.max() / 2 * 1.001


def test_mxfp4_keeps_what_it_can_hold():
    exact = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6] * 4, np.float32) * np.float32(2**-7)
    elements, exponents = formats.round_mxfp4(exact)
    np.testing.assert_array_equal(elements.astype(np.float32) * 2.0 ** (int(exponents[0]) - 127), exact)
    assert formats.pack_pairs(elements.view(np.uint8)).shape == (16,)


def test_what_is_measured_is_not_measured_again(tmp_path):
    path = tmp_path / "folder" / "cells.json"
    Results(path).add("granite", "int8", 4, {"figure": 1})
    resumed = Results(path)
    assert resumed.missing("granite", "int8", [1, 4, 16]) == [1, 16]
    assert resumed.missing("granite", "fp32", [4]) == [4]
    resumed.add("granite", "fp32", 4, {"figure": 2})
    assert [cell["figure"] for cell in json.loads(path.read_text())] == [1, 2]


def cell(**contestants: tuple[float, float]) -> dict:
    """Make a cell from minimal milliseconds and bits by name."""
    figures = {
        name: {"min_ms": ms, "median_ms": 2 * ms, "error": 0.1, "bits": bits}
        for name, (ms, bits) in contestants.items()
    }
    peaks = [
        {"arithmetic": "float32", "unit": "AVX2", "gop_per_s": 10.0},
        {"arithmetic": "int8", "unit": "AMX", "gop_per_s": 1e9},
    ]
    roofline = {"threads": 2, "read_gb_per_s": {"pages": 1.0}, "peaks": peaks}
    return {
        "active_experts": 8, "read_gb_per_s": 10.0, "contestants": figures, "absent": {"kt": "it is away"},
        "roofline": roofline,
    }  # fmt: skip


def test_peers_are_compared_by_bits_per_weight():
    data = {"layer": "granite", "format": "int4-g32", "tokens": 1}
    measured = report.Cell({**data, **cell(moec=(2.0, 4.5), dense=(3.0, 4.4), sparse=(1.0, 4.1))})
    assert measured.best_peer is not None and measured.best_peer.name == "dense"
    assert measured.speed_up == pytest.approx(1.5)


def test_share_is_of_the_bandwidth_between_the_runs():
    measured = report.Cell({"layer": "granite", "format": "int4-g32", "tokens": 1, **cell(moec=(2.0, 4.0))})
    assert measured.moec is not None
    bytes_read = 8 * layers.LAYERS["granite"].weights_per_expert / 2
    assert measured.share(measured.moec) == pytest.approx(bytes_read / 10e9 / 2e-3)
    operations = layers.LAYERS["granite"].operations(1)
    assert measured.share(measured.moec, without="AMX") == pytest.approx(operations / 10e9 / 2e-3)


def test_tables_say_who_is_absent(tmp_path):
    results = Results(tmp_path / "cells.json")
    results.add("granite", "int8", 1, cell(moec=(2.0, 8.0), vllm=(3.0, 8.0)))
    results.add("granite", "int8", 4, cell(vllm=(3.0, 8.0)))  # moec failed here
    report.write(results, tmp_path / "table")
    text = (tmp_path / "table.md").read_text()
    assert "| 1 | 2 / 4 | vllm | 3 / 6 | **1.50** |" in text
    assert "| 4 | - | vllm |" in text
    assert "kt: it is away" in text


def test_a_peer_that_crashes_is_reported():
    lost = worker.Worker("no_such_peer", "", threads=1)
    with pytest.raises(worker.FailedError, match="ended with exit code 1"):
        lost.build("granite", "fp32", pathlib.Path())
    lost.close()

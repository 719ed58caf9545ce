"""The check of an operator by onnxruntime: another layout, another number or no kernel at all leaves the experts."""

from __future__ import annotations

import numpy as np
import pytest

from moec.passes.export import operator_check, use_moe, use_qmoe
from moec.passes.export.moe_operator import in_turns

from .test_use_moe import D, F, cases, layer, operators

FAULTS = {
    "halves": lambda rows: np.concatenate(rows),
    "up first": lambda rows: in_turns(rows[::-1]),
    "another number": lambda rows: in_turns(rows) * np.float32(1.001),
    "not a number": lambda rows: np.full_like(in_turns(rows), np.nan),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_weights_leave_the_experts(exported, normal, monkeypatch, fault):
    """The results stay right, because the experts become a loop."""
    monkeypatch.setattr(use_moe, "in_turns", lambda rows: (FAULTS[fault] if len(rows) > 1 else in_turns)(rows))
    model, report = exported(layer(), *cases(normal))
    assert operators(model) == []
    (remark,) = report.remarks
    assert remark.message.startswith("onnxruntime computes com.microsoft.MoE otherwise: by ")


def test_wrong_packing_leaves_the_experts(exported, normal, monkeypatch):
    right = use_qmoe.packed_layer

    def wrong(write, weights, packing, layer):
        tables = right(write, weights, packing, layer)
        return {**tables, "scales": write.add("Cast", tables["scales"], to=10, label="narrow")}

    monkeypatch.setattr(use_qmoe, "packed_layer", wrong)
    model, report = exported(layer(), *cases(normal), passes="quantize-experts{format=int8,group=0},keep-rows")
    assert operators(model) == []
    assert "onnxruntime" in report.remarks[0].message


def test_an_operator_that_onnxruntime_does_not_run_leaves_the_experts(exported, normal, monkeypatch):
    monkeypatch.setattr("moec.passes.export.moe_operator.moe_attributes", lambda spec: {"activation_type": "none"})
    model, report = exported(layer(), *cases(normal))
    assert operators(model) == []
    assert "onnxruntime does not run com.microsoft.MoE with its weights" in report.remarks[0].message


@pytest.mark.parametrize("passes", ["", "quantize-experts{format=int8,group=0},keep-rows"])
def test_experts_that_are_too_large_for_the_check_are_named(exported, normal, monkeypatch, passes):
    """One byte more, and they are checked."""
    size = 4 * 3 * D * F
    for most, checked in ((size - 1, False), (size, True)):
        monkeypatch.setattr(operator_check, "_MOST_BYTES", most)
        model, report = exported(layer(), *cases(normal), passes=passes)
        assert operators(model) == ["QMoE" if passes else "MoE"]
        warnings = [remark.message for remark in report.remarks if remark.severity == "warning"]
        assert warnings == (
            []
            if checked
            else [
                f"onnxruntime was not asked to compute its experts: one takes "
                f"{size / 1e9:.1f} GB, and the check 1 GB at most"
            ]
        )

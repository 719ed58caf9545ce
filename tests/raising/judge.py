"""Verdicts on models with MoE blocks: raised, refused with a reason, left in silence, or worse."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir

from moec.common.errors import DefectError, MoecError
from moec.frontend.onnx.importer import import_model
from moec.ir import dialect, interpreter
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.passes.raise_moe import RaiseMoE

from .edit import Array

Status = Literal["raised", "refused", "silent", "wrong", "crash", "unequal"]
STATUSES: tuple[Status, ...] = ("raised", "refused", "silent", "wrong", "crash", "unequal")
Feeds = list[dict[str, Array]]
EXACT, ROUNDED = 1e-4, 3e-2


@dataclasses.dataclass(frozen=True)
class Verdict:
    """``refused``: not raised, with a remark that says why, or refused because the model is not the intended one;
    ``silent``: not raised, without a remark; ``wrong``: the result differs from that before the passes; ``crash``: an
    error;
    ``unequal``: the rewritten model already differs from the original, so that nothing was judged."""

    status: Status
    detail: str = ""


def judge(model: onnx.ModelProto, feeds: Feeds, expected: list[list[Array]], blocks: int, rounds: bool) -> Verdict:
    """Judge a model. ``expected`` are the outputs for each of ``feeds``; ``blocks``: the number of MoE blocks to
    raise."""
    tolerance = ROUNDED if rounds else EXACT
    report, different, before, after = Report(), "", [], []
    try:
        graph = import_model(model)
        try:
            standard = import_model(model)  # the interpreter knows no operators of onnxruntime's own
            pipeline.run(standard, pipeline.parse("infer-shapes,decompose-contrib"))
            before = list(_computed(standard, feeds))
            different = _difference(before, expected, tolerance)
        except interpreter.EvaluationError as error:
            different = str(error)
        pipeline.run(graph, pipeline.parse("O2"), report)
        if not different:
            after = list(_computed(graph, feeds))
    except Exception as error:  # whatever it is, it is what there is to tell of this model
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        refused = different and isinstance(error, MoecError) and not isinstance(error, DefectError)
        return Verdict("refused" if refused else "crash", said)
    if different:
        return Verdict("unequal", f"before all passes, {different}")
    different = _difference(after, before, tolerance)
    if different:
        return Verdict("wrong", different)
    if sum(dialect.is_moec(node, "MoE") or dialect.is_moec(node, "Route") for node in graph.graph) >= blocks:
        return Verdict("raised")
    reasons = [remark for remark in report.remarks if remark.pass_name == RaiseMoE.name and "left as" in remark.message]
    if reasons:
        return Verdict("refused", f"{reasons[0].subject}: {reasons[0].message}")
    return Verdict("silent")


def outputs_of(model: onnx.ModelProto, feeds: Feeds) -> list[list[Array]]:
    """Outputs of onnxruntime without optimisation. Its errors pass through."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [session.run(None, arrays) for arrays in feeds]


def _computed(graph: ir.Model, feeds: Feeds) -> Iterator[list[Array]]:
    for arrays in feeds:
        yield list(interpreter.run(graph, arrays).values())


def _difference(result: list[list[Array]], expected: list[list[Array]], tolerance: float) -> str:
    """The first output that differs; empty if none does. If numbers are rounded, one row in ten may differ, and at
    least one in any case, because a token near a tie goes to another expert."""
    for run, (arrays, expected_arrays) in enumerate(zip(result, expected, strict=True)):
        for place, (array, right) in enumerate(zip(arrays, expected_arrays, strict=True)):
            if array.shape != right.shape:
                return f"output {place} of run {run} is {list(array.shape)}, expected {list(right.shape)}"
            distance = np.abs(array.astype(np.float64) - right.astype(np.float64)).reshape(-1, right.shape[-1])
            rows = distance.max(axis=1) > tolerance * max(1.0, float(np.abs(right).max(initial=0)))
            if not np.isfinite(distance).all() or rows.sum() > (max(1, 0.1 * len(rows)) if tolerance > EXACT else 0):
                return f"output {place} of run {run} differs by {distance.max():.1e}"
    return ""

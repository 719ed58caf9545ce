"""``--verify-each``: check after every pass that changed something that the graph still computes the same.

The inputs cover the decisions of the imported graph (:mod:`moec.checking.covering`). The reference interpreter runs the
graphs in float64, so that the order of sums does not matter. The allowed difference depends on the pass's exactness:

- After an exact or reassociating pass, every output has to match within the tolerance of ``moec verify``, because
  folded constants are rounded.
- After a lossy pass, half of the elements of each output may differ by at most the sum of the losses that it reported
  for all layers, as a share of the output's root mean square. The other half is free: where a router is nearly
  undecided, a token goes to another expert, and then its elements may be anything.
- After ``last-logits``, only the last position of the logits is compared.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

import numpy as np

from moec.checking.comparison import compare, tolerance_of
from moec.checking.covering import Covering, Inputs, covering_inputs
from moec.common.errors import DefectError, InputError, MoecError, one_line
from moec.passes.last_logits import LastLogits

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.passes.framework.base import Pass, Report

NAME = "verify-each"
MOST_SECONDS = 3.0
"""Seconds that all runs of one graph may take."""


@dataclasses.dataclass
class _CheckedInputs:
    """Inputs, and the model's outputs on them before the next pass; None where it could not be run."""

    inputs: Inputs
    outputs: Inputs | None = None

    @property
    def is_empty(self) -> bool:
        return any(0 in array.shape for array in self.inputs.values())

    def __str__(self) -> str:
        """Describe shapes and the largest magnitude of floats, as in ``x[7, 8] up to 1e+03``."""
        return ", ".join(f"{name}{list(array.shape)}{_magnitude(array)}" for name, array in self.inputs.items())


def _magnitude(array: np.ndarray) -> str:
    is_whole = array.dtype.kind in "iub" or not array.size
    return "" if is_whole else f" up to {np.abs(array.astype(np.float64)).max():.0e}"


class PassCheck:
    """Check of a model while passes change it: :meth:`after` has to be called after each of them."""

    def __init__(self, model: ir.Model, report: Report) -> None:
        """Select inputs, run the model on them, and note their coverage of its decisions in the report.

        The report has a warning where there are no inputs, or the interpreter takes too long for all of them.
        """
        self._model, self._report = model, report
        self._losses = len(report.losses)
        self._tolerance = tolerance_of(model)
        self._cases: list[_CheckedInputs] = []
        try:
            covering = _covering(model)
        except MoecError as error:  # no sizes within the guards
            report.warn(NAME, "model", f"nothing is compared after passes: {one_line(error)}")
            return
        for line in covering.coverage.lines():
            report.note(NAME, "model", line)
        self._cases = self._affordable(covering.inputs)
        if len(self._cases) < len(covering.inputs):
            kept = f"{len(self._cases)} of {len(covering.inputs)} inputs"
            report.warn(NAME, "model", f"compared on {kept} after each pass: the interpreter takes too long for more")

    def _affordable(self, inputs: list[Inputs]) -> list[_CheckedInputs]:
        start, cases = time.perf_counter(), []
        for case in map(_CheckedInputs, inputs):
            self._run([case])
            cases.append(case)
            if time.perf_counter() - start > MOST_SECONDS:
                break
        return cases

    def after(self, applied: Pass, _seconds: float, changed: bool) -> None:
        """Compare the model with itself before the pass. Raises DefectError, naming the pass, the output and the
        inputs, where they differ."""
        losses, self._losses = self._report.losses[self._losses :], len(self._report.losses)
        if not changed:
            return
        before = [case.outputs for case in self._cases]
        failures = self._run(self._cases)
        for case, want, failure in zip(self._cases, before, failures, strict=True):
            if want is None:
                continue
            if case.outputs is None and isinstance(applied, LastLogits) and case.is_empty:
                continue  # without tokens there is no last one
            if case.outputs is None:
                raise DefectError(f"after {applied.name}: the model cannot be run on {case} any more: {failure}")
            bound = sum(loss.output_error for loss in losses) if applied.exactness == "lossy" else None
            for name, expected in want.items():
                computed = case.outputs[name]
                kept = expected[:, -1:] if isinstance(applied, LastLogits) and computed.ndim == 3 else expected
                problem = self._difference(name, computed, kept if kept.shape == computed.shape else expected, bound)
                if problem is not None:
                    raise DefectError(f"after {applied.name}: output {name!r} on {case} {problem}")

    def _difference(self, name: str, actual: np.ndarray, expected: np.ndarray, bound: float | None) -> str | None:
        """Describe how an output differs from the expected one. Returns None where it matches."""
        compared = compare(name, actual, expected, self._tolerance)
        if compared.matches:
            return None
        if compared.absolute is None:
            return compared.note
        if bound is None:
            return f"differs by {compared.absolute:.1e}; expected at most {self._tolerance:g} of its largest element"
        typical = _typical_difference(actual, expected)
        if typical <= bound:
            return None
        return f"differs by {typical:.1e} of its size in half of its elements; the losses add up to {bound:.1e}"

    def _run(self, cases: list[_CheckedInputs]) -> list[str]:
        """Run the model on all cases. Returns a reason for each case that failed, and an empty text for the others."""
        from moec.ir.interpreter import EvaluationError, runner

        try:
            run = runner(self._model, dtype=np.float64)
        except (ValueError, EvaluationError) as error:
            for case in cases:
                case.outputs = None
            return [one_line(error)] * len(cases)
        failures = []
        for case in cases:
            try:
                case.outputs, failure = run(case.inputs), ""
            except (ValueError, EvaluationError, MemoryError) as error:
                case.outputs, failure = None, one_line(error)
            failures.append(failure)
        return failures


def _typical_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Median of the differences of finite elements, as a share of the root mean square of the expected ones."""
    finite = np.isfinite(expected)
    size = np.sqrt(np.mean(np.square(expected[finite]))) if finite.any() else 0.0
    gap = np.abs(actual - expected)[finite]
    return float(np.median(gap) / size) if size else float(gap.max(initial=0.0))


def _covering(model: ir.Model) -> Covering:
    """Make covering inputs within the model's guards. Operators of onnxruntime may fix sizes that the model leaves
    open."""
    from moec.common.specs import tensor_specs
    from moec.frontend.onnx.conditions import conditions_of, settled
    from moec.passes import pipeline
    from moec.passes.shapes.input_sizes import input_sizes
    from moec.runtime.inputs import InputCheck

    narrowed = model.clone()
    pipeline.run(narrowed, pipeline.parse("infer-shapes,decompose-contrib"))
    specs = tensor_specs(narrowed.graph.inputs)
    guards = settled(conditions_of(model).guards, tensor_specs(model.graph.inputs), specs)
    check = InputCheck(specs, guards=guards)

    def accepts(inputs: Inputs) -> bool:
        try:
            check(inputs)
        except InputError:
            return False
        return True

    return covering_inputs(model, specs, input_sizes(model), guards, accepts)

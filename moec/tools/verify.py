"""Checks of a compiled model against onnxruntime on the original model, or the reference interpreter where that
fails."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moec.checking.comparison import TOLERANCES, Difference, compare, tolerance_of
from moec.checking.covering import Coverage, Covering, cover, covering_inputs
from moec.common.arguments import check_kind, check_path
from moec.common.dtypes import dtype_of
from moec.common.errors import InputError, MoecError, reporting
from moec.ir.rounding import arithmetics_of
from moec.tools.reference import Reference, expected_outputs, has_no_interface

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.common.specs import TensorSpec
    from moec.runtime.model import CompiledModel
    from moec.tools.spread import Spreads

# Tolerances where no spread is known, by the type that activations are rounded to. A number between two values of that
# type may be rounded to either, depending on the last bit of earlier results.
ROUNDED_TOLERANCES = {"float32": 1e-4, "tf32": 5e-3, "bfloat16": 2e-2, "int8": 2e-2, "fp8": 3e-2}
ROUNDED_TOLERANCES |= {"mxfp8": 3e-2, "mxfp4": 1.5e-1, "nvfp4": 1.5e-1}


@dataclasses.dataclass(frozen=True)
class Case:
    """One set of inputs: their shapes and the differences of every output, or the reason why it could not be run.
    ``note``: reason why the reference interpreter ran it instead of onnxruntime."""

    inputs: dict[str, tuple[int, ...]]
    differences: list[Difference]
    failure: str | None = None
    note: str | None = None

    @property
    def matches(self) -> bool:
        return all(difference.matches for difference in self.differences)


@dataclasses.dataclass(frozen=True)
class Verification:
    """All cases, and the tolerance that was applied.

    ``rounded``: whether passes rounded weights, so that the rounded model is the reference. ``spread``: whether an
    output beyond the tolerance matches within the spread of right results. ``refused``: guards for which sizes outside
    were tried and refused. ``coverage``: the original model's decisions that the cases covered.
    """

    tolerance: float
    cases: list[Case]
    rounded: bool = False
    spread: bool = False
    refused: list[str] = dataclasses.field(default_factory=list)
    coverage: Coverage = dataclasses.field(default_factory=lambda: Coverage(0, []))

    def __repr__(self) -> str:
        verdict = f"{'matches' if self.matches else 'differs'} within {self.tolerance:g}"
        return f"<Verification: {verdict} in {len(self.cases)} cases, {len(self.failures)} not run>"

    @property
    def matches(self) -> bool:
        """Whether every case that could be run matches."""
        return all(case.matches for case in self.cases)

    @property
    def failures(self) -> list[str]:
        """Reasons why some cases could not be run."""
        return [case.failure for case in self.cases if case.failure is not None]

    @property
    def notes(self) -> list[str]:
        """Reasons why onnxruntime did not run some of the cases that the reference interpreter ran."""
        return list(dict.fromkeys(case.note for case in self.cases if case.note is not None))

    def as_data(self) -> dict[str, Any]:
        coverage = {**dataclasses.asdict(self.coverage), "share": self.coverage.share}
        return {"matches": self.matches, **dataclasses.asdict(self), "coverage": coverage}


@reporting("verifying")
def verify(
    model_path: str | os.PathLike[str],
    compiled: CompiledModel,
    inputs: Mapping[str, np.ndarray] | None = None,
    tolerance: float | None = None,
) -> Verification:
    """Run the compiled and the original model and compare their outputs.

    Both run on ``inputs``, or on random inputs of several sizes (1 and odd ones among them) and on inputs that take
    further sides of the model's decisions.

    An output matches when the largest absolute difference is within ``tolerance`` times the larger of 1 and the largest
    expected magnitude; integers and booleans must be equal. The default tolerance is that of float32
    (:data:`moec.checking.comparison.TOLERANCES`). With it, an output of a model that computes in 16 bits or rounds
    activations (:mod:`moec.ir.rounding`) also matches where it is as near as the reference interpreter's own results
    are to one another (:mod:`moec.tools.spread`). Where the interpreter cannot run such a model, or not in a few
    seconds, the tolerance is that of its narrowest float type or of the type that its rows are rounded to
    (:data:`ROUNDED_TOLERANCES`).

    Where passes rounded weights, they are applied to the original model, too, and the reference interpreter computes
    the expected outputs from the result. Their distance to the original model's is measured, but not judged: where a
    router is nearly undecided, it may be anything.

    Models that onnxruntime cannot load or run, among them folders of Hugging Face models and GGUF files, run in the
    reference interpreter in float64, and the case has a note.

    Raises MoecError for a model that cannot be imported, an artifact of another model as far as inputs tell, and when
    the artifact refuses inputs that the model accepts; a case that neither reference can run is recorded as such.
    """
    from moec.compiling.compiler import import_model
    from moec.runtime.model import CompiledModel

    check_path("model_path", model_path)
    check_kind("compiled", compiled, CompiledModel, "a compiled model: what moec.compile and moec.load return")
    check_kind("inputs", inputs, (Mapping, type(None)), "a mapping of arrays by name, or None")
    check_kind("tolerance", tolerance, (int, float, type(None)), "a number, or None")
    if tolerance is not None and not tolerance >= 0:
        raise MoecError(f"tolerance is {tolerance}; expected a number that is not negative")
    model = import_model(model_path, cache=bool(compiled.states) if has_no_interface(model_path) else None)
    _check_origin(model_path, model, compiled)
    _check_types(compiled, inputs or {})
    covering = _covering(model, compiled, inputs)
    outside = _outside_inputs(model, compiled) if inputs is None else {}
    rounded = _rounded_model(model.clone(), compiled) if _is_rounded(compiled) else None
    can_tell = tolerance is None and covering.coverage.note is None
    expected = model if rounded is None else rounded
    narrowest = max([tolerance_of(model), *(ROUNDED_TOLERANCES[arithmetic] for arithmetic in arithmetics_of(expected))])
    spreads = _spreads(expected) if can_tell and narrowest > TOLERANCES["float32"] else None
    if tolerance is None:
        tolerance = narrowest if spreads is None else TOLERANCES["float32"]
    reference, judge = Reference(model_path, model), _Judge(tolerance, narrowest, spreads)
    compared = [_compare_case(reference, rounded, compiled, case, judge) for case in covering.inputs]
    taken = [guard for guard, case in outside.items() if not _is_refused(compiled, case)]
    compared += [_taken(guard, outside[guard]) for guard in taken]
    refused = [guard for guard in outside if guard not in taken]
    return Verification(tolerance, compared, rounded is not None, spreads is not None, refused, covering.coverage)


def _check_origin(model_path: str | os.PathLike[str], model: ir.Model, compiled: CompiledModel) -> None:
    """Raise MoecError for an artifact with an input that the model lacks, or has in another size."""
    from moec.common.specs import tensor_specs

    specs = {spec.name: spec for spec in tensor_specs(model.graph.inputs)}
    for spec in compiled.inputs:
        own = specs.get(spec.name)
        if own is None or not _may_be_same(spec.shape, own.shape):
            raise MoecError(
                f"the artifact takes {spec}, but {os.fspath(model_path)} {own or 'has no such input'}; give the model "
                "that the artifact was compiled from"
            )


def _may_be_same(first: Sequence[int | str], second: Sequence[int | str]) -> bool:
    """Whether shapes can be those of one array: names of sizes may stand for any."""
    pairs = zip(first, second, strict=False)
    return len(first) == len(second) and all(a == b or isinstance(a, str) or isinstance(b, str) for a, b in pairs)


def _check_types(compiled: CompiledModel, inputs: Mapping[str, np.ndarray]) -> None:
    """Raise InputError for arrays of other types or ranks than the model takes, before a reference computes with them:
    invalid indices may ask for any memory."""
    from moec.runtime.inputs import InputCheck

    for spec in compiled.inputs:
        array = inputs.get(spec.name)
        if isinstance(array, np.ndarray) and (array.dtype != dtype_of(spec.dtype) or array.ndim != len(spec.shape)):
            InputCheck([spec])({spec.name: array})


def _covering(model: ir.Model, compiled: CompiledModel, inputs: Mapping[str, np.ndarray] | None) -> Covering:
    """Make the inputs to compare on, with their coverage of the model's decisions."""
    from moec.common.specs import tensor_specs

    if inputs is not None:
        return cover(model, [dict(inputs)])
    specs = _narrowed(tensor_specs(model.graph.inputs), compiled)
    guards, dependent = _guards(model, compiled), compiled.interface.sizes
    return covering_inputs(model, specs, dependent, guards, lambda feeds: _refusal(compiled, feeds) is None)


def _outside_inputs(model: ir.Model, compiled: CompiledModel) -> dict[str, dict[str, np.ndarray]]:
    """Make inputs just outside each guard."""
    from moec.checking.sampling import outside_cases, random_inputs, size_cases
    from moec.common.specs import tensor_specs
    from moec.passes.shapes.input_limits import input_limits

    specs, limits = _narrowed(tensor_specs(model.graph.inputs), compiled), input_limits(model)
    guards = _guards(model, compiled)
    case = size_cases(specs, dependent=compiled.interface.sizes, guards=guards)[-1]
    outside = outside_cases(case, guards, compiled.interface.sizes)
    return {guard: random_inputs(specs, sizes, limits) for guard, sizes in outside.items()}


def _guards(model: ir.Model, compiled: CompiledModel) -> list[str]:
    """List the guards of the model and of the artifact, which should have them all."""
    from moec.common.specs import tensor_specs
    from moec.frontend.onnx.conditions import conditions_of, settled

    specs = tensor_specs(model.graph.inputs)
    required = settled(conditions_of(model).guards, specs, _narrowed(specs, compiled))
    return list(dict.fromkeys([*required, *compiled.guards]))


def _is_refused(compiled: CompiledModel, inputs: Mapping[str, np.ndarray]) -> bool:
    try:
        compiled.run(inputs)
    except InputError:
        return True
    return False


def _taken(guard: str, inputs: Mapping[str, np.ndarray]) -> Case:
    """Report inputs outside of a guard that were not refused as a case that differs."""
    note = f"was not refused, although {guard} does not hold"
    return Case({name: value.shape for name, value in inputs.items()}, [Difference("", (), None, None, False, note)])


def _narrowed(specs: Sequence[TensorSpec], compiled: CompiledModel) -> list[TensorSpec]:
    """Fix the sizes that the artifact knows to be fixed, although the model gives them a name."""
    fixed = {spec.name: spec for spec in compiled.inputs}
    return [fixed.get(spec.name, spec) for spec in specs]


def _is_rounded(compiled: CompiledModel) -> bool:
    """Whether passes rounded weights, or round the states that a program keeps, which are not among the losses of
    layers."""
    types = {spec.name: spec.dtype for spec in compiled.inputs}
    cached = [state for program in compiled.artifact.manifest.programs for state in program.held]
    return bool(compiled.describe()["losses"]) or any(state.dtype != types[state.input] for state in cached)


def _rounded_model(model: ir.Model, compiled: CompiledModel) -> ir.Model:
    """Apply the artifact's passes to ``model``, which is changed."""
    from moec.passes import pipeline

    pipeline.run(model, pipeline.parse(compiled.describe()["provenance"]["passes"]))
    return model


def _spreads(model: ir.Model) -> Spreads | None:
    """Prepare the spreads of a model. Returns None where the interpreter cannot run it."""
    from moec.ir.interpreter import EvaluationError
    from moec.tools.spread import Spreads

    try:
        return Spreads(model)
    except (ValueError, EvaluationError):
        return None


@dataclasses.dataclass(frozen=True)
class _Judge:
    """Tolerances: see :func:`verify`. ``narrowest``: the tolerance where the interpreter cannot compute a spread."""

    tolerance: float
    narrowest: float
    spreads: Spreads | None

    def __call__(
        self, inputs: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
    ) -> list[Difference]:
        from moec.ir.interpreter import EvaluationError

        differences = [compare_output(name, actual, value, self.tolerance) for name, value in expected.items()]
        far = {gap.output: expected[gap.output] for gap in differences if not gap.matches and gap.absolute is not None}
        if self.spreads is None or not far:
            return differences
        try:
            wrong = self.spreads.of(inputs).why_not(actual, far, self.tolerance)
        except (ValueError, EvaluationError):
            return [compare_output(name, actual, value, self.narrowest) for name, value in expected.items()]
        return [
            dataclasses.replace(gap, matches=gap.output not in wrong, note=wrong.get(gap.output, ""))
            if gap.output in far
            else gap
            for gap in differences
        ]


def _compare_case(
    reference: Reference,
    rounded: ir.Model | None,
    compiled: CompiledModel,
    inputs: Mapping[str, np.ndarray],
    judge: _Judge,
) -> Case:
    from moec.ir import interpreter

    shapes = {name: value.shape for name, value in inputs.items()}
    try:
        original, note = reference.run(inputs)
    except MoecError as error:
        return Case(shapes, [], _refusal(compiled, inputs) or str(error))
    outputs = compiled.run(inputs)
    if rounded is None:
        return Case(shapes, judge(inputs, outputs, original), note=note)
    try:
        expected = expected_outputs(rounded, inputs, None if judge.spreads is None else np.float64)
    except interpreter.EvaluationError as error:
        return Case(shapes, [], f"the reference interpreter cannot run the model with rounded weights: {error}")
    norms = {name: compare(name, value, original[name], judge.tolerance).norm for name, value in expected.items()}
    differences = judge(inputs, outputs, expected)
    return Case(shapes, [dataclasses.replace(gap, norm=norms[gap.output]) for gap in differences], note=note)


def _refusal(compiled: CompiledModel, inputs: Mapping[str, np.ndarray]) -> str | None:
    """Return the artifact's reason for refusing inputs, which may be clearer than onnxruntime's, or None."""
    try:
        compiled.run(inputs)
    except MoecError as error:
        return str(error)
    return None


def compare_output(name: str, actual: Mapping[str, np.ndarray], expected: np.ndarray, tolerance: float) -> Difference:
    if name not in actual:
        return Difference(name, (), None, None, False, "the other has no such output: it is of another model")
    return compare(name, actual[name], expected, tolerance)

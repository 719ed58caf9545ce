"""Checks a compiled model against onnxruntime on the original model."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moec.errors import MoecError

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.runtime.model import CompiledModel

# Largest accepted difference, as a share of max(1, the largest expected magnitude), by the narrowest float in the model
TOLERANCES = {"float64": 1e-4, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
# Of models whose weights were rounded, a few outputs may be anything: a router that is nearly undecided takes another
# expert. There it is the Frobenius norm of the difference that has to be small, as a share of that of the output, by
# the format of the most rounded weight. Single layers of Gaussian weights are off by 0.001, 0.005, 0.03, 0.2 and 0.2.
LOSSY_TOLERANCES = {"float16": 0.02, "bfloat16": 0.1, "int8": 0.2, "int4": 0.5, "mxfp4": 0.5}


@dataclasses.dataclass(frozen=True)
class Difference:
    """One output of one case. Differences are None where shape or dtype already differ. ``norm``: the Frobenius norm
    of the difference as a share of that of what is expected; for integers the share of elements that differ."""

    output: str
    shape: tuple[int, ...]
    absolute: float | None
    relative: float | None
    matches: bool
    note: str = ""
    norm: float | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """One set of inputs: their shapes and the differences of every output, or why onnxruntime could not run it."""

    inputs: dict[str, tuple[int, ...]]
    differences: list[Difference]
    failure: str | None = None

    @property
    def matches(self) -> bool:
        return all(one.matches for one in self.differences)


@dataclasses.dataclass(frozen=True)
class Verification:
    """All cases, and the tolerance that was applied: to largest differences, or ``by_norm``."""

    tolerance: float
    cases: list[Case]
    by_norm: bool = False

    @property
    def matches(self) -> bool:
        """Whether every case that onnxruntime could run matches."""
        return all(case.matches for case in self.cases)

    @property
    def failures(self) -> list[str]:
        """Why onnxruntime could not run some cases."""
        return [case.failure for case in self.cases if case.failure is not None]

    def as_data(self) -> dict[str, Any]:
        return {"matches": self.matches, **dataclasses.asdict(self)}


def verify(
    model_path: str | os.PathLike[str],
    compiled: CompiledModel,
    inputs: Mapping[str, np.ndarray] | None = None,
    tolerance: float | None = None,
) -> Verification:
    """Run both on ``inputs``, or on random inputs of several sizes (1 and odd ones among them), and compare.

    An output matches when the largest absolute difference is within ``tolerance`` times the larger of 1 and the largest
    expected magnitude; integers and booleans must be equal. Without ``tolerance`` the narrowest float type of the model
    decides (:data:`TOLERANCES`). Where passes rounded weights, differences are compared by their norm, and the format
    of the most rounded weight decides (:data:`LOSSY_TOLERANCES`).

    Raises MoecError when onnxruntime itself cannot load the model; a case that it cannot run is recorded as such.
    """
    from moec.compiler import import_model
    from moec.sampling import input_limits, random_inputs, size_cases, tensor_specs

    session = open_session(model_path)
    model = import_model(model_path)
    specs = tensor_specs(model.graph.inputs)
    losses = compiled.describe()["losses"]
    if tolerance is None:
        tolerance = _lossy_tolerance(losses) if losses else tolerance_of(model)
    if inputs is not None:
        cases = [dict(inputs)]
    else:
        limits = input_limits(model)
        cases = [random_inputs(specs, sizes, limits, seed) for seed, sizes in enumerate(size_cases(specs))]
    compared = [_compare_case(session, compiled, case, tolerance, bool(losses)) for case in cases]
    return Verification(tolerance, compared, bool(losses))


def open_session(model_path: str | os.PathLike[str], threads: int | None = None) -> Any:
    """An onnxruntime session on the CPU. Raises MoecError when onnxruntime cannot load the model."""
    import onnxruntime

    path = pathlib.Path(model_path)
    if not path.is_file():
        raise MoecError(f"{path}: {'is a directory' if path.is_dir() else 'no such file'}; expected an ONNX file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise MoecError(f"{path}: onnxruntime itself cannot load the model: {_one_line(error)}") from error


def run_session(session: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by name. Raises MoecError when onnxruntime cannot run the model on these inputs."""
    names = [output.name for output in session.get_outputs()]
    known = {one.name for one in session.get_inputs()}
    try:
        return dict(zip(names, session.run(names, {k: v for k, v in inputs.items() if k in known}), strict=True))
    except Exception as error:
        sizes = ", ".join(f"{name}{list(value.shape)}" for name, value in inputs.items())
        raise MoecError(f"onnxruntime itself cannot run the model on {sizes}: {_one_line(error)}") from error


def compare(name: str, found: np.ndarray, expected: np.ndarray, tolerance: float, by_norm: bool = False) -> Difference:
    """Compare one output, by its largest difference or by the norm of all. NaN equals NaN, and infinities equal
    themselves."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        note = f"found {found.dtype}{list(found.shape)}, expected {expected.dtype}{list(expected.shape)}"
        return Difference(name, found.shape, None, None, False, note)
    if not found.size:
        return Difference(name, found.shape, 0.0, 0.0, True, norm=0.0)
    exact = found.dtype.kind in "iub"
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = np.where(same, 0.0, np.abs(found - expected))
        relative = np.where(same, 0.0, gap / np.abs(expected))
    finite = np.abs(expected[np.isfinite(expected)])
    absolute, norm = float(gap.max()), float((~same).mean()) if exact else _norm(gap, finite)
    if by_norm:
        matches = norm <= tolerance
    else:
        matches = absolute <= (0.0 if exact else tolerance * max(1.0, float(finite.max(initial=0.0))))
    return Difference(name, found.shape, absolute, float(relative.max()), bool(matches), norm=norm)  # NaN never matches


def _norm(gap: np.ndarray, expected: np.ndarray) -> float:
    """The norm of ``gap`` as a share of that of ``expected``."""
    error, size = float(np.linalg.norm(gap)), float(np.linalg.norm(expected))
    return error / size if size else 0.0 if error == 0 else float("inf")


def _compare_case(
    session: Any, compiled: CompiledModel, inputs: Mapping[str, np.ndarray], tolerance: float, by_norm: bool
) -> Case:
    shapes = {name: value.shape for name, value in inputs.items()}
    found = compiled.run(inputs)
    try:
        expected = run_session(session, inputs)
    except MoecError as error:
        return Case(shapes, [], str(error))
    differences = [_compare_output(name, found, value, tolerance, by_norm) for name, value in expected.items()]
    return Case(shapes, differences)


def _compare_output(
    name: str, found: Mapping[str, np.ndarray], expected: np.ndarray, tolerance: float, by_norm: bool
) -> Difference:
    if name not in found:
        return Difference(name, (), None, None, False, "the artifact has no such output: it is of another model")
    return compare(name, found[name], expected, tolerance, by_norm)


def tolerance_of(model: ir.Model) -> float:
    """That of the narrowest float type of the model's weights, inputs and outputs."""
    values: Sequence[Any] = [*model.graph.initializers.values(), *model.graph.inputs, *model.graph.outputs]
    names = {value.dtype.numpy().name for value in values if value.dtype is not None}
    return max((limit for name, limit in TOLERANCES.items() if name in names), default=TOLERANCES["float32"])


def _lossy_tolerance(losses: Sequence[Mapping[str, Any]]) -> float:
    """By the most rounded weight. Formats begin with their name: ``int4/128z``."""
    formats = [form for one in losses for forms in one["formats"].values() for form in forms]
    return max(limit for name, limit in LOSSY_TOLERANCES.items() for form in formats if form.startswith(name))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

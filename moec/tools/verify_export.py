"""Checks of an exported ONNX model against the model that it was made from."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moec.checking.comparison import Difference, tolerance_of
from moec.checking.covering import Covering, cover, covering_inputs
from moec.common.errors import MoecError, reporting
from moec.exporting.onnx_model import MODEL, SUFFIX
from moec.exporting.onnxruntime_moec import LIBRARY
from moec.runtime.manifest import MANIFEST
from moec.tools.reference import Reference, open_session, run_session
from moec.tools.verify import Case, Verification, compare_output

if TYPE_CHECKING:
    import onnx_ir as ir

Inputs = Mapping[str, np.ndarray]


def is_exported(path: pathlib.Path) -> bool:
    """Whether a path is an ONNX file, or a folder with one, and no artifact."""
    return path.suffix == SUFFIX or ((path / MODEL).is_file() and not (path / MANIFEST).exists())


@reporting("verifying")
def verify_export(
    model_path: str | os.PathLike[str],
    exported_path: str | os.PathLike[str],
    inputs: Inputs | None = None,
    tolerance: float | None = None,
) -> Verification:
    """Run an exported model in onnxruntime, and the original as :func:`moec.tools.verify.verify` does, on the same
    inputs, and compare all outputs.

    A folder may hold a library of custom operators, which is loaded. An output that only one of the two has differs.
    ``tolerance`` None: that of the original's narrowest float type. Raises MoecError for models that cannot be read or
    opened, and for two that do not take the same inputs; a case that the original cannot run is recorded as such.
    """
    from moec.compiling.compiler import import_model

    path = pathlib.Path(exported_path)
    file = path / MODEL if path.is_dir() else path
    library = file.with_name(LIBRARY)
    session = open_session(file, library=library if library.is_file() else None)
    model = import_model(model_path)
    _check_inputs(model, session, f"{exported_path}: is not of {model_path}")
    limit = tolerance_of(model) if tolerance is None else tolerance
    reference = Reference(model_path, model)
    covering = _covering(model, model_path, inputs, lambda feeds: _runs(reference, feeds))
    cases = [_compared(reference, session, feeds, limit) for feeds in covering.inputs]
    return Verification(limit, cases, coverage=covering.coverage)


def _check_inputs(model: ir.Model, session: Any, where: str) -> None:
    original, exported = {value.name for value in model.graph.inputs}, {value.name for value in session.get_inputs()}
    if original == exported:
        return
    missing, further = sorted(map(str, original - exported)), sorted(map(str, exported - original))
    listed = [f"does not take {', '.join(missing)}"] * bool(missing) + [f"also takes {', '.join(further)}"] * bool(
        further
    )
    raise MoecError(f"{where}: it {' and '.join(listed)}; expected the same inputs")


def _covering(
    model: ir.Model, path: str | os.PathLike[str], inputs: Inputs | None, accepts: Callable[[Inputs], bool]
) -> Covering:
    """Make the inputs to compare on, with their coverage of the original's decisions."""
    from moec.compiling.model_inputs import model_inputs
    from moec.passes.framework.base import Report

    if inputs is not None:
        return cover(model, [dict(inputs)])
    facts = model_inputs(model, path, Report())
    return covering_inputs(model, facts.specs, facts.sizes, facts.conditions.guards, accepts)


def _runs(reference: Reference, inputs: Inputs) -> bool:
    try:
        reference.run(inputs)
    except MoecError:
        return False
    return True


def _compared(reference: Reference, session: Any, inputs: Inputs, tolerance: float) -> Case:
    shapes = {name: value.shape for name, value in inputs.items()}
    try:
        expected, note = reference.run(inputs)
    except MoecError as error:
        return Case(shapes, [], str(error))
    try:
        actual = run_session(session, inputs)
    except MoecError as error:
        return Case(shapes, [_unequal("", f"only the original runs: {error}")], note=note)
    differences = [compare_output(name, actual, value, tolerance) for name, value in expected.items()]
    further = [_unequal(name, "the original has no such output") for name in actual if name not in expected]
    return Case(shapes, differences + further, note=note)


def _unequal(output: str, note: str) -> Difference:
    return Difference(output, (), None, None, False, note)

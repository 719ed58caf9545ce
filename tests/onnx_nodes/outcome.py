"""Outcome of one case: compiled for the processor, run, and compared with ONNX's expected outputs."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import traceback
from typing import Any

import numpy as np
import onnx

from .cases import Case

_OTHER_OPERATORS = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain}


@dataclasses.dataclass(frozen=True)
class Outcome:
    status: str
    """``pass``, ``refused``, ``wrong``, or ``crashed``: by an exception that is no MoecError."""
    detail: str = ""


def outcome_of(case: Case) -> Outcome:
    import moec
    from moec.common.errors import DefectError, MoecError

    model = onnx.load_from_string(case.model)
    names = [value.name for value in model.graph.input]
    try:
        outputs = moec.compile(model, threads=1).run(dict(zip(names, case.inputs, strict=True)))
    except DefectError as error:
        return Outcome("crashed", str(error))
    except MoecError as error:
        return _refusal(str(error))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        first = next(iter(str(error).splitlines()), "")
        return Outcome(
            "crashed", f"{type(error).__name__}: {first} ({pathlib.Path(place.filename).name}:{place.lineno})"
        )
    results = [outputs[value.name] for value in model.graph.output]
    difference = _difference(results, case)
    if difference and not _nearer_to_exact(results, case, model):
        return Outcome("wrong", difference)
    return Outcome("pass")


def _refusal(message: str) -> Outcome:
    """A refusal is one line that names an operator, or says that there is none to name."""
    words = re.findall(r"\w+", message)
    named = any(onnx.defs.has(word) or word in _OTHER_OPERATORS for word in words)
    if "\n" in message or not (named or "which no operator takes" in message):
        return Outcome("wrong", f"the refusal does not name an operator in one line: {message}")
    return Outcome("refused", message)


def _nearer_to_exact(result: list[Any], case: Case, model: onnx.ModelProto) -> bool:
    """Whether what was found in 16-bit floats is at least as near as what is expected, which was rounded after every
    step, to what float64 gives."""
    from moec.frontend.onnx.importer import import_model
    from moec.ir import interpreter

    if any(
        have.shape != want.shape or have.dtype != want.dtype for have, want in zip(result, case.outputs, strict=True)
    ):
        return False
    if all(want.dtype.name not in ("float16", "bfloat16") for want in case.outputs):
        return False
    names = [value.name for value in model.graph.input]
    exact = interpreter.run(import_model(model), dict(zip(names, case.inputs, strict=True)), dtype=np.float64)
    for have, want, value in zip(result, case.outputs, model.graph.output, strict=True):
        errors = [np.abs(output.astype(np.float64) - exact[value.name]) for output in (have, want)]
        if not errors[0].max(initial=0) <= errors[1].max(initial=0):
            return False
    return True


def _difference(result: list[Any], case: Case) -> str:
    """As ``onnx.backend.test.runner`` compares, with its tolerances."""
    for position, (have, want) in enumerate(zip(result, case.outputs, strict=True)):
        if have.shape != want.shape or have.dtype != want.dtype:
            return f"output {position} is {have.dtype}{have.shape}, expected {want.dtype}{want.shape}"
        rtol = case.rtol
        if want.dtype.name not in np.sctypeDict:  # numpy compares types of ml_dtypes no other way
            rtol = max(rtol, 2**-6) if want.dtype.name == "bfloat16" else rtol
            have, want = have.astype(np.float32), want.astype(np.float32)
        try:
            np.testing.assert_allclose(have, want, rtol=rtol, atol=case.atol)
        except AssertionError as error:
            return f"output {position}: {' '.join(str(error).split())[:200]}"
    return ""

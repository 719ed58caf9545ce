"""Comparison of moec with onnxruntime on a model: the work of a separate process."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any, NamedTuple

import numpy as np

from ..isolated import Lost, Worker
from .seeds import MODEL, Files

TOLERANCE = 1e-3
FAILURES = ("wrong", "crashed", "hung", "memory", "internal", "message")


class Verdict(NamedTuple):
    """``match``, ``refused``, ``unchecked`` (onnxruntime has no answer to compare with), or one of ``FAILURES``."""

    status: str
    message: str = ""


class Runs(NamedTuple):
    """Inputs of runs, and the outputs of a compiled model for them."""

    cases: list[tuple[dict[str, np.ndarray], dict[str, Any]]]


def judge(files: Files, worker: Worker) -> Verdict:
    """The verdict on a model. ``worker`` is one for :func:`work`."""
    result = worker.do((files, None))
    if isinstance(result, Lost):
        return Verdict(result.kind, result.detail)
    if isinstance(result, Verdict):
        return result
    compared = worker.do((files, result))
    if isinstance(compared, Lost):  # onnxruntime's own crashes are not moec's
        return Verdict("unchecked", f"onnxruntime {compared.kind}: {compared.detail}")
    return compared


def work(item: tuple[Files, Runs | None]) -> Verdict | Runs:
    """Compile and run a model; with ``runs``, compare their outputs with onnxruntime."""
    files, runs = item
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (pathlib.Path(folder) / name).write_bytes(data)
        path = pathlib.Path(folder) / MODEL
        return _run(path) if runs is None else _compare(path, runs)


def _run(path: pathlib.Path) -> Verdict | Runs:
    import moec
    from moec.common.errors import MoecError

    try:
        compiled = moec.compile(path, threads=1)
    except MoecError as error:
        return _refusal(error, str(path))
    except Exception as error:
        return Verdict("internal", f"raw {type(error).__name__}: {error}")
    cases, refusal = [], Verdict("refused", "inputs are too large to try")
    for feeds in _feeds(compiled):
        try:
            cases.append((feeds, {name: np.asarray(value) for name, value in compiled.run(feeds).items()}))
        except MoecError as error:
            refusal = _refusal(error, "")
        except Exception as error:
            refusal = Verdict("internal", f"run: raw {type(error).__name__}: {error}")
    return Runs(cases) if cases and refusal.status == "refused" else refusal


def _refusal(error: Exception, where: str) -> Verdict:
    from moec.common.errors import DefectError

    message = str(error)
    if isinstance(error, DefectError):
        return Verdict("internal", message)
    if where and "there is not enough memory" in message:  # to compile; to run, it may be the model's own wish
        return Verdict("memory", message)
    if "\n" in message or len(message) > 1500 or not message.startswith(where):
        return Verdict("message", message)
    return Verdict("refused", message.removeprefix(where))


def _feeds(compiled: Any) -> list[dict[str, np.ndarray]]:
    """Inputs of two sizes, of at most a million elements."""
    from moec.checking.sampling import random_inputs, size_cases

    feeds = []
    for number, sizes in enumerate(size_cases(compiled.inputs, (1, 3, 2), (1, 2, 3), compiled.interface.sizes)[:2]):
        shapes = [
            [sizes.get(size, 1) if isinstance(size, str) else size for size in spec.shape] for spec in compiled.inputs
        ]
        if all(np.prod(shape, dtype=float) < 1 << 20 for shape in shapes):
            feeds.append(random_inputs(compiled.inputs, sizes, compiled.interface.limits, number))
    return feeds


def _compare(path: pathlib.Path, runs: Runs) -> Verdict:
    from moec.checking.comparison import compare
    from moec.common.errors import MoecError
    from moec.tools.reference import open_session, run_session

    verdict = Verdict("unchecked", "onnxruntime runs on none of the inputs")
    try:
        session = open_session(path, threads=1)
    except MoecError as error:
        return Verdict("unchecked", str(error))
    for feeds, actual in runs.cases:
        try:
            expected, again = run_session(session, feeds), run_session(session, feeds)
        except MoecError:
            continue
        for name, value in expected.items():
            if not np.array_equal(value, again[name], equal_nan=value.dtype.kind == "f"):
                return Verdict("unchecked", f"{name} differs from run to run")
            difference = compare(name, actual[name], value, TOLERANCE)
            if not difference.matches:
                shapes = {name: list(array.shape) for name, array in feeds.items()}
                return Verdict("wrong", f"{name}: {difference.note or difference.absolute} on {shapes}")
        verdict = Verdict("match")
    return verdict

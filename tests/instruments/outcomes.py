"""A model run by onnxruntime, by the reference interpreter and by compiled code, and what came of it."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import onnx

from ..isolated import Lost, Worker

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Status = Literal["pass", "skipped", "refused", "wrong", "crashed"]


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, inputs for several runs, and how far results may be off, as a share of the largest (at least 1).

    ``meaningful`` says, for each run, which elements of an output mean anything; absent ones: all.
    """

    model: onnx.ModelProto
    feeds: list[Arrays]
    tolerance: float = 2e-5
    meaningful: list[Arrays] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """``skipped``: onnxruntime refuses the model; ``refused``: moec does, with a reason."""

    status: Status
    detail: str = ""

    @property
    def failed(self) -> bool:
        return self.status in ("wrong", "crashed")


def started_worker() -> Worker:
    """A process that does (function, *arguments)."""
    return Worker(_do)


def _do(call: tuple[Any, ...]) -> Any:
    function, *arguments = call
    return function(*arguments)


def judge(case: Case, worker: Worker) -> Outcome:
    expected = worker.do((run_onnxruntime, case))
    if isinstance(expected, Lost):
        return Outcome("skipped", f"onnxruntime {expected.kind}: {expected.detail}")
    if isinstance(expected, Outcome):
        return expected
    result = worker.do((compare, case, expected))
    return Outcome("crashed", f"{result.kind}: {result.detail}") if isinstance(result, Lost) else result


def run_onnxruntime(case: Case) -> list[list[Array]] | Outcome:
    """The outputs of each run, of the model as it is written: without optimisation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = onnxruntime.InferenceSession(
            case.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return [session.run(None, feeds) for feeds in case.feeds]
    except Exception as error:  # they have no common base
        return Outcome("skipped", _line(error))


def compare(case: Case, expected: list[list[Array]]) -> Outcome:
    import moec

    interpreted: list[list[Array] | None] = []
    try:
        interpreted += _interpreted(case)
        wrong = _difference("interpreter", case, expected, interpreted)
        compiled = moec.compile(case.model)
        names = [output.name for output in case.model.graph.output]
        result = (list(map(compiled.run(feeds).__getitem__, names)) for feeds in case.feeds)
        wrong = wrong or _difference("compiled", case, expected, result)
    except moec.UnsupportedError as error:
        return Outcome("refused" if "node" in str(error) else "crashed", _line(error))
    except moec.InputError as error:  # right where numpy refuses too: onnxruntime takes more than ONNX does
        return Outcome("refused" if None in interpreted else "crashed", f"InputError: {_line(error)}")
    except Exception as error:  # also a MoecError of another kind: the model is valid, for onnxruntime ran it
        return Outcome("crashed", f"{type(error).__name__}: {_line(error)}")
    return Outcome("wrong", wrong) if wrong else Outcome("pass")


def _interpreted(case: Case) -> Iterable[list[Array] | None]:
    """Compute each run in the interpreter; None where it refuses."""
    from moec.frontend.onnx.importer import import_model
    from moec.ir.interpreter import EvaluationError, run

    model = import_model(case.model)
    for feeds in case.feeds:
        try:
            yield list(run(model, feeds).values())
        except (EvaluationError, NotImplementedError):
            yield None


def _difference(who: str, case: Case, expected: list[list[Array]], result: Iterable[list[Array] | None]) -> str | None:
    """The first output that is not right, in words."""
    names = [output.name for output in case.model.graph.output]
    for run, (wanted, given) in enumerate(zip(expected, result, strict=True)):
        if given is None:
            continue
        masks = case.meaningful[run] if case.meaningful else {}
        for name, right, array in zip(names, wanted, given, strict=True):
            reason = unequal(array, right, case.tolerance, masks.get(name))
            if reason:
                sizes = {key: value.shape for key, value in case.feeds[run].items()}
                return f"{who}: run {run} ({sizes}), output {name!r}: {reason}"
    return None


def unequal(actual: Array, expected: Array, tolerance: float, meaningful: Array | None = None) -> str | None:
    """Why the arrays are not equal. Floats may differ by ``tolerance`` times the largest finite number, at least 1, or
    by one unit in the last place: the same number rounded otherwise."""
    if (actual.dtype, actual.shape) != (expected.dtype, expected.shape):
        return f"{actual.dtype}{list(actual.shape)}, expected {expected.dtype}{list(expected.shape)}"
    if meaningful is not None:
        meaningful = np.broadcast_to(meaningful, actual.shape)
        actual, expected = actual[meaningful], expected[meaningful]
    if expected.dtype.kind in "biu":
        return None if np.array_equal(actual, expected) else _where(actual, expected, actual != expected)
    with np.errstate(invalid="ignore"):
        unit = np.spacing(np.abs(expected)).astype(np.float64)
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(expected)
    largest = max(1.0, float(np.abs(expected[finite]).max(initial=0)))
    with np.errstate(invalid="ignore"):
        near = np.abs(actual - expected) <= np.maximum(tolerance * largest, unit)
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    wrong = np.where(finite, ~near, ~same)
    return _where(actual, expected, wrong) if wrong.any() else None


def _where(result: Array, expected: Array, wrong: Array) -> str:
    first = tuple(int(index) for index in np.argwhere(wrong)[0])
    share = f"{np.count_nonzero(wrong)} of {wrong.size}"
    return f"{share} differ, first {result[first]} at {list(first)}, expected {expected[first]}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def table(outcomes: Iterable[tuple[str, Outcome]]) -> str:
    """A row for each kind of cases."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for kind, outcome in outcomes:
        counts[kind][outcome.status] += 1
        counts["all"][outcome.status] += 1
    columns = ("pass", "refused", "wrong", "crashed", "skipped")
    rows = [("", "cases", *columns)]
    for kind, counter in sorted(counts.items(), key=lambda item: (item[0] == "all", item[0])):
        rows.append((kind, str(counter.total()), *(str(counter[column]) for column in columns)))
    return "\n".join(f"{name:34}" + "".join(f"{cell:>9}" for cell in cells) for name, *cells in rows)

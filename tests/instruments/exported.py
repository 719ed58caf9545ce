"""Exports for onnxruntime against the original model, both run by onnxruntime.

python -m tests.instruments.exported mobius [--only qwen3] [--form int4]    # models that mobius-onnx builds
python -m tests.instruments.exported DIR [--only mixtral]                   # a folder of exported models (MOEC_ZOO)
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from ..isolated import Lost, Worker
from .mobius import SIZES
from .mobius_models import FORMS, MODELS, as_onnxruntime_takes, build, feeds

Array = np.ndarray[Any, Any]
_TOLERANCES = {"float32": 1e-5, "float16": 4e-3, "int8": 2e-2}


@dataclasses.dataclass(frozen=True)
class Row:
    """``status``: pass, wrong, refused, or skipped where onnxruntime does not run the original. ``difference``: the
    largest, as a share of the largest output. ``written`` and ``graphs``: blocks that are operators, and that are not,
    with reasons."""

    status: str
    detail: str = ""
    difference: float = 0
    written: tuple[str, ...] = ()
    graphs: tuple[str, ...] = ()


def _session(model: str | bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # as the original says
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def compare(
    source: Any, original: str | bytes, cases: Sequence[Mapping[str, Array]], tolerance: float | None = None
) -> Row:
    """Export a source, and compare it on the cases with the ``original`` that onnxruntime takes."""
    import moec

    try:
        session = _session(original)
        names = [output.name for output in session.get_outputs()]
        wanted = [_run(session, names, case) for case in cases]
    except Exception as error:  # onnxruntime's exceptions share no base class
        return Row("skipped", f"onnxruntime: {_line(error)}")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "out.onnx"
        try:
            result = moec.export(source, path)
        except moec.UnsupportedError as error:
            return Row("refused", _line(error))
        exported = _session(str(path))
        found = [_run(exported, names, case) for case in cases]
    written = tuple(part.written_as for part in result.parts if part.written_as)
    row = Row("pass", "", 0, written, tuple(f"{part.name}: {part.reason}" for part in result.unwritten))
    return judged(row, names, wanted, found, tolerance)


def judged(
    row: Row, names: Sequence[str], wanted: list[list[Array]], found: list[list[Array]], tolerance: float | None
) -> Row:
    """The row, with the largest difference, and as wrong where one is too large."""
    worst = 0.0
    for expected, actual in zip(wanted, found, strict=True):
        for name, right, array in zip(names, expected, actual, strict=True):
            if (array.shape, array.dtype) != (right.shape, right.dtype):
                detail = f"{name}: {array.dtype}{list(array.shape)}, expected {right.dtype}{list(right.shape)}"
                return dataclasses.replace(row, status="wrong", detail=detail)
            largest = max(float(np.abs(right.astype(np.float64)).max(initial=0)), 1e-9)
            gap = float(np.abs(array.astype(np.float64) - right.astype(np.float64)).max(initial=0)) / largest
            bound = tolerance or _TOLERANCES.get(right.dtype.name, 1e-5)
            worst = max(worst, gap)
            if not gap <= bound:
                row = dataclasses.replace(row, status="wrong", detail=f"{name}: differs by {gap:.1e} of the largest")
    return dataclasses.replace(row, difference=worst)


def _run(session: Any, names: Sequence[str], case: Mapping[str, Array]) -> list[Array]:
    return session.run(names, {taken.name: case[taken.name] for taken in session.get_inputs()})


def compare_mobius(name: str, form: str) -> Row:
    """A model of mobius-onnx. Weights of 8 bits in blocks are multiplied in another way by onnxruntime's operator of
    dense products than by that of experts."""
    try:
        model = onnx.load_from_string(build(name, form))
    except Exception as error:  # a model type that has no such form
        return Row("skipped", f"mobius: {_line(error)}")
    sizes = [one for one in SIZES if one[1] == 1 or not MODELS[name].takes_one]
    cases = [feeds(model.graph.input, *one) for one in sizes]
    tolerance = _TOLERANCES["int8"] if form == "int8" else None
    return compare(model, as_onnxruntime_takes(model).SerializeToString(), cases, tolerance)


def compare_folder(folder: str) -> Row:
    """A folder with model.onnx and ``inputs*.npz``. A model that computes in 16 bits may be off as far as these are."""
    import onnx_ir as ir

    from moec.checking.comparison import TOLERANCES, tolerance_of

    path = pathlib.Path(folder)
    cases = [dict(np.load(case)) for case in sorted(path.glob("inputs*.npz"))]
    narrow = tolerance_of(ir.load(path / "model.onnx")) > TOLERANCES["float32"]
    return compare(path / "model.onnx", str(path / "model.onnx"), cases, _TOLERANCES["float16"] if narrow else None)


def compare_item(item: tuple[str, ...]) -> Row:
    """Either comparison, for a worker."""
    return compare_mobius(*item) if len(item) == 2 else compare_folder(*item)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _items(models: str, only: str, forms: Sequence[str]) -> Iterator[tuple[str, ...]]:
    if models == "mobius":
        yield from ((name, form) for name in MODELS if only in name for form in forms)
    else:
        folders = sorted(meta.parent for meta in pathlib.Path(models).glob("*/meta.json"))
        yield from ((str(folder),) for folder in folders if only in folder.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", help="mobius, or a folder of models")
    parser.add_argument("--only", default="", help="part of a name")
    parser.add_argument("--form", action="append", choices=FORMS)
    arguments = parser.parse_args()
    worker, rows = Worker(compare_item, seconds=240, gigabytes=12), []
    for item in _items(arguments.models, arguments.only, arguments.form or FORMS):
        row = worker.do(item)
        row = Row(row.kind, row.detail) if isinstance(row, Lost) else row
        rows.append(row)
        print(f"{pathlib.Path(item[0]).name:32}{' '.join(item[1:]):12}{row.status:9}{row.difference:8.1e}  "
              f"{len(row.written)} operators, {len(row.graphs)} graphs  {row.detail}", flush=True)  # fmt: skip
        print(*(f"    {graph}" for graph in row.graphs), sep="\n", end="\n" if row.graphs else "")
    worker.close()
    ran = [row for row in rows if row.status != "skipped"]
    written, graphs = sum(len(row.written) for row in ran), sum(len(row.graphs) for row in ran)
    passed = sum(row.status == "pass" for row in ran)
    print(f"{passed} of {len(ran)} models equal; {written} blocks are operators, {graphs} are graphs")


if __name__ == "__main__":
    main()

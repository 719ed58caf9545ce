"""MoE models of another author's exporter (mobius-onnx), against onnxruntime.

python -m tests.instruments.mobius                             # all models, dense and quantised
python -m tests.instruments.mobius --only qwen3 --form dense --remarks --save DIR
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
from typing import Any

import numpy as np
import onnx

from ..isolated import Lost, Worker
from .mobius_models import FORMS, MODELS, as_onnxruntime_takes, build, feeds
from .outcomes import Case, run_onnxruntime, unequal

SIZES = ((1, 1, 0), (2, 5, 0), (1, 1, 6), (2, 4, 3), (1, 19, 2))
"""Batch, tokens, and tokens before them."""


@dataclasses.dataclass(frozen=True)
class Row:
    """``status``: pass, wrong, refused, crashed, or skipped where mobius or onnxruntime refuses the model."""

    status: str
    detail: str = ""
    blocks: int = 0
    seconds: float = 0
    remarks: tuple[str, ...] = ()


def check(name: str, form: str, folder: str | None = None) -> Row:
    """Build, compile and run one model. ``folder``: where the model is kept."""
    try:
        model = onnx.load_from_string(build(name, form))
    except Exception as error:  # a model type that has no such form
        return Row("skipped", f"mobius: {_line(error)}")
    if folder is not None:
        onnx.save(model, str(pathlib.Path(folder) / f"{name}-{form}.onnx"))
    sizes = [size for size in SIZES if size[1] == 1 or not MODELS[name].takes_one]
    case = Case(model, [feeds(model.graph.input, *size) for size in sizes])
    expected = run_onnxruntime(dataclasses.replace(case, model=as_onnxruntime_takes(model)))
    if not isinstance(expected, list):
        return Row("skipped", f"onnxruntime: {expected.detail}")
    return _compared(case, expected, 2e-2 if form == "int8" else 1e-3)


def check_item(item: tuple[str, str, str | None]) -> Row:
    """:func:`check` for a worker."""
    return check(*item)


def _compared(case: Case, expected: list[list[Any]], tolerance: float) -> Row:
    import moec

    start = sum(os.times()[:4])
    try:
        compiled = moec.compile(case.model)
    except moec.MoecError as error:
        return Row("refused" if isinstance(error, moec.UnsupportedError) else "crashed", _line(error))
    seconds = sum(os.times()[:4]) - start
    known = compiled.describe()
    remarks = tuple(f"{remark['severity']}: {remark['message']}" for remark in known["remarks"])
    result = Row("pass", "", len(known["moe_blocks"]), seconds, remarks)
    names = [output.name for output in case.model.graph.output]
    for feed, wanted in zip(case.feeds, expected, strict=True):
        results = compiled.run(feed)
        for key, right in zip(names, wanted, strict=True):
            reason = unequal(np.asarray(results[key]), right, tolerance)
            if reason:
                return dataclasses.replace(result, status="wrong", detail=f"{key}: {reason}")
    return result


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a model type")
    parser.add_argument("--form", action="append", choices=FORMS)
    parser.add_argument("--remarks", action="store_true", help="print what the passes remark")
    parser.add_argument("--save", metavar="DIR", help="keep the models")
    arguments = parser.parse_args()
    worker = Worker(check_item, seconds=240, gigabytes=12)
    rows: list[tuple[str, str, Row]] = []
    for name in (name for name in MODELS if arguments.only in name):
        for form in arguments.form or FORMS:
            row = worker.do((name, form, arguments.save))
            row = Row(row.kind, row.detail) if isinstance(row, Lost) else row
            rows.append((name, form, row))
            blocks = f"{row.blocks} of {MODELS[name].blocks} raised" if row.status in ("pass", "wrong") else ""
            print(f"{name:20}{form:12}{row.status:9}{blocks:16}{row.seconds:6.1f} s  {row.detail}", flush=True)
            if arguments.remarks:
                print(*(f"    {remark}" for remark in row.remarks), sep="\n")
    worker.close()
    print(table(rows))


def table(rows: list[tuple[str, str, Row]]) -> str:
    """A line for each form: models, how they ended, blocks raised of those that are there."""
    lines = []
    for form in FORMS:
        mine = [(name, row) for name, other, row in rows if other == form]
        built = [(name, row) for name, row in mine if row.status != "skipped"]
        passed = sum(row.status == "pass" for _, row in built)
        raised, there = sum(row.blocks for _, row in built), sum(MODELS[name].blocks for name, _ in built)
        if mine:
            lines.append(f"{form:12}{passed} of {len(built)} match, {raised} of {there} blocks raised")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

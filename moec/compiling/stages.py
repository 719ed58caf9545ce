"""The stages of a model between its import and its code: its text before the passes and after each of them."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from moec.common.errors import MoecError, reporting

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.artifacts.writer import Stage
    from moec.passes.framework.base import Pass, Report
    from moec.passes.pipeline import AfterPass


def run_passes(
    model: ir.Model,
    source: Any,
    passes: Sequence[Pass],
    report: Report,
    *,
    verify_each: bool,
    dump_to: str | os.PathLike[str] | None,
) -> list[Stage]:
    """Run the passes on a model and keep its stages; each is in the folder ``dump_to`` before the next pass runs.
    ``source`` is named in errors."""
    check = pass_check(model, source, report) if verify_each else None
    stages = []
    for stage in _stages(model, source, passes, report, check):
        if dump_to is not None:
            _dump(pathlib.Path(dump_to), len(stages), stage)
        stages.append(stage)
    return stages


def pass_check(model: ir.Model, source: Any, report: Report) -> AfterPass:
    """Make the check that the model still computes the same, to run after every pass."""
    from moec.checking.pass_check import PassCheck

    with reporting("choosing inputs to compare on after each pass", source):
        return PassCheck(model, report).after


def _stages(
    model: ir.Model, source: Any, passes: Sequence[Pass], report: Report, check: AfterPass | None
) -> Iterator[Stage]:
    from moec.artifacts.writer import Stage
    from moec.ir.text import print_model
    from moec.ir.weight_hashes import hash_weights
    from moec.passes import pipeline

    yield Stage("import", print_model(model))
    for step in passes:
        report.progress(step.name)
        with reporting(step.name, source):
            changed = pipeline.run(model, (step,), report, verify_each=check is not None, on_pass=check)
        if changed:
            hash_weights(model, report.progress, f"{step.name}, hashing")
        yield Stage(step.name, print_model(model) if changed else None)


def _dump(folder: pathlib.Path, index: int, stage: Stage) -> None:
    from moec.common.seals import write_sealed

    if stage.text is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MoecError(f"{folder}: the phases cannot be written: {error.strerror or error}") from error
    write_sealed(folder / f"{index:02d}-{stage.name}.onnxtxt", stage.text.encode(), "# ")

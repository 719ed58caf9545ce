"""The forms that are ONNX models: from a source, through passes, to a file or a folder."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from moec.common.errors import UnsupportedError, reporting
from moec.common.seals import foreign_file
from moec.exporting.export_options import ExportOptions
from moec.exporting.form import ExportedPart
from moec.exporting.sealed_folder import foreign_folder, seal_folder

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.passes.framework.base import Pass, Report

SUFFIX = ".onnx"
MODEL = "model.onnx"


def write_model(
    source: Any,
    aside: pathlib.Path,
    output: pathlib.Path,
    options: ExportOptions,
    report: Report,
    pipelines: tuple[str, str],
    part_of: Callable[[ir.Model, str, Report], ExportedPart],
    check: Callable[[ir.Model], None] = lambda _: None,
) -> list[ExportedPart]:
    """Write a source as a file, or as a folder that has the weights beside the model. A file has them beside it, too,
    where they are large.

    ``pipelines``: the passes where the options name none, and those that spell the model for its reader. ``part_of``
    says how a block, by the name of its node, is written in a spelled model. ``check`` raises UnsupportedError for a
    spelled model that the reader does not take.
    """
    from moec.exporting import onnx_file

    if options.tokenizer is not None:
        raise UnsupportedError("an ONNX model holds no tokenizer; leave the tokenizer out, or export --for genai")
    model, parts = spelled(source, options, report, pipelines, part_of)
    check(model)
    report.progress(f"writing {output.name}")
    if output.suffix == SUFFIX:
        onnx_file.write_file(model, aside, output)
    else:
        aside.mkdir()
        onnx_file.write_file_and_data(model, aside / MODEL)
        seal_folder(aside)
    return parts


def spelled(
    source: Any,
    options: ExportOptions,
    report: Report,
    pipelines: tuple[str, str],
    part_of: Callable[[ir.Model, str, Report], ExportedPart],
) -> tuple[ir.Model, list[ExportedPart]]:
    """Import a source and run passes until no operator of moec's is left. Arguments as for :func:`write_model`."""
    from moec.exporting import onnx_file
    from moec.ir.blocks import moe_blocks
    from moec.passes import pipeline

    model = read_model(source, options, report, pipelines[0])
    blocks = [block["name"] for block in moe_blocks(model)]
    run_steps(model, source, pipeline.parse(pipelines[1]), report)
    parts = [part_of(model, name, report) for name in blocks] + unraised_parts(report)
    onnx_file.finish(model)
    return model, parts


def read_model(source: Any, options: ExportOptions, report: Report, default: str) -> ir.Model:
    """Import a source and run the passes of the options, or the ``default`` pipeline where they name none."""
    from moec.compiling.compile_options import with_profile
    from moec.compiling.compiler import import_model
    from moec.passes.framework.shorthand import with_formats

    before = default if options.passes is None else options.passes
    chain = with_profile([with_formats(before, options.experts, options.linears)], options.profile)
    model = import_model(source, options.example_inputs, options.dynamic_shapes, options.cache)
    run_steps(model, source, chain, report)
    return model


def run_steps(model: ir.Model, source: Any, passes: Sequence[Pass], report: Report) -> None:
    """Run passes, each announced and named in errors."""
    from moec.passes import pipeline

    for step in passes:
        report.progress(step.name)
        with reporting(step.name, source):
            pipeline.run(model, (step,), report)


def unraised_parts(report: Report) -> list[ExportedPart]:
    """The subgraphs that look like blocks and were not raised."""
    return [ExportedPart(block.node, "", f"was not raised: {block.reason}") for block in report.unraised]


def model_in(output: pathlib.Path) -> pathlib.Path:
    """Return the path of the model of an output, which is a file or a folder."""
    return output / MODEL if output.is_dir() else output


def companions(output: pathlib.Path) -> set[str]:
    """Return the names of the files that a written file needs beside it."""
    import onnx

    tensors = onnx.load(output, load_external_data=False).graph.initializer
    return {place.value for tensor in tensors for place in tensor.external_data if place.key == "location"}


def foreign(path: pathlib.Path) -> str | None:
    """Explain why moec did not write a file or folder, or why it is changed. Returns None where it is moec's own."""
    return foreign_folder(path) if path.is_dir() else foreign_file(path)

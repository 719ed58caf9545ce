"""The compilation driver: source → model → passes → program → artifact."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from moec import targets
from moec.common.arguments import check_flags, check_path, known_options, options_of
from moec.common.errors import MoecError, reporting
from moec.common.jobs import JobExecutor
from moec.common.once import one_at_a_time
from moec.common.plain_files import read_text
from moec.common.progress import Progress, silent
from moec.common.scratch import ScratchFolder
from moec.compiling.compile_options import DEFAULTS, CompileOptions, kept_text_files, with_profile
from moec.compiling.generated import generated, step
from moec.compiling.importing import import_model
from moec.compiling.stages import pass_check
from moec.targets.kind import Options, ProgramKind

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.passes.framework.base import Remark, Unraised
    from moec.placing.plan import ExpertPlan
    from moec.runtime.artifact import Artifact
    from moec.runtime.model import CompiledModel
    from moec.runtime.projects import CompiledProjects
    from moec.runtime.residents import ProgramWeights


@known_options
def compile(
    model: Any,
    example_inputs: Any = None,
    *,
    target: str = targets.DEFAULT,
    passes: str | None = None,
    threads: int | None = None,
    dynamic_shapes: Any = None,
    cache: bool | None = None,
    experts: str | None = None,
    linears: str | None = None,
    arithmetic: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    emulate: bool = False,
    resident: int | str | None = None,
    ranks: int | None = None,
    nodes: int = 1,
    replicas: int = 0,
    plan: str | os.PathLike[str] | None = None,
    stages: int | str | None = None,
    profile: str | os.PathLike[str] | None = None,
    target_options: Options | None = None,
    verify_each: bool = False,
    dump_to: str | os.PathLike[str] | None = None,
    form: str | None = None,
    batches: bool = False,
    drafts: str | None = None,
    workers: int = 0,
    executor: JobExecutor | None = None,
    progress: Progress | None = None,
) -> CompiledModel | Any:
    """Compile a model. Returns it loaded: a :class:`moec.CompiledModel`, or :class:`moec.CompiledProjects` of a target
    that makes projects for another tool, as for an FPGA.

    Raises UnsupportedError, naming node, operator and opset, for what a model asks and moec does not do; MoecError for
    a model that cannot be read, a wrong option, or an artifact that cannot be written.

    model
        Path of an ONNX file, a GGUF file or a Hugging Face folder; an ``onnx.ModelProto``; an ``onnx_ir.Model``; a
        result of ``torch.export.export`` or ``torch.onnx.export``; or a ``torch.nn.Module``.
    example_inputs, dynamic_shapes
        For a module, as ``torch.export.export`` takes them. A text model of transformers needs neither.
    target
        ``cpu``, ``cpu:avx2``, ``cuda:sm_90a``, several as ``cuda:sm_80+sm_90a``, ``hls:zcu102``, ...
    passes
        A level (``O0`` to ``O3``) or a pipeline text. None: ``O2``, which is exact, and ``O3`` for GGUF files and for
        folders whose quantiser rounds activations (:func:`moec.compiling.compile_options.default_passes`).
    threads
        Number of threads of the result. None: every available core.
    cache
        Whether a text model takes and returns the states of past tokens (:mod:`moec.frontend.pytorch.text_cache`).
        None: a GGUF file or a folder does if it can; a module keeps its inputs.
    experts, linears
        Formats to round the weights of experts and of dense products to, such as ``int4/32z``
        (:mod:`moec.passes.framework.shorthand`). None leaves them unchanged.
    arithmetic
        Type that activations are rounded to, where weights are stored in a format that it is for: ``fp8`` beside fp8,
        ``mxfp8`` and ``mxfp4`` beside mxfp4, ``nvfp4`` beside nvfp4 (:class:`~moec.ir.dialect.ProductSpec`).
    tokenizer
        A ``tokenizer.json``, or a folder that has one, to keep in the artifact for :func:`moec.generate`. None: that of
        the model's folder.
    output
        Where to write the artifact. None: a temporary folder, as long as the result lives.
    emulate
        Whether to run a program for a GPU on the processor.
    resident
        The most memory that weights take, in bytes or as ``8GiB``; further experts are read from the artifact when they
        are selected, or expected to be.
    ranks, nodes, replicas
        Number of processes that share the experts of each layer, of machines that these are on, and of further copies
        of each layer's busiest experts, which ``profile`` tells. torchrun starts the processes.
    plan
        A file of ``moec plan`` that says of each expert its format, the ranks that hold it, and whether it stays in
        memory, instead of ``resident``, ``ranks``, ``nodes`` and ``replicas``.
    stages
        Pipeline by layers: a number of processes that each hold as many layers, or their layers (``0-11,12-23``),
        counted from 0 as ``moec explore`` shows them. torchrun starts the processes; one process alone runs the whole.
    profile
        Measurements by ``moec profile``: for every pass that takes a profile and names none (``profile=FILE``, or
        ``profile=none``), and to choose which experts stay in memory with ``resident``.
    target_options
        Further options of the target, such as :class:`moec.targets.hls.options.HlsOptions`.
    verify_each
        Whether to compare the graph after every pass with the graph before it.
    dump_to
        A folder that gets the model's text after each pass, also when a later step fails.
    form
        ``c`` also writes a C library (``moec.h``, ``lib<name>.so``, ``lib<name>.a``) into the artifact, named after
        ``output``; needs a C compiler.
    batches
        Whether to compile a second program, for sequences of different lengths together
        (:meth:`moec.CompiledModel.batch`).
    drafts
        ``mtp`` keeps the model's MTP layer, as a second program that drafts tokens for :func:`moec.generate`.
    workers, executor
        Where the weights of experts are quantised, each expert in one job: in so many processes of this machine, or on
        an executor of PEP 3148 (:mod:`moec.common.jobs`). Results are the same. With neither: in this process.
    progress
        Called with the name of each step as it begins, and with its progress where it goes through many weights
        (:func:`moec.common.progress.told`).
    """
    options = options_of(CompileOptions, locals())
    check_flags(emulate=emulate)
    return compile_with(model, options, output, emulate=emulate)


def compile_with(
    model: Any, options: CompileOptions, output: str | os.PathLike[str] | None = None, *, emulate: bool = False
) -> CompiledModel | CompiledProjects:
    """Do the work of :func:`compile`."""
    from moec.artifacts.loading import ready
    from moec.runtime.load_options import LoadOptions
    from moec.runtime.projects import CompiledProjects

    is_program = isinstance(targets.kind_of(options.target), ProgramKind)
    if emulate and not is_program:
        raise MoecError(f"target '{options.target}' makes projects, which no device runs; compile without emulate")
    artifact = _written(model, options, output)
    return ready(artifact, LoadOptions(emulate=emulate)) if is_program else CompiledProjects(artifact)


def _written(model: Any, options: CompileOptions, output: str | os.PathLike[str] | None) -> Artifact:
    """Compile and open the artifact, which is in a temporary folder of its own where ``output`` is None."""
    from moec.runtime.artifact import open_artifact

    if output is not None:
        write(model, output, options)
        return open_artifact(output, check_weights=False)  # it was written a moment ago
    folder = ScratchFolder()
    path = pathlib.Path(folder.name, "model.moec")
    try:
        write(model, path, options)
        artifact = open_artifact(path, check_weights=False)
    except BaseException:
        folder.cleanup()
        raise
    artifact.owns(folder)
    return artifact


@one_at_a_time
def write(model: Any, path: str | os.PathLike[str], options: CompileOptions = DEFAULTS) -> None:
    """Compile a model and write the artifact, without loading it: it may be for another machine. Raises what
    :func:`compile` does."""
    from moec.artifacts.writer import WRITING, check_destination, write_artifact
    from moec.frontend import sources

    sources.check(model)  # before anything heavy is imported, so that a mistyped name is answered at once
    check_path("path", path)
    check_destination(path)
    options.check_further_programs()
    c_form = options.c_form(path)
    text = kept_text_files(model, options.tokenizer)

    from moec.passes.framework.base import Report
    from moec.targets.base import Program

    report = Report(progress=options.progress or silent)
    compiled = generated(model, options, report)
    with step(WRITING, model, report):
        context = compiled.context(options, report, text)
        if c_form is not None:
            assert isinstance(compiled.programs[0], Program), "the target has a processor"
            context = dataclasses.replace(context, more_files=c_form.maker(compiled.programs[0], context))
        write_artifact(path, compiled.programs[0], context, *compiled.programs[1:], progress=report.progress)


@one_at_a_time
def weights_in_memory(model: Any, options: CompileOptions = DEFAULTS) -> tuple[ExpertPlan | None, list[ProgramWeights]]:
    """Compile a model and write nothing: the plan of its experts, and the places of its programs' weights. Raises what
    :func:`compile` does."""
    from moec.artifacts.writer import weights_of_programs
    from moec.frontend import sources
    from moec.passes.framework.base import Report
    from moec.placing.metadata import plan_of

    sources.check(model)
    compiled = generated(model, options, Report(progress=options.progress or silent))
    return plan_of(compiled.graph), weights_of_programs(compiled.programs, compiled.of_stages)


@one_at_a_time
def optimize(
    model: str | os.PathLike[str],
    passes: str = "O2",
    *,
    profile: str | os.PathLike[str] | None = None,
    print_after: Collection[str] = (),
    verify_each: bool = False,
) -> tuple[str, list[Remark]]:
    """Run a pipeline on a model. Returns its text and the passes' remarks.

    ``model`` is an ONNX file, or IR text when its name ends in ``.onnxtxt``. ``profile`` as for :func:`compile`,
    ``print_after`` as for :func:`moec.passes.pipeline.run`. Raises MoecError.
    """
    from moec.ir.text import print_model
    from moec.passes import pipeline
    from moec.passes.framework.base import Report

    path, report = pathlib.Path(model), Report()
    parsed = with_profile([passes], profile)
    unknown = set(print_after) - {"all", *(named.name for named in parsed)}
    if unknown:
        raise MoecError(f"cannot print after {sorted(unknown)[0]!r}: the pipeline is {pipeline.print_pipeline(parsed)}")
    graph = _read_text_form(path) if path.suffix == ".onnxtxt" else import_model(path)
    check = pass_check(graph, path, report) if verify_each else None
    with reporting("optimizing", path):
        pipeline.run(graph, parsed, report, verify_each=verify_each, print_after=print_after, on_pass=check)
        return print_model(graph), report.remarks


def find_blocks(model: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], list[Unraised]]:
    """Find the MoE blocks of an ONNX file, described as by :func:`moec.ir.blocks.moe_blocks`, and subgraphs that look
    like blocks but are not raised. Raises MoecError."""
    from moec.ir.blocks import moe_blocks
    from moec.passes import pipeline
    from moec.passes.framework.base import Report

    graph, report = import_model(model, cache=False), Report()
    with reporting("looking for MoE blocks", model):
        pipeline.run(graph, pipeline.parse("O1"), report)
        return moe_blocks(graph), report.unraised


_LARGEST_TEXT_FORM = 1 << 30
"""Bytes of a model as text."""


def _read_text_form(path: pathlib.Path) -> ir.Model:
    from moec.frontend.onnx import operators
    from moec.ir.text import parse_model

    with reporting("reading", path):
        graph = parse_model(read_text(path, _LARGEST_TEXT_FORM))
        operators.check_operators(graph, str(path))
        return graph

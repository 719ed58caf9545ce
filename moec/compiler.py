"""The compilation driver: source → model → passes → program → artifact."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import moec
from moec import targets
from moec.common.arguments import check_flags, check_kind, check_optional_flag, check_optional_text, check_path, shown
from moec.common.byte_counts import bytes_of
from moec.common.progress import Progress, silent
from moec.errors import MoecError, UnsupportedError, reporting
from moec.provenance import provenance_of
from moec.targets.kind import ProgramKind

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.common.specs import TensorSpec
    from moec.common.tokenizers import TextFiles
    from moec.frontend.conditions import Conditions
    from moec.passes.framework.base import Pass, Remark, Report, Unraised
    from moec.passes.framework.pipeline import AfterPass
    from moec.runtime.model import CompiledModel
    from moec.runtime.writer import Context, Stage
    from moec.targets.base import Made, Target
    from moec.targets.kind import Options


def compile(
    model: Any,
    example_inputs: Any = None,
    *,
    target: str = targets.DEFAULT,
    passes: str = "O2",
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
    profile: str | os.PathLike[str] | None = None,
    verify_each: bool = False,
    progress: Progress | None = None,
) -> CompiledModel:
    """Compile a model and load the result.

    ``model``: the path of an ONNX file, a GGUF file or the folder of a Hugging Face model
    (:func:`moec.frontend.huggingface.import_folder`), an ``onnx.ModelProto``, an ``onnx_ir.Model``, what
    ``torch.export.export`` or ``torch.onnx.export`` returned, or a ``torch.nn.Module`` (then ``example_inputs`` and
    ``dynamic_shapes`` are what ``torch.export.export`` takes; a text model of transformers needs neither).
    ``cache``: let a text model take the states of the tokens before, and return them
    (:mod:`moec.frontend.text_cache`). None: where the source is a GGUF file or a folder, if it can; a module takes what
    it takes in PyTorch.
    ``passes``: a level (``O0`` to ``O3``) or a pipeline text. ``experts`` and ``linears``: formats to round the weights
    of experts and of dense products to, written as in :mod:`moec.passes.framework.shorthand`; None leaves them as they
    are. ``arithmetic``: ``fp8`` rounds activations to float8 e4m3, too, where weights are stored so. ``tokenizer``: a
    ``tokenizer.json``, or a folder that has one, to keep in the artifact for :func:`moec.generate`; by default that of
    a model's folder. ``threads``: how many the result runs with; None means every available core. ``output``: where to
    write the artifact; without it one is kept in a temporary folder as long as the result lives. ``emulate``: run a
    program for a GPU on the processor. ``resident``: the most memory that weights take, in bytes or as a text
    (``8GiB``): experts beyond that are read from the artifact when they are chosen, or expected to be; ``profile``:
    which were chosen most often, as ``moec profile`` measured it. ``progress`` is called with the name of each step as
    it begins and, where that goes through many weights, with how far it is (:func:`moec.common.progress.told`).

    Raises UnsupportedError, naming node, operator and opset, for what a model asks and moec does not do; MoecError for
    a model that cannot be read, a wrong option, or an artifact that cannot be written.
    """
    from moec.runtime.artifact import open_artifact
    from moec.runtime.model import ready

    targets.check_name(target)
    targets.program_kind_of(target)  # refuses what makes projects
    check_flags(emulate=emulate)
    arguments = (target, passes, example_inputs, dynamic_shapes)
    options: dict[str, Any] = {"cache": cache, "experts": experts, "linears": linears, "threads": threads}
    options |= {"arithmetic": arithmetic, "tokenizer": tokenizer, "verify_each": verify_each, "progress": progress}
    options |= {"resident": resident, "profile": profile}
    if output is not None:
        write(model, output, *arguments, **options)
        return ready(open_artifact(output, check_weights=False), emulate=emulate)  # it was written a moment ago
    folder = tempfile.TemporaryDirectory(prefix="moec-", ignore_cleanup_errors=True)
    path = pathlib.Path(folder.name, "model.moec")
    try:
        write(model, path, *arguments, **options)
        artifact = open_artifact(path, check_weights=False)
    except BaseException:
        folder.cleanup()
        raise
    artifact.owns(folder)
    return ready(artifact, emulate=emulate)


def write(
    model: Any,
    path: str | os.PathLike[str],
    target: str = targets.DEFAULT,
    passes: str = "O2",
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    *,
    cache: bool | None = None,
    experts: str | None = None,
    linears: str | None = None,
    arithmetic: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    options: Options | None = None,
    resident: int | str | None = None,
    profile: str | os.PathLike[str] | None = None,
    verify_each: bool = False,
    dump_to: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Compile a model and write the artifact, without loading it: it may be for another machine.

    ``dump_to`` is a folder that gets the model's text after each pass, also when a later step fails. ``options``:
    what the target takes beside its name, such as :class:`moec.targets.hls.options.HlsOptions`. Other arguments and
    errors as for :func:`compile`.
    """
    from moec.frontend import sources

    _check_options(target, passes, verify_each, progress)
    check_optional_text(experts=experts, linears=linears, arithmetic=arithmetic)
    check_optional_flag("cache", cache)
    sources.check(model)  # before anything heavy is imported: a name that was mistyped is answered at once
    _check_surroundings(path, threads, dump_to)
    text = _text_files(model, tokenizer)

    from moec.ir.blocks import moe_blocks
    from moec.passes.framework import pipeline
    from moec.passes.framework.base import Report
    from moec.runtime.writer import WRITING, check_resident, write_artifact

    announce = progress or silent
    report = Report(progress=announce)
    limit = _resident(resident, profile, target)
    chain = _chain(passes, experts, linears, arithmetic, limit is not None, profile)
    chosen = targets.get_all(target, options)
    announce("importing")
    graph = import_model(model, example_inputs, dynamic_shapes, cache)
    inputs = _inputs(graph, model, report)
    check = _pass_check(graph, model, report) if verify_each else None
    stages = list(_dumped(_run_passes(graph, model, chain, report, check, announce), dump_to))
    announce(f"generating code for {target}")
    with reporting(f"generating code for {target}", model):
        blocks = moe_blocks(graph)
        made = _generate(graph, chosen, target, report)
    announce(WRITING)
    with reporting(WRITING, model):
        if limit is not None:
            check_resident(limit, made, str(model))
        context = _context(
            graph,
            inputs,
            made[0],
            report,
            threads=threads,
            moe_blocks=blocks,
            stages=stages,
            provenance=provenance_of(model, pipeline.print_pipeline(chain)),
            text=text,
            resident=limit,
        )
        write_artifact(path, made[0], context, *made[1:], progress=announce)


def _chain(
    passes: str,
    experts: str | None,
    linears: str | None,
    arithmetic: str | None,
    streams: bool,
    profile: str | os.PathLike[str] | None,
) -> Sequence[Pass]:
    """The passes that the options of :func:`write` ask for."""
    from moec.passes.framework import pipeline
    from moec.passes.framework.shorthand import with_arithmetic, with_formats, with_streaming

    rounded = with_arithmetic(with_formats(passes, experts, linears), arithmetic)
    return pipeline.parse(with_streaming(rounded, streams, profile))


def _check_options(target: Any, passes: Any, verify_each: Any, progress: Any) -> None:
    targets.check_name(target)
    check_kind("passes", passes, str, "a level such as 'O2' or the text of a pipeline")
    check_flags(verify_each=verify_each)
    if progress is not None and not callable(progress):
        raise MoecError(f"progress is {shown(progress)}; expected a function of one string, or None")


def _resident(resident: Any, profile: Any, target: str) -> int | None:
    """How many bytes weights may take. Raises MoecError for what says no number, and for targets that stream
    nothing."""
    if resident is None:
        if profile is not None:
            raise MoecError("profile says which experts stay in memory, and resident how much memory: give that, too")
        return None
    kind = targets.kind_of(target)
    if not (isinstance(kind, ProgramKind) and kind.streams_experts):
        raise UnsupportedError(f"target '{target}' holds all weights in memory; compile without resident")
    if profile is not None:
        check_path("profile", profile)
    return bytes_of("resident", resident)


def _check_surroundings(path: Any, threads: Any, dump_to: Any) -> None:
    from moec.runtime.machine import check_threads
    from moec.runtime.writer import check_destination

    check_path("path", path)
    check_threads(threads)
    if dump_to is not None:
        check_path("dump_to", dump_to)
    check_destination(path)


def _text_files(model: Any, tokenizer: Any) -> TextFiles | None:
    from moec.frontend.text_files import read_text_files, text_files_of

    if tokenizer is None:
        return text_files_of(model)
    check_path("tokenizer", tokenizer)
    return read_text_files(tokenizer)


def _context(graph: ir.Model, inputs: _Inputs, made: Made, report: Report, **others: Any) -> Context:
    """What the artifact keeps of a compilation; ``others``: its fields that no argument tells."""
    from moec.ir.states import states_of
    from moec.runtime.writer import Context

    return Context(
        moec_version=moec.__version__,
        input_limits=inputs.limits,
        input_sizes=inputs.sizes,
        counted_inputs=inputs.counted,
        guards=inputs.guards(graph, made),
        states=states_of(graph),
        remarks=[dataclasses.asdict(remark) for remark in report.remarks],
        losses=[dataclasses.asdict(loss) for loss in report.losses],
        **others,
    )


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """What an imported model says of its inputs."""

    limits: dict[str, int]
    sizes: dict[str, str]
    counted: list[str]
    specs: list[TensorSpec]
    conditions: Conditions

    def guards(self, graph: ir.Model, made: Made) -> list[str]:
        """The guards of what a target made; ``graph`` is what the passes made, which know more of the sizes inside."""
        from moec.frontend.conditions import settled
        from moec.passes.shapes.needed_sizes import needed_sizes

        return settled([*self.conditions.guards, *needed_sizes(graph)], self.specs, made.inputs)


def _inputs(graph: ir.Model, source: Any, report: Report) -> _Inputs:
    """The inputs of a model that no pass has changed; what it is limited to is reported."""
    from moec.common.specs import tensor_specs
    from moec.frontend.conditions import conditions_of
    from moec.passes.shapes.counted_inputs import counted_inputs
    from moec.passes.shapes.input_limits import input_limits
    from moec.passes.shapes.input_sizes import input_sizes

    with reporting("reading its inputs", source):
        specs = tensor_specs(graph.graph.inputs)
        found = _Inputs(input_limits(graph), input_sizes(graph), counted_inputs(graph), specs, conditions_of(graph))
    found.conditions.report(specs, report)
    return found


def _dumped(stages: Iterable[Stage], folder: str | os.PathLike[str] | None) -> Iterator[Stage]:
    """The same stages, each of them in the folder, if there is one, before the next begins."""
    for index, stage in enumerate(stages):
        if folder is not None:
            _dump(pathlib.Path(folder), index, stage)
        yield stage


def _generate(graph: ir.Model, chosen: Sequence[Target], name: str, report: Report) -> list[Made]:
    """What all targets make that ``name`` lists; what several warn of is reported once."""
    try:
        made = [target.compile(graph) for target in chosen]
    except UnsupportedError as error:
        raise UnsupportedError(f"{error}{_why_not_raised(graph, report)}") from error
    for warning in dict.fromkeys(warning for program in made for warning in program.warnings):
        report.warn("generating code", name, warning)
    return made


def _why_not_raised(graph: ir.Model, report: Report) -> str:
    """What raising warned of, where a target that refuses a model saw no MoE block in it."""
    from moec.ir.blocks import moe_blocks

    warned = [remark for remark in report.remarks if (remark.pass_name, remark.severity) == ("raise-moe", "warning")]
    if not warned or moe_blocks(graph):
        return ""
    more = f" (and {len(warned) - 1} more)" if len(warned) > 1 else ""
    return f"; {warned[0].pass_name}: {warned[0].subject}: {warned[0].message}{more}"


def optimize(
    model: str | os.PathLike[str],
    passes: str = "O2",
    *,
    print_after: Collection[str] = (),
    verify_each: bool = False,
) -> tuple[str, list[Remark]]:
    """The text of a model after a pipeline, and the passes' remarks. ``model`` is an ONNX file, or IR text when its
    name ends in ``.onnxtxt``. ``print_after`` as for :func:`moec.passes.framework.pipeline.run`. Raises MoecError."""
    from moec.ir.text import print_model
    from moec.passes.framework import pipeline
    from moec.passes.framework.base import Report

    path, report = pathlib.Path(model), Report()
    parsed = pipeline.parse(passes)
    unknown = set(print_after) - {"all", *(named.name for named in parsed)}
    if unknown:
        raise MoecError(f"cannot print after {sorted(unknown)[0]!r}: the pipeline is {pipeline.print_pipeline(parsed)}")
    graph = _read_text_form(path) if path.suffix == ".onnxtxt" else import_model(path)
    check = _pass_check(graph, path, report) if verify_each else None
    with reporting("optimizing", path):
        pipeline.run(graph, parsed, report, verify_each=verify_each, print_after=print_after, on_pass=check)
        return print_model(graph), report.remarks


def find_blocks(model: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], list[Unraised]]:
    """The MoE blocks of an ONNX file as :func:`moec.ir.blocks.moe_blocks` describes them, and what looks like one and
    is not raised. Raises MoecError."""
    from moec.ir.blocks import moe_blocks
    from moec.passes.framework import pipeline
    from moec.passes.framework.base import Report

    graph, report = import_model(model, cache=False), Report()
    with reporting("looking for MoE blocks", model):
        pipeline.run(graph, pipeline.parse("O1"), report)
        return moe_blocks(graph), report.unraised


def _read_text_form(path: pathlib.Path) -> ir.Model:
    from moec.ir.text import parse_model

    with reporting("reading", path):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise MoecError(f"{path}: cannot be read as text: {getattr(error, 'strerror', None) or error}") from error
        return parse_model(text)


def import_model(
    model: Any, example_inputs: Any = None, dynamic_shapes: Any = None, cache: bool | None = None
) -> ir.Model:
    """The model as ONNX IR at the working opset, before any pass. Sources and errors as for :func:`compile`."""
    from moec.frontend import sources

    if sources.is_torch(model, "nn.Module"):
        from moec.frontend import pytorch

        return pytorch.import_module(model, example_inputs, dynamic_shapes, cache=bool(cache))
    if example_inputs is not None or dynamic_shapes is not None:
        raise MoecError(
            "example_inputs and dynamic_shapes are for PyTorch modules; an exported model carries its shapes"
        )
    sources.check(model)
    with reporting("importing", model):
        return sources.import_exported(model, cache)


def _run_passes(
    model: ir.Model, source: Any, passes: Sequence[Pass], report: Report, check: AfterPass | None, announce: Progress
) -> Iterator[Stage]:
    from moec.ir.text import print_model
    from moec.ir.weight_hashes import hash_weights
    from moec.passes.framework import pipeline
    from moec.runtime.writer import Stage

    yield Stage("import", print_model(model), 0.0)
    for step in passes:
        announce(step.name)
        start = time.perf_counter()
        with reporting(step.name, source):
            changed = pipeline.run(model, (step,), report, verify_each=check is not None, on_pass=check)
        seconds = time.perf_counter() - start
        if changed:
            hash_weights(model, announce, f"{step.name}, hashing")
        yield Stage(step.name, print_model(model) if changed else None, seconds)


def _pass_check(graph: ir.Model, source: Any, report: Report) -> AfterPass:
    """What looks after every pass whether the graph computes what it did."""
    from moec.tools.pass_check import PassCheck

    with reporting("choosing inputs to compare on after each pass", source):
        return PassCheck(graph, report).after


def _dump(folder: pathlib.Path, index: int, stage: Stage) -> None:
    from moec.common.seals import write_sealed

    if stage.text is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MoecError(f"{folder}: the phases cannot be written: {error.strerror or error}") from error
    write_sealed(folder / f"{index:02d}-{stage.name}.onnxtxt", stage.text.encode(), "# ")

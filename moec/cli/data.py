"""Commands that take data: ``moec profile`` measures a model's layers on it, ``moec evaluate`` and ``moec sweep``
judge models by it."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moec.cli.groups import with_groups
from moec.cli.options import Emulate, Json, Level, Model, OptimisationLevel, Threads, Workers
from moec.cli.printing import print_result, shown_progress
from moec.common.errors import MoecError

if TYPE_CHECKING:
    from moec.runtime.model import CompiledModel
    from moec.tools.data import TextOptions
    from moec.tools.sweeping import Sweep

Data = Annotated[
    list[Path],
    typer.Option(
        "--data", help="Use this data: an .npz file of inputs, a folder of such files, or a text. Repeatable."
    ),
]


@dataclasses.dataclass(frozen=True)
class RowOptions:
    """Options of dividing texts into batches."""

    tokenizer: Annotated[
        Path | None, typer.Option(help="Tokenize texts by this tokenizer.json. Default: the model's own.")
    ] = None
    length: Annotated[int, typer.Option(min=2, help="Cut texts into rows of this many tokens.")] = 256
    batch: Annotated[int, typer.Option(min=1, help="Run this many rows of text together.")] = 8
    rows: Annotated[int | None, typer.Option(min=1, help="Use only this many rows of each text.")] = None

    def options(self) -> TextOptions:
        from moec.tools.data import TextOptions

        return TextOptions(self.tokenizer, self.length, self.batch, self.rows)


@dataclasses.dataclass(frozen=True)
class JudgingOptions:
    """Options of judging models by their outputs on data."""

    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Compute loss, perplexity or top1 (from labels), kl or cosine (against the first model). Repeatable."
        ),
    ] = None
    labels: Annotated[
        Path | None,
        typer.Option(help="Read labels from this .npz file. Default: labels in the data, or the next tokens."),
    ] = None
    output_name: Annotated[
        str | None, typer.Option(help="Judge this output. Required where several outputs could be meant.")
    ] = None

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of :func:`moec.evaluate` and :func:`moec.sweep`."""
        return {"metrics": self.metric or (), "labels": self.labels, "output": self.output_name}


def asked_pipeline(level: Level | None, passes: str | None) -> str | None:
    """Select the pipeline text by ``-O`` or ``--passes``. Returns None where neither is given."""
    if level is not None and passes is not None:
        raise MoecError("give -O or --passes, not both; a pipeline may begin with a level: --passes O1,...")
    return passes if level is None else f"O{level.value}"


def pipeline_of(level: Level | None, passes: str | None) -> str:
    """Select the pipeline text by ``-O`` or ``--passes``, by default O2."""
    asked = asked_pipeline(level, passes)
    return f"O{Level.O2.value}" if asked is None else asked


@with_groups
def profile(
    model: Model,
    data: Data,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Write the profile to this .moeprof file.")],
    level: OptimisationLevel = None,
    passes: Annotated[str | None, typer.Option(help="Measure the model after this pipeline.")] = None,
    texts: RowOptions,
    formats: Annotated[
        str | None, typer.Option(help="Measure the errors of these formats. Default: int8,int4/32,int3/32,int2/32.")
    ] = None,
    moments: Annotated[
        bool,
        typer.Option(help="Keep second moments, which gptq and awq need. They take most of the time and of the file."),
    ] = True,
    minimum: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Measure dense products whose weight has at least this many elements. Default: as quantize-linears.",
        ),
    ] = None,
    merge: Annotated[
        list[Path] | None, typer.Option(metavar="P", help="Add this profile of the same model. Repeatable.")
    ] = None,
    threads: Threads = None,
    workers: Workers = 0,
    as_json: Json = False,
) -> None:
    """Profile the experts of MODEL on data.

    Passes that specialise experts read the profile.
    """
    from moec.inspect.profiles import measured_tables
    from moec.passes.weights.linears import MINIMUM
    from moec.tools.profiling import FORMATS, profile

    with shown_progress() as progress:
        measured = profile(
            model,
            data,
            output,
            passes=pipeline_of(level, passes),
            text=texts.options(),
            formats=formats or FORMATS,
            moments=moments,
            minimum=MINIMUM if minimum is None else minimum,
            merge_with=merge or (),
            threads=threads,
            workers=workers,
            progress=progress,
        )
    print_result(dataclasses.asdict(measured), as_json, measured_tables(measured, str(output)))


@with_groups
def evaluate(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL|ART...",
            help="Artifacts, or models to compile: ONNX files, GGUF files, Hugging Face folders.",
        ),
    ],
    data: Data,
    *,
    judging: JudgingOptions,
    texts: RowOptions,
    threads: Threads = None,
    emulate: Emulate = False,
    workers: Workers = 0,
    page: Annotated[Path | None, typer.Option(metavar="HTML", help="Also write the results as a page.")] = None,
    as_json: Json = False,
) -> None:
    """Evaluate models on the same data.

    Shows the quality and size of each, and how certain the differences are.
    """
    from moec.common.replacing import check_replaceable
    from moec.common.seals import foreign_file
    from moec.distributed.start import is_silent_rank, is_started_on_ranks, loaded
    from moec.exploring.results import write_evaluation
    from moec.inspect.evaluation import evaluation_tables, nan_notes
    from moec.tools.evaluate import evaluate as evaluate_models

    if page is not None:
        check_replaceable(page, foreign_file)
    with contextlib.ExitStack() as ranks:
        contestants: list[Path | CompiledModel] = list(models)
        if is_started_on_ranks():
            if len(models) > 1:
                raise MoecError("on several ranks evaluate takes one artifact; evaluate the others by further runs")
            if workers:
                raise MoecError("on several ranks evaluate runs in them; leave --workers out")
            contestants = [ranks.enter_context(loaded(models[0], threads=threads, emulate=emulate))]
        with shown_progress() as progress:
            evaluation = evaluate_models(
                contestants,
                data,
                **judging.keywords(),
                text=texts.options(),
                threads=threads,
                emulate=emulate,
                workers=workers,
                names=[str(path) for path in models],
                progress=progress,
            )
        if page is not None and not is_silent_rank():
            write_evaluation(evaluation, page)
        print_result(evaluation.as_data(), as_json, evaluation_tables(evaluation))
        for note in nan_notes(evaluation):
            print(f"note: {note}", file=sys.stderr)


@with_groups
def sweep(
    model: Model,
    data: Data,
    *,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Write sweep.json and sweep.html to this folder.")
    ],
    profile: Annotated[
        Path | None,
        typer.Option(help="Read this .moeprof file, made by moec profile from MODEL. gptq and --avg need it."),
    ] = None,
    formats: Annotated[
        str | None, typer.Option(help="Try these formats of experts' weights, such as int8,int4/32,int2.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Try these methods of rounding: rtn,gptq,awq.")] = None,
    avg: Annotated[
        str | None, typer.Option(help="Try assign-bits with these averages of bits, such as 2,2.5,4.")
    ] = None,
    passes: Annotated[list[str] | None, typer.Option(help="Try this pipeline, too. Repeatable.")] = None,
    judging: JudgingOptions,
    texts: RowOptions,
    threads: Threads = None,
    workers: Workers = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the artifacts in DIR.")] = False,
    as_json: Json = False,
) -> None:
    """Compile MODEL by many pipelines, and judge and time each.

    Marks those that no other beats.
    Results that DIR/sweep.json has already are not computed again.
    """
    from moec.tools.sweeping import sweep as sweep_models
    from moec.tools.sweeping import variants

    pipelines = variants(
        passes or (), formats=_listed(formats), averages=_listed(avg), methods=_listed(methods), profile=profile
    )
    with shown_progress() as progress:
        swept = sweep_models(
            model,
            data,
            output,
            pipelines,
            **judging.keywords(),
            text=texts.options(),
            threads=threads,
            keep=keep,
            workers=workers,
            progress=progress,
        )
    _report_sweep(swept, output, as_json)


def _report_sweep(swept: Sweep, folder: Path, as_json: bool) -> None:
    """Show the results of a sweep. Raises MoecError where variants failed."""
    from moec.exploring.results import write_sweep
    from moec.inspect import sweeps
    from moec.tools.sweeping.driver import PAGE

    print_result(sweeps.sweep_data(swept), as_json, sweeps.sweep_tables(swept))
    for chain, failure in swept.failures.items():
        print(f"note: {sweeps.label(chain)}: {failure}", file=sys.stderr)
    write_sweep(swept, folder / PAGE)
    if swept.failures:
        tried = len(swept.failures) + len(swept.variants)
        raise MoecError(f"{len(swept.failures)} of {tried} variants failed; the notes say why")


def _listed(text: str | None) -> list[str]:
    return [item.strip() for item in (text or "").split(",") if item.strip()]

"""``moec inspect``: show the contents of an artifact."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moec import targets
from moec.cli.groups import with_groups
from moec.cli.options import Architecture, Artifact, Json
from moec.cli.printing import print_result, shown_progress
from moec.cli.targets import STANDALONE, TIR, Form
from moec.common.errors import MoecError

if TYPE_CHECKING:
    from moec.exploring.subject import Subject
    from moec.runtime.artifact import Artifact as Opened

TOKENS = "1,16,256,4096,32768"
"""Default numbers of tokens for which launches are estimated."""
RANK_TOKENS = "1,256"
"""Default numbers of tokens of each rank for which runs on several ranks are predicted."""


@dataclasses.dataclass(frozen=True)
class PredictionOptions:
    """Ranks that a run is predicted for."""

    ranks: Annotated[
        int | None,
        typer.Option(min=1, help="Predict the time of layers on this many ranks instead, and what would help most."),
    ] = None
    nodes: Annotated[int | None, typer.Option(min=1, help="Spread --ranks over this many machines.")] = None
    link: Annotated[
        str | None,
        typer.Option(metavar="LINK", help="Connect --ranks by links of this bandwidth and latency, as 50GB/s,5us."),
    ] = None
    link_between: Annotated[
        str | None,
        typer.Option(metavar="LINK", help="Connect ranks of different --nodes by these links. Default: as --link."),
    ] = None
    profile: Annotated[
        Path | None,
        typer.Option(
            "--profile",
            "--trace",
            help="Take tokens for --ranks, with the experts that they select together, from this file of moec profile.",
        ),
    ] = None
    plan: Annotated[
        Path | None,
        typer.Option(metavar="JSON", help="Place experts on --ranks as this file of moec plan says."),
    ] = None

    @property
    def is_asked(self) -> bool:
        """Whether a run is to be predicted. Raises MoecError for other options without ``--ranks``."""
        if self.ranks is None and self != PredictionOptions():
            raise MoecError("--nodes, --link, --link-between, --profile and --plan need --ranks; add it")
        return self.ranks is not None


@with_groups
def inspect(
    artifact: Artifact,
    *,
    as_json: Json = False,
    kernel: Annotated[str | None, typer.Option(help="Show this kernel's source instead.")] = None,
    emit: Annotated[Form, typer.Option(help="Show the source of --kernel in this form.")] = TIR,
    expert: Annotated[
        str | None, typer.Option(metavar="LAYER:EXPERT", help="Show the history of this expert instead, with reasons.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Write a standalone program to this folder.")
    ] = None,
    architecture: Architecture = None,
    launches: Annotated[
        bool,
        typer.Option("--launches", help="Show the launches on a GPU instead, with the least time that each can take."),
    ] = False,
    gpu: Annotated[
        str | None,
        typer.Option(help="Estimate --launches for this GPU, such as h100 or rtx5090. Default: by the architecture."),
    ] = None,
    predicting: PredictionOptions,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="T,T,...",
            help=f"Estimate --launches, or --ranks, for these numbers of tokens. [default: {TOKENS}, or {RANK_TOKENS}]",
        ),
    ] = None,
    past: Annotated[
        int | None, typer.Option(min=0, help="Estimate --launches after this many tokens of a session. [default: 0]")
    ] = None,
) -> None:
    """Show the contents of an artifact: MoE blocks, kernels and why they were chosen, weights, passes and remarks."""
    from moec.exploring.subject import Subject
    from moec.runtime.artifact import open_artifact
    from moec.runtime.description import find_kernel

    if (expert is not None) + (kernel is not None) + launches + predicting.is_asked > 1:
        raise MoecError("give one of --expert, --kernel, --launches and --ranks")
    _check_estimates(launches, predicting.is_asked, gpu, tokens, past, architecture)
    if emit.value == STANDALONE:
        _write_standalone(artifact, kernel, output, architecture)
        return
    if output is not None:
        raise MoecError("-o needs --emit standalone; other forms are printed")
    if kernel is None and emit is not TIR:
        raise MoecError(f"--emit {emit.value} shows the source of one kernel; add --kernel K")
    opened = open_artifact(artifact, check_weights=False)
    if predicting.is_asked:
        subject = Subject(artifact.name, opened, architecture, predicting.profile, may_measure=True)
        _show_ranks(subject, predicting, RANK_TOKENS if tokens is None else tokens, gpu, as_json)
    elif launches:
        _show_launches(opened, gpu, TOKENS if tokens is None else tokens, past, as_json)
    elif kernel is not None:
        print(find_kernel(opened, kernel, architecture).source(emit.value))
    else:
        _show_artifact(opened, artifact.name, expert, architecture, as_json)


def _check_estimates(
    launches: bool, ranks: bool, gpu: str | None, tokens: str | None, past: int | None, architecture: str | None
) -> None:
    """Raise MoecError for options of estimates without an estimate."""
    if not launches and past is not None:
        raise MoecError("--past needs --launches; add it")
    if not launches and not ranks and (gpu is not None or tokens is not None):
        raise MoecError("--gpu and --tokens need --launches or --ranks; add one of them")
    if launches and architecture is not None:
        raise MoecError("--architecture does not go with --launches; name a GPU with --gpu")


def _show_launches(opened: Opened, gpu: str | None, tokens: str, past: int | None, as_json: bool) -> None:
    from moec.common.arguments import token_counts

    numbers = token_counts("tokens", tokens, least=1)
    estimated = targets.kind_of(opened.manifest.target).estimate_launches(opened, gpu, numbers, past)
    print_result(estimated.data, as_json, estimated.tables)


def _show_ranks(subject: Subject, predicting: PredictionOptions, tokens: str, gpu: str | None, as_json: bool) -> None:
    from moec.common.arguments import token_counts
    from moec.inspect.ranks import ranks_tables
    from moec.predicting.links import parse_link
    from moec.predicting.report import predict_on_ranks, report_data

    assert predicting.ranks is not None
    if predicting.link is None:
        raise MoecError("--ranks needs the links between them: add --link, such as --link 50GB/s,5us")
    inside = parse_link("--link", predicting.link)
    between = predicting.link_between
    outside = inside if between is None else parse_link("--link-between", between)
    numbers = token_counts("tokens", tokens, least=1)
    report = predict_on_ranks(
        subject, predicting.ranks, predicting.nodes or 1, inside, outside, numbers, predicting.plan, gpu
    )
    print_result(report_data(report), as_json, ranks_tables(report))


def _show_artifact(opened: Opened, title: str, expert: str | None, architecture: str | None, as_json: bool) -> None:
    """Show the whole artifact, or the history of one expert."""
    from rich.text import Text

    from moec.exploring.document import document
    from moec.exploring.streaming import streaming
    from moec.exploring.subject import Subject
    from moec.inspect.artifact import artifact_tables
    from moec.inspect.one_expert import became, find_expert
    from moec.inspect.streams import streaming_tables

    subject = Subject(title, opened, architecture)
    if expert is not None:
        history = find_expert(subject.description["moe_blocks"], expert)
        print_result(history, as_json, [Text(became(history))])
    elif as_json:
        print_result(document([subject]), as_json, [])
    else:
        streams = streaming(opened)
        shown = [] if streams is None else streaming_tables(streams)
        print_result({}, as_json, [*artifact_tables(subject.description), *shown])


def _write_standalone(artifact: Path, kernel: str | None, folder: Path | None, architecture: str | None) -> None:
    from moec.runtime.artifact import open_artifact
    from moec.tools.standalone import write_standalone

    if kernel is None or folder is None:
        raise MoecError("--emit standalone writes a program of one kernel; add --kernel K and -o DIR")
    with shown_progress() as progress:
        progress("running the model emulated")
        write_standalone(open_artifact(artifact), kernel, folder, architecture)
    print(f"{folder / kernel}.cu and {kernel}.numbers are written; the head of the first says how to run it")

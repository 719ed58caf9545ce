"""Arguments and options that several commands of :mod:`moec.cli.main` share."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer


class Level(str, enum.Enum):
    """Optimisation levels, written ``-O2``."""

    O0 = "0"
    O1 = "1"
    O2 = "2"
    O3 = "3"


class PageKind(str, enum.Enum):
    """Kinds of pages for weights in memory."""

    AUTO = "auto"
    MAPPED = "mapped"
    HUGE = "huge"
    STREAMED = "streamed"


_MODELS = "An ONNX file, a GGUF file, or the folder of a Hugging Face model."
Model = Annotated[Path, typer.Argument(metavar="MODEL", help=_MODELS)]
Source = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help=_MODELS),
]
Artifact = Annotated[Path, typer.Argument(metavar="ART", help="An artifact: a folder, or a .zip of one.")]
OptimisationLevel = Annotated[
    Level | None,
    typer.Option("-O", help="Optimisation level; -O2, the default, is exact, -O3 (GGUF's) rounds activations, too."),
]
Experts = Annotated[
    str | None,
    typer.Option(help="Round experts' weights to tf32, bf16, fp16, int8 to int2, mxfp4, fp4 or fp8."),
]
Linears = Annotated[str | None, typer.Option(help="Round weights of dense products likewise; int4/32z: groups of 32.")]
Arithmetic = Annotated[
    str | None, typer.Option(help="fp8: round activations to fp8, too, where weights are stored so.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to run with; default and limit: the cores.")]
Inputs = Annotated[Path | None, typer.Option(help="An .npz file of inputs by name; default: random inputs.")]
Profile = Annotated[
    Path | None,
    typer.Option(help="A profile by moec profile, for every pass that takes one and for the experts of --resident."),
]
PagesOption = Annotated[PageKind, typer.Option(help="Whether weights are mapped, copied into huge pages, or streamed.")]
Resident = Annotated[
    str | None,
    typer.Option(metavar="BYTES", help="The most memory that weights take (8GiB); more experts are read when chosen."),
]
PreferResident = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        metavar="LOSS",
        help="Experts in memory replace others where at most this share of their weight is lost.",
    ),
]
Emulate = Annotated[bool, typer.Option("--emulate", help="Run code for a GPU on the processor; needs g++.")]
Architecture = Annotated[str | None, typer.Option(help="Of the program, where ART has several: sm_80, ...")]
VerifyEach = Annotated[
    bool,
    typer.Option("--verify-each", help="Check after every pass that the IR keeps its rules and computes the same."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]

"""Arguments and options that several commands of :mod:`moec.cli.main` share."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path
from typing import Annotated, Any

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
Artifact = Annotated[Path, typer.Argument(metavar="ART", help="An artifact: a folder, or a .zip of one.")]
OptimisationLevel = Annotated[
    Level | None,
    typer.Option(
        "-O",
        help="Optimise at this level. -O2, the default, is exact. -O3, compile's for GGUF, also rounds activations.",
    ),
]
Passes = Annotated[str | None, typer.Option(help="Run this pipeline instead of a level. moec pipeline -O2 shows one.")]
Cache = Annotated[
    bool | None,
    typer.Option(help="Keep keys and values of earlier tokens. Default: for GGUF files and folders, if possible."),
]
Experts = Annotated[
    str | None,
    typer.Option(help="Round experts' weights to tf32, bf16, fp16, int8 to int2, iq4, mxfp4, nvfp4, fp4 or fp8."),
]
Linears = Annotated[
    str | None, typer.Option(help="Round weights of dense products to these formats; int4/32z has groups of 32.")
]
Arithmetic = Annotated[
    str | None,
    typer.Option(
        help="Round activations to fp8 beside weights in fp8, to mxfp8 or mxfp4 beside mxfp4, to nvfp4 beside nvfp4."
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Run with this many threads. Default and limit: the number of cores.")
]
Workers = Annotated[
    int, typer.Option(min=0, help="Share the work among this many processes. Results are the same. Default: none.")
]
Inputs = Annotated[Path | None, typer.Option(help="Read inputs by name from this .npz file. Default: random inputs.")]
Profile = Annotated[
    Path | None,
    typer.Option(help="Give this profile, made by moec profile, to all passes that take one and to --resident."),
]
PagesOption = Annotated[PageKind, typer.Option(help="Map weights, copy them into huge pages, or stream them.")]
Resident = Annotated[
    str | None,
    typer.Option(
        metavar="BYTES",
        help="Keep weights of at most this size in memory, such as 8GiB. Read other experts when chosen.",
    ),
]
KeepCounts = Annotated[
    Path | None,
    typer.Option(help="Count in this file how often experts are chosen. Those chosen most are read first."),
]
Emulate = Annotated[bool, typer.Option("--emulate", help="Run code for a GPU on the processor. Needs g++.")]
Architecture = Annotated[
    str | None, typer.Option(help="Run the program for this architecture, such as sm_80, if ART has several.")
]
VerifyEach = Annotated[
    bool,
    typer.Option("--verify-each", help="Check after every pass that the IR is valid and computes the same."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Plan = Annotated[
    Path | None, typer.Option(help="Follow this file of moec plan: formats, ranks and memory of every expert.")
]
Ranks = Annotated[
    int | None, typer.Option(min=1, help="Spread experts over this many processes; torchrun starts them.")
]
Nodes = Annotated[int, typer.Option(min=1, help="Number of machines that the ranks are on.")]
Replicas = Annotated[
    int, typer.Option(min=0, help="Hold this many further copies of each layer's busiest experts. Needs --profile.")
]


@dataclasses.dataclass(frozen=True)
class RunningOptions:
    """Options of the threads and the memory that an artifact runs with."""

    threads: Threads = None
    pages: PagesOption = PageKind.AUTO
    resident: Resident = None
    prefer_resident: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="LOSS",
            help="Replace chosen experts by those in memory if at most this share of their weight is lost.",
        ),
    ] = 0.0

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of :func:`moec.load`."""
        return {**vars(self), "pages": self.pages.value}


@dataclasses.dataclass(frozen=True)
class LoadingOptions(RunningOptions):
    """Options of loading an artifact."""

    keep_counts: KeepCounts = None
    emulate: Emulate = False
    architecture: Architecture = None


@dataclasses.dataclass(frozen=True)
class FormatOptions:
    """Formats that a model is rounded to: arguments of :func:`moec.compile`."""

    experts: Experts = None
    linears: Linears = None
    arithmetic: Arithmetic = None


@dataclasses.dataclass(frozen=True)
class PlacingOptions:
    """Places of experts and layers: arguments of :func:`moec.compile`."""

    resident: Resident = None
    ranks: Ranks = None
    nodes: Nodes = 1
    replicas: Replicas = 0
    plan: Plan = None
    stages: Annotated[
        str | None,
        typer.Option(help="Divide layers among processes: how many, or the layers of each, such as 0-11,12-23."),
    ] = None
    profile: Profile = None

"""What the commands of :mod:`moec.cli` take: their arguments and options, each said once."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moec.errors import MoecError

if TYPE_CHECKING:
    from moec.targets.hls.options import HlsOptions


class Level(str, enum.Enum):
    """Optimisation levels, written ``-O2``."""

    O0 = "0"
    O1 = "1"
    O2 = "2"
    O3 = "3"


class Form(str, enum.Enum):
    """Forms a kernel can be shown in."""

    TIR = "tir"
    LLVM = "llvm"
    ASSEMBLY = "asm"
    CUDA = "cuda"
    PTX = "ptx"
    SASS = "sass"
    RESOURCES = "resources"
    STANDALONE = "standalone"


class PageKind(str, enum.Enum):
    """Where weights lie in memory."""

    AUTO = "auto"
    MAPPED = "mapped"
    HUGE = "huge"


class PipelineStyle(str, enum.Enum):
    """Of an FPGA's pipelines: stalling, free running, flushing."""

    STP = "stp"
    FRP = "frp"
    FLP = "flp"


Model = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.")]
Artifact = Annotated[Path, typer.Argument(metavar="ART", help="An artifact: a folder, or a .zip of one.")]
OptimisationLevel = Annotated[Level | None, typer.Option("-O", help="Optimisation level, e.g. -O2 (the default).")]
Target = Annotated[
    str, typer.Option(help="What to compile for: cpu, cpu:avx2, cuda, cuda:sm_80+sm_90a, hls:zcu102, ...")
]
Experts = Annotated[str | None, typer.Option(help="Round experts' weights to tf32, bf16, fp16, int8, int4 or mxfp4.")]
Linears = Annotated[str | None, typer.Option(help="Round weights of dense products likewise; int4/32z: groups of 32.")]
_FPGA = "For --target hls:PART"
Calibrate = Annotated[
    Path | None, typer.Option(help="An .npz file of inputs by name: scales and test vectors.", rich_help_panel=_FPGA)
]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Tokens in one call, at most.", rich_help_panel=_FPGA)]
WeightBits = Annotated[int | None, typer.Option(help="Of experts: 8 (the default) or 4.", rich_help_panel=_FPGA)]
MaxDsp = Annotated[int | None, typer.Option(min=1, help="Default: 80% of the part.", rich_help_panel=_FPGA)]
MaxBram = Annotated[int | None, typer.Option(min=1, help="Of 18 Kbit. Default: 80%.", rich_help_panel=_FPGA)]
MaxLut = Annotated[int | None, typer.Option(min=1, help="Default: 70%.", rich_help_panel=_FPGA)]
Uram = Annotated[bool, typer.Option("--uram", help="Large arrays may be in UltraRAM.", rich_help_panel=_FPGA)]
Clock = Annotated[float | None, typer.Option(min=1, help="MHz. Default: the part's.", rich_help_panel=_FPGA)]
MemoryShare = Annotated[
    float | None, typer.Option(min=0.01, max=1, help="Of the peak bandwidth. Default: 1.", rich_help_panel=_FPGA)
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to run with; default and limit: the cores.")]
Inputs = Annotated[Path | None, typer.Option(help="An .npz file of inputs by name; default: random inputs.")]
PagesOption = Annotated[PageKind, typer.Option(help="Whether weights are mapped or copied into huge pages.")]
Emulate = Annotated[bool, typer.Option("--emulate", help="Run code for a GPU on the processor; needs g++.")]
Architecture = Annotated[str | None, typer.Option(help="Of the program, where ART has several: sm_80, ...")]
VerifyEach = Annotated[
    bool,
    typer.Option("--verify-each", help="Check after every pass that the IR keeps its rules and computes the same."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def hls_options(
    calibrate: Path | None, max_tokens: int | None, weight_bits: int | None, constraints: dict[str, Any]
) -> HlsOptions | None:
    """The options of an FPGA together; None where nothing of an FPGA's is asked for. ``constraints``: fields of
    ``Constraints``, None where they are not given.

    Raises MoecError for a file that cannot be read, and for numbers that no design has.
    """
    given = {name: value for name, value in constraints.items() if value is not None}
    if calibrate is None and max_tokens is None and weight_bits is None and not given:
        return None
    from moec.common import array_files
    from moec.targets.hls.moe.exploration import Constraints
    from moec.targets.hls.options import HlsOptions

    if weight_bits not in (None, 4, 8):
        raise MoecError(f"--weight-bits {weight_bits}: expected 4 or 8")
    arrays = None if calibrate is None else array_files.read_arrays(calibrate, ())
    return HlsOptions(arrays, max_tokens, 4 if weight_bits == 4 else 8, Constraints(**given))

"""The command line for FPGAs: options of ``moec compile``, and the command ``moec simulate``."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from moec.common.errors import MoecError
from moec.targets.kind import CommandResult, Options

_option = functools.partial(typer.Option, rich_help_panel="For --target hls:PART")


class PipelineStyle(str, enum.Enum):
    """Behaviour of an FPGA's pipelines: stalling, free running or flushing."""

    STP = "stp"
    FRP = "frp"
    FLP = "flp"


def read_options(
    calibrate: Annotated[
        Path | None, _option(help="Take scales and test vectors from the inputs in this .npz file.")
    ] = None,
    max_tokens: Annotated[int | None, _option(min=1, help="Take at most this many tokens in one call.")] = None,
    max_length: Annotated[
        int | None,
        _option(
            min=1, help="Take sequences of at most this many tokens in several calls, with a cache of keys and values."
        ),
    ] = None,
    weight_bits: Annotated[int | None, _option(help="Store experts' weights in 8 or 4 bits. Default: 8.")] = None,
    max_dsp: Annotated[int | None, _option(min=1, help="Use at most this many DSPs. Default: 80% of the part.")] = None,
    max_bram: Annotated[
        int | None, _option(min=1, help="Use at most this many block RAMs of 18 Kbit. Default: 80% of the part.")
    ] = None,
    max_lut: Annotated[int | None, _option(min=1, help="Use at most this many LUTs. Default: 70% of the part.")] = None,
    uram: Annotated[bool, _option("--uram", help="Allow large arrays in UltraRAM.")] = False,
    clock: Annotated[float | None, _option(min=1, help="Run at this clock in MHz. Default: the part's.")] = None,
    memory_share: Annotated[
        float | None, _option(min=0.01, max=1, help="Count on this share of the memory's peak bandwidth. Default: 1.")
    ] = None,
    calibrated: Annotated[
        list[Path] | None,
        _option(help="Correct estimates by this file, written by compare_report.py --save. Repeatable."),
    ] = None,
    by_block: Annotated[
        bool,
        _option("--by-block", help="Make a project for each block, even if one design can compute the whole model."),
    ] = False,
) -> Options | None:
    """The FPGA options as one object; None where the user gave none. Raises MoecError for a file that cannot be read,
    and for numbers that no design can have."""
    limits: dict[str, Any] = {"max_dsp": max_dsp, "max_bram18": max_bram, "max_lut": max_lut, "clock_megahertz": clock}
    limits |= {"memory_share": memory_share, "use_uram": uram or None}
    constrained = {name: value for name, value in limits.items() if value is not None}
    if (
        calibrate is None
        and max_tokens is None
        and max_length is None
        and weight_bits is None
        and not constrained
        and not calibrated
        and not by_block
    ):
        return None
    from moec.common import array_files
    from moec.targets.hls.hardware.calibration import read_calibrations
    from moec.targets.hls.moe.exploration import Constraints
    from moec.targets.hls.options import HlsOptions

    if weight_bits not in (None, 4, 8):
        raise MoecError(f"--weight-bits {weight_bits}: expected 4 or 8")
    arrays = None if calibrate is None else array_files.read_arrays(calibrate, ())
    constraints = Constraints(**constrained, calibration=read_calibrations(calibrated or ()))
    return HlsOptions(arrays, max_tokens, max_length, 4 if weight_bits == 4 else 8, constraints, by_block)


def simulate(
    artifact: Annotated[Path, typer.Argument(metavar="ART", help="An artifact: a folder, or a .zip of one.")],
    project: Annotated[str | None, typer.Option(help="Simulate this project. Default: all.")] = None,
    memory_share: Annotated[
        float | None,
        typer.Option(min=0.01, max=1, help="Move this many beats per cycle and port. Default: by the part's memory."),
    ] = None,
    fifo_depth: Annotated[
        int | None, typer.Option(min=1, help="Give all channels this depth. Default: as declared.")
    ] = None,
    pipeline_depth: Annotated[
        int | None,
        typer.Option(min=0, help="Give all pipelines this many stages. Default: 20 for cycles, 60 for deadlocks."),
    ] = None,
    pipeline_style: Annotated[
        PipelineStyle | None,
        typer.Option(help="Give all pipelines this style. Default: as declared.", show_choices=True),
    ] = None,
    *,
    progress: Callable[[str], None],
) -> CommandResult:
    """Simulate the testbench of an FPGA project cycle by cycle, with bounded channels.

    The exit code is 1 if a result differs.
    """
    from moec.runtime.artifact import open_artifact
    from moec.simulators.hls.simulate import simulate as simulate_projects
    from moec.targets.hls.tables import simulation_tables

    results = simulate_projects(
        open_artifact(artifact),
        project,
        memory_share=memory_share,
        fifo_depth=fifo_depth,
        pipeline_depth=pipeline_depth,
        pipeline_style=None if pipeline_style is None else pipeline_style.value,
        progress=progress,
    )
    return CommandResult(results, simulation_tables(results), all(result["passed"] for result in results))

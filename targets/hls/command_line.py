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
    calibrate: Annotated[Path | None, _option(help="An .npz file of inputs by name: scales and test vectors.")] = None,
    max_tokens: Annotated[int | None, _option(min=1, help="Tokens in one call, at most.")] = None,
    max_length: Annotated[
        int | None, _option(min=1, help="Tokens of a sequence in several calls: a cache holds its keys and values.")
    ] = None,
    weight_bits: Annotated[int | None, _option(help="Of experts: 8 (the default) or 4.")] = None,
    max_dsp: Annotated[int | None, _option(min=1, help="Default: 80% of the part.")] = None,
    max_bram: Annotated[int | None, _option(min=1, help="Of 18 Kbit. Default: 80%.")] = None,
    max_lut: Annotated[int | None, _option(min=1, help="Default: 70%.")] = None,
    uram: Annotated[bool, _option("--uram", help="Large arrays may be in UltraRAM.")] = False,
    clock: Annotated[float | None, _option(min=1, help="MHz. Default: the part's.")] = None,
    memory_share: Annotated[float | None, _option(min=0.01, max=1, help="Of the peak bandwidth. Default: 1.")] = None,
    calibrated: Annotated[
        list[Path] | None, _option(help="From compare_report.py --save: corrects estimates. May be repeated.")
    ] = None,
    by_block: Annotated[
        bool, _option("--by-block", help="A project per block, also where one design computes the whole model.")
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
    project: Annotated[str | None, typer.Option(help="Which of several projects; default: all.")] = None,
    memory_share: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="Beats per cycle and port; default: the part's memory.")
    ] = None,
    fifo_depth: Annotated[int | None, typer.Option(min=1, help="Of all channels; default: as declared.")] = None,
    pipeline_depth: Annotated[
        int | None, typer.Option(min=0, help="Stages of all pipelines; default: 20 for cycles, 60 for deadlocks.")
    ] = None,
    pipeline_style: Annotated[
        PipelineStyle | None, typer.Option(help="Of all pipelines; default: as declared.", show_choices=True)
    ] = None,
    *,
    progress: Callable[[str], None],
) -> CommandResult:
    """Run an FPGA project's testbench, cycle by cycle, with bounded channels. Exit code 1 where a result differs."""
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

"""The program of a model's MTP layer, which drafts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moec.common.errors import UnsupportedError, reporting
from moec.compiling.model_inputs import model_inputs
from moec.compiling.stages import run_passes

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.artifacts.mtp import MtpProgram
    from moec.passes.framework.base import Pass, Report
    from moec.targets.base import Target


def mtp_program(
    graph: ir.Model, source: Any, chain: Sequence[Pass], target: Target, report: Report, verify_each: bool
) -> MtpProgram:
    """Run the passes of the model on its MTP layer and compile it. Warnings are reported; notes, which are those of the
    model for the most part, are not. Raises what passes and target raise."""
    from moec.artifacts.mtp import MtpProgram
    from moec.ir.states import states_of
    from moec.passes.framework.base import Report
    from moec.runtime.interface import Interface
    from moec.targets.base import Program

    own = Report(progress=report.progress, jobs=report.jobs)
    inputs = model_inputs(graph, source, own)
    run_passes(graph, source, chain, own, verify_each=verify_each, dump_to=None)
    report.remarks += [remark for remark in own.remarks if remark.severity == "warning"]
    with reporting("generating code of the MTP layer", source):
        program = target.compile(graph)
    if not isinstance(program, Program):
        raise UnsupportedError("no drafts: the target makes projects; compile without drafts")
    interface = Interface(
        program.inputs,
        program.outputs,
        states_of(graph),
        inputs.limits,
        inputs.sizes,
        inputs.counted,
        inputs.guards(graph, program),
    )
    return MtpProgram(interface, program)

"""Passes and code generation of a compilation: everything before its artifact is written."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from moec import targets
from moec.common.errors import UnsupportedError, reporting
from moec.common.jobs import job_runner
from moec.common.version import VERSION
from moec.compiling.arithmetic import ActivationRounding, rounding_of
from moec.compiling.compile_options import CompileOptions, multiplies_bytes
from moec.compiling.importing import import_model, import_with_mtp
from moec.compiling.model_inputs import ModelInputs, model_inputs
from moec.compiling.mtp import mtp_program
from moec.compiling.provenance import provenance_of
from moec.compiling.stages import run_passes
from moec.compiling.stepwise_states import stepwise_states

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.artifacts.mtp import MtpProgram
    from moec.artifacts.writer import Context, Stage, StageProgram
    from moec.common.tokenizers import TextFiles
    from moec.passes.framework.base import Pass, Report
    from moec.placing.plan import ExpertPlan
    from moec.targets.base import Made, Program, Target


@dataclasses.dataclass(frozen=True)
class GeneratedModel:
    """A model after its passes, with its programs, and those of its stages. ``stages``: texts of the model."""

    source: Any
    graph: ir.Model
    chain: Sequence[Pass]
    inputs: ModelInputs
    stages: Sequence[Stage]
    blocks: list[Any]
    rounding: ActivationRounding
    programs: Sequence[Made]
    of_stages: Sequence[StageProgram]
    of_batch: Program | None
    of_mtp: MtpProgram | None

    def plan(self, options: CompileOptions) -> ExpertPlan | None:
        """The plan of the model's experts, with the memory that weights take; None where one process has all in memory.
        Raises MoecError for less memory than a process needs."""
        from moec.artifacts.writer import weights_of_programs
        from moec.placing.metadata import plan_of
        from moec.runtime.residents import check_resident

        plan, resident = plan_of(self.graph), options.resident_bytes
        if plan is None:
            return None
        plan = dataclasses.replace(plan, device=targets.program_kind_of(options.target).name, resident=resident)
        if resident is not None:
            check_resident(plan, weights_of_programs(self.programs, self.of_stages), str(options.plan or self.source))
        return plan

    def context(self, options: CompileOptions, report: Report, text: TextFiles | None) -> Context:
        """Collect the facts that the artifact keeps."""
        from moec.artifacts.writer import Context
        from moec.compiling.sequences import split_sequences
        from moec.ir.states import states_of
        from moec.passes import pipeline
        from moec.runtime.interface import Interface

        program, inputs = self.programs[0], self.inputs
        states, plan = states_of(self.graph), self.plan(options)
        interface = Interface(program.inputs, program.outputs, states, inputs.limits, inputs.sizes)
        is_on_ranks = plan is not None and plan.ranks is not None
        return Context(
            moec_version=VERSION,
            threads=options.threads,
            moe_blocks=self.blocks,
            input_limits=inputs.limits,
            input_sizes=inputs.sizes,
            counted_inputs=inputs.counted,
            guards=inputs.guards(self.graph, program),
            states=states,
            stepwise_states=stepwise_states(self.graph),
            plan=plan,
            sequences=split_sequences(self.graph, interface, report) if is_on_ranks else None,
            stages=self.stages,
            remarks=[dataclasses.asdict(remark) for remark in report.remarks],
            losses=[dataclasses.asdict(loss) for loss in report.losses],
            raised=[dataclasses.asdict(block) for block in report.raised],
            unraised=[dataclasses.asdict(region) for region in report.unraised],
            provenance=provenance_of(self.source, pipeline.print_pipeline(self.chain), self.rounding),
            text=text,
            pipeline=self.of_stages,
            batch=self.of_batch,
            mtp=self.of_mtp,
        )


def generated(model: Any, options: CompileOptions, report: Report) -> GeneratedModel:
    """Import a model, run the passes and generate code."""
    from moec.compiling.batches import batch_program
    from moec.compiling.layer_stages import stage_programs
    from moec.ir.blocks import moe_blocks
    from moec.ir.rounding import arithmetics_of

    target, ranges = options.target, options.layer_ranges
    chain, chosen = options.pipeline(model), targets.get_all(target, options.target_options)
    report.progress("importing")
    mtp: ir.Model | None = None
    if options.drafts is None:
        graph = import_model(model, options.example_inputs, options.dynamic_shapes, options.cache)
    else:
        graph, mtp = import_with_mtp(model)
    inputs, own = model_inputs(graph, model, report), arithmetics_of(graph)
    with job_runner(options.workers, options.executor) as report.jobs:
        stages = run_passes(graph, model, chain, report, verify_each=options.verify_each, dump_to=options.dump_to)
        of_mtp = None if mtp is None else mtp_program(mtp, model, chain, chosen[0], report, options.verify_each)
    with step(f"generating code for {target}", model, report):
        blocks, rounding = moe_blocks(graph), rounding_of(graph, own, multiplies_bytes(target))
        _report_rounding(rounding, target, report)
        programs = _generate(graph, chosen, target, report)
        of_stages = [] if ranges is None else stage_programs(graph, ranges, chosen[0])
        of_batch = batch_program(graph, inputs, programs[0], chosen[0]) if options.batches else None
    return GeneratedModel(model, graph, chain, inputs, stages, blocks, rounding, programs, of_stages, of_batch, of_mtp)


@contextlib.contextmanager
def step(name: str, source: Any, report: Report) -> Iterator[None]:
    """Context that announces a step and names it in errors."""
    report.progress(name)
    with reporting(name, source):
        yield


def _report_rounding(rounding: ActivationRounding, target: str, report: Report) -> None:
    """Report activations in int8 on a target whose products multiply floats."""
    if "int8" not in rounding.activations or multiplies_bytes(target):
        return
    reason = "products multiply floats here: what is rounded to 8 bits is less exact, and no faster"
    if rounding.own:
        report.note("generating code", target, reason)
    else:
        report.warn("generating code", target, f"{reason}; -O2 rounds nothing")


def _generate(graph: ir.Model, chosen: Sequence[Target], name: str, report: Report) -> list[Made]:
    """Compile for all targets that ``name`` lists. A warning of several is reported once."""
    try:
        programs = [target.compile(graph) for target in chosen]
    except UnsupportedError as error:
        raise UnsupportedError(f"{error}{_why_not_raised(graph, report)}") from error
    for warning in dict.fromkeys(warning for program in programs for warning in program.warnings):
        report.warn("generating code", name, warning)
    return programs


def _why_not_raised(graph: ir.Model, report: Report) -> str:
    """Write the warnings of raising, for a target that refuses a model because it has no MoE block."""
    from moec.ir.blocks import moe_blocks

    warned = [remark for remark in report.remarks if (remark.pass_name, remark.severity) == ("raise-moe", "warning")]
    if not warned or moe_blocks(graph):
        return ""
    more = f" (and {len(warned) - 1} more)" if len(warned) > 1 else ""
    return f"; {warned[0].pass_name}: {warned[0].subject}: {warned[0].message}{more}"

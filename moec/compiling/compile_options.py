"""Options of a compilation, checked before anything heavy is imported, and the pipeline that they select."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from moec import targets
from moec.common.arguments import (
    check_choice,
    check_flags,
    check_kind,
    check_optional_flag,
    check_optional_text,
    check_path,
    shown,
)
from moec.common.byte_counts import bytes_of
from moec.common.draft_kinds import MTP
from moec.common.errors import MoecError, UnsupportedError
from moec.common.jobs import JobExecutor, check_workers
from moec.common.progress import Progress
from moec.common.version import VERSION
from moec.compiling.layer_ranges import LayerRanges
from moec.targets.kind import Options, ProgramKind

if TYPE_CHECKING:
    from moec.artifacts.c_form.form import CForm
    from moec.common.tokenizers import TextFiles
    from moec.passes.framework.base import Pass
    from moec.placing.plan import ExpertPlan

C = "c"
"""The form of a result as a C library, next to what Python loads."""


@dataclasses.dataclass(frozen=True)
class CompileOptions:
    """Options of :func:`moec.compile`, which explains them. Raises MoecError for values of another type."""

    target: str = targets.DEFAULT
    passes: str | None = None
    example_inputs: Any = None
    dynamic_shapes: Any = None
    threads: int | None = None
    cache: bool | None = None
    experts: str | None = None
    linears: str | None = None
    arithmetic: str | None = None
    tokenizer: str | os.PathLike[str] | None = None
    resident: int | str | None = None
    ranks: int | None = None
    nodes: int = 1
    replicas: int = 0
    plan: str | os.PathLike[str] | None = None
    stages: int | str | None = None
    profile: str | os.PathLike[str] | None = None
    target_options: Options | None = None
    verify_each: bool = False
    dump_to: str | os.PathLike[str] | None = None
    form: str | None = None
    batches: bool = False
    drafts: str | None = None
    workers: int = 0
    executor: JobExecutor | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        from moec.runtime.machine import check_threads

        targets.check_name(self.target)
        check_optional_text(passes=self.passes, experts=self.experts, linears=self.linears, arithmetic=self.arithmetic)
        if self.form not in (None, C):
            raise MoecError(f"form is {shown(self.form)}; expected {C!r} for a C library, or None")
        check_flags(verify_each=self.verify_each, batches=self.batches)
        if self.drafts is not None:
            check_choice("drafts", self.drafts, (MTP,))
        check_optional_flag("cache", self.cache)
        if self.progress is not None and not callable(self.progress):
            raise MoecError(f"progress is {shown(self.progress)}; expected a function of one string, or None")
        check_threads(self.threads)
        check_workers(self.workers, self.executor)
        for name in ("ranks", "nodes", "replicas"):
            if getattr(self, name) is not None:
                check_kind(name, getattr(self, name), int, "a whole number")
        for name in ("tokenizer", "profile", "plan", "dump_to"):
            if getattr(self, name) is not None:
                check_path(name, getattr(self, name))

    @functools.cached_property
    def planned(self) -> ExpertPlan | None:
        """The plan in the file, which is read once; None without one. Raises MoecError for a file that is no plan, for
        one of another device, and for options that the plan has."""
        if self.plan is None:
            return None
        from moec.placing.plan import read_plan

        if self.resident is not None or self.ranks is not None or self.nodes != 1 or self.replicas:
            raise MoecError("a plan says resident, ranks, nodes and replicas; leave these out, or edit the plan")
        plan = read_plan(self.plan)
        kind = targets.kind_of(self.target).name
        if plan.device != kind:
            raise MoecError(
                f"{self.plan}: device is {plan.device!r}, and the target is '{self.target}'; compile with --target "
                f"{plan.device}, or make the plan with --target {kind}"
            )
        if plan.has_formats and self.experts is not None:
            raise MoecError(
                f"{self.plan}: has formats of experts; compile without experts, or remove them from the plan"
            )
        return plan

    @property
    def resident_bytes(self) -> int | None:
        """Bytes that weights may take in memory. Raises MoecError for other text, and for targets without
        streaming."""
        if self.planned is not None:
            return self.planned.resident
        if self.resident is None:
            return None
        kind = targets.kind_of(self.target)
        if not (isinstance(kind, ProgramKind) and kind.streams_experts):
            raise UnsupportedError(f"target '{self.target}' holds all weights in memory; compile without resident")
        return bytes_of("resident", self.resident)

    @property
    def layer_ranges(self) -> LayerRanges | None:
        """Layers of the stages of a pipeline; None without one. Raises MoecError for other text, and UnsupportedError
        for what runs in one process."""
        if self.stages is None:
            return None
        kind = targets.kind_of(self.target)
        if not (isinstance(kind, ProgramKind) and kind.streams_experts):
            raise UnsupportedError(f"target '{self.target}' runs in one process; compile without stages")
        if self.form is not None:
            raise UnsupportedError("a C library runs in one process; compile without stages, or without form")
        return LayerRanges.parse(self.stages)

    def check_further_programs(self) -> None:
        """Raise UnsupportedError for batches and drafts where one process, for drafts one on a processor with all
        weights in memory, is not what runs the model; and for drafts in a C library or without a cache."""
        if self.batches:
            self._check_one_process("batches", "a batch runs in one process", on_gpus=True)
        if self.drafts is None:
            return
        self._check_one_process("drafts", "an MTP layer runs in one process")
        if self.resident is not None:
            raise UnsupportedError(
                "an MTP layer runs with all weights in memory; compile without resident, or without drafts"
            )
        if self.form is not None:
            raise UnsupportedError("a C library drafts nothing; compile without form, or without drafts")
        if self.cache is False:
            raise UnsupportedError("drafts need the cache of the model; compile with it, or without drafts")

    def _check_one_process(self, option: str, runs: str, *, on_gpus: bool = False) -> None:
        kind = targets.kind_of(self.target)
        if not isinstance(kind, ProgramKind) or "+" in self.target:
            raise UnsupportedError(
                f"{option} need one program, and target '{self.target}' makes several or none; name one architecture, "
                f"or compile without {option}"
            )
        if not (on_gpus or kind.processor(self.target)):
            raise UnsupportedError(
                f"{option} run on processors, not on target '{self.target}'; compile without {option}"
            )
        apart = {"ranks": self.ranks, "plan": self.plan, "stages": self.stages}
        for name, value in apart.items():
            if value is not None:
                raise UnsupportedError(f"{runs}; compile without {name}, or without {option}")

    def c_form(self, path: str | os.PathLike[str]) -> CForm | None:
        """The form C of an artifact at ``path``, after which its program is called; None where it is not asked for.
        Raises UnsupportedError for targets whose programs C cannot call, MoecError without a C compiler."""
        if self.form is None:
            return None
        from moec.artifacts.c_form.form import CForm, program_name
        from moec.artifacts.c_form.toolchain import find_toolchain

        kind = targets.kind_of(self.target)
        processor = kind.processor(self.target) if isinstance(kind, ProgramKind) else None
        if processor is None:
            raise UnsupportedError(f"--form c is for processors, not for target '{self.target}'; use --target cpu")
        if self.resident_bytes is not None:
            raise UnsupportedError(
                "--form c maps all weights, of which the system keeps in memory what fits; compile without --resident"
            )
        return CForm(program_name(pathlib.Path(path).stem), VERSION, find_toolchain(processor))

    def pipeline(self, model: Any) -> Sequence[Pass]:
        """Make the pipeline for a model.

        Added to the selected one are passes that round weights and activations and, where experts are read on demand,
        passes that expect them; to the default one, on targets where that pays, the pass that joins products.
        Raises MoecError for a profile that cannot be read, and for one that no pass takes;
        UnsupportedError for passes that change nothing for the target.
        """
        from moec.passes.framework.shorthand import with_arithmetic, with_formats

        passes = default_passes(model, self.target) if self.passes is None else self.passes
        rounding = with_arithmetic(with_formats("", self.experts, self.linears), self.arithmetic)
        further = ["stream-experts"] if self.resident_bytes is not None else []
        if self.passes is None and joins_products(self.target):
            further.append("join-products")
        parts = (passes, *self._following(), rounding, *further, *self._placing())
        chain = with_profile(parts, self.profile)
        _check_rounding(chain, self.target)
        return chain

    def _following(self) -> Iterator[Pass]:
        """Make the passes that follow the file of a plan, which come before others change weights."""
        from moec.passes.assign_bits import AssignBits
        from moec.passes.follow_plan import FollowPlan

        plan = self.planned
        if plan is None or self.plan is None:
            return
        path = os.fspath(self.plan)
        if plan.ranks is not None or plan.resident is not None:
            yield FollowPlan(path)
        if plan.has_formats:
            profile = None if self.profile is None else os.fspath(self.profile)
            linears = any("weight" in layer.formats for layer in plan.layers)
            yield AssignBits(plan=path, profile=profile, linears=linears, method=plan.method or "rtn")

    def _placing(self) -> Sequence[Pass]:
        """Make the pass that places experts on ranks, if there are any. Raises MoecError for numbers that do not fit,
        UnsupportedError for targets whose programs run alone."""
        from moec.passes.place_experts import PlaceExperts
        from moec.placing.placement import ExpertPlacement

        ranks = self.ranks if self.planned is None else self.planned.ranks
        if ranks is None:
            if self.nodes != 1 or self.replicas:
                raise MoecError("nodes and replicas are about ranks: give their number (ranks)")
            return ()
        kind = targets.kind_of(self.target)
        if not (isinstance(kind, ProgramKind) and kind.exchanges_rows):
            raise UnsupportedError(f"target '{self.target}' holds all experts in one process; compile without ranks")
        if self.form is not None:
            raise UnsupportedError("a C library runs in one process; compile without ranks, or without form")
        nodes = self.nodes if self.planned is None else self.planned.nodes
        ExpertPlacement(ranks, (), nodes)  # checks the numbers
        profile = None if self.profile is None else os.fspath(self.profile)
        return (PlaceExperts(ranks, nodes, self.replicas, profile=profile),)


DEFAULTS = CompileOptions()


def kept_text_files(model: Any, tokenizer: Any) -> TextFiles | None:
    """Read the tokenizer and chat template for the artifact: those of ``tokenizer``, by default the model's own.
    Returns None where there are none. Raises MoecError for a tokenizer that cannot be read."""
    from moec.common.tokenizers import check_tokenizer
    from moec.frontend.text_files import read_text_files, text_files_of

    text = text_files_of(model) if tokenizer is None else read_text_files(tokenizer)
    if text is None:
        return None
    where = os.fspath(model if tokenizer is None else tokenizer)
    return dataclasses.replace(text, checked_by=check_tokenizer(text.tokenizer, where))


def default_passes(model: Any, target: str) -> str:
    """Select the default level: O3 where weights are meant for activations of 8 bits
    (:func:`moec.frontend.sources.rounds_activations`), on targets that gain by it, else O2."""
    from moec.frontend import sources

    return "O3" if multiplies_bytes(target) and sources.rounds_activations(model) else "O2"


def joins_products(target: str) -> bool:
    """Whether one product is faster on a target than several of the same rows."""
    kind = targets.kind_of(target)
    return isinstance(kind, ProgramKind) and kind.joins_products


def multiplies_bytes(target: str) -> bool:
    """Whether rounding activations to 8 bits makes a target's products faster."""
    kind = targets.kind_of(target)
    return isinstance(kind, ProgramKind) and kind.multiplies_bytes


def _check_rounding(passes: Sequence[Pass], target: str) -> None:
    """Raise UnsupportedError for activations in int8, as by -O3, on a target that makes projects. These compute in
    integers of their own, so rounding would change nothing."""
    from moec.passes.round_activations import RoundActivations

    rounds = any(isinstance(step, RoundActivations) and step.format == "int8" for step in passes)
    if rounds and not isinstance(targets.kind_of(target), ProgramKind):
        raise UnsupportedError(
            f"target '{target}' computes in integers at every level, with scales from its calibration; "
            "-O3 (round-activations) changes nothing about that: compile with -O2"
        )


def with_profile(parts: Sequence[str | Pass], profile: str | os.PathLike[str] | None) -> Sequence[Pass]:
    """Make a pipeline of texts and passes, and give the ``profile`` to passes in texts that take one and name none.
    Raises MoecError for a profile that cannot be read, and for one that no pass takes."""
    from moec.passes import pipeline

    path = None if profile is None else os.fspath(profile)
    chain = tuple(
        itertools.chain.from_iterable(
            pipeline.parse(part, path) if isinstance(part, str) else (part,) for part in parts
        )
    )
    if path is None:
        return chain
    from moec.profiles import Profile

    if not pipeline.take_profile(chain, path):
        raise MoecError(
            f"{path}: no pass reads this profile: the pipeline has none that takes a profile, or each names its own; "
            "leave the profile out, or add such a pass (assign-bits{avg=3}, prune-experts{keep=0.75}) or resident"
        )
    Profile.read(path).close()  # a damaged one is refused before the model is read
    return chain

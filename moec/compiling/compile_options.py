"""Options of a compilation, checked before anything heavy is imported, and the pipeline that they select."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moec import targets
from moec.common.arguments import check_flags, check_kind, check_optional_flag, check_optional_text, check_path, shown
from moec.common.byte_counts import bytes_of
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
    placement: str | os.PathLike[str] | None = None
    stages: int | str | None = None
    profile: str | os.PathLike[str] | None = None
    target_options: Options | None = None
    verify_each: bool = False
    dump_to: str | os.PathLike[str] | None = None
    form: str | None = None
    batches: bool = False
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
        check_optional_flag("cache", self.cache)
        if self.progress is not None and not callable(self.progress):
            raise MoecError(f"progress is {shown(self.progress)}; expected a function of one string, or None")
        check_threads(self.threads)
        check_workers(self.workers, self.executor)
        for name in ("ranks", "nodes", "replicas"):
            if getattr(self, name) is not None:
                check_kind(name, getattr(self, name), int, "a whole number")
        for name in ("tokenizer", "profile", "placement", "dump_to"):
            if getattr(self, name) is not None:
                check_path(name, getattr(self, name))

    @property
    def resident_bytes(self) -> int | None:
        """Bytes that weights may take in memory. Raises MoecError for other text, and for targets without
        streaming."""
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
        if self.resident is not None:
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
        from moec.passes.framework.shorthand import with_arithmetic, with_formats, with_streaming

        passes = default_passes(model, self.target) if self.passes is None else self.passes
        rounded = with_arithmetic(with_formats(passes, self.experts, self.linears), self.arithmetic)
        streamed = with_streaming(rounded, self.resident_bytes is not None)
        joined = f"{streamed},join-products" if self.passes is None and joins_products(self.target) else streamed
        chain = with_profile(joined, self.profile, self._placing())
        _check_rounding(chain, self.target)
        return chain

    def _placing(self) -> Sequence[Pass]:
        """Make the pass that places experts on ranks, if there are any. Raises MoecError for numbers and files that are
        no placement, UnsupportedError for targets whose programs run alone."""
        from moec.passes.place_experts import PlaceExperts
        from moec.placing.placement import ExpertPlacement

        if self.ranks is None and self.placement is None:
            if self.nodes != 1 or self.replicas:
                raise MoecError("nodes and replicas are about ranks: give their number (ranks)")
            return ()
        kind = targets.kind_of(self.target)
        if not (isinstance(kind, ProgramKind) and kind.exchanges_rows):
            raise UnsupportedError(f"target '{self.target}' holds all experts in one process; compile without ranks")
        if self.form is not None:
            raise UnsupportedError("a C library runs in one process; compile without ranks, or without form")
        profile = None if self.profile is None else os.fspath(self.profile)
        if self.placement is None:
            assert self.ranks is not None, "one of both was given"
            ExpertPlacement(self.ranks, (), self.nodes)  # checks the numbers
            return (PlaceExperts(self.ranks, self.nodes, self.replicas, profile=profile),)
        step = PlaceExperts(self.ranks, placement=os.fspath(self.placement))
        _ = step.from_file  # a file that does not fit is refused before the model is read
        return (step,)


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


def with_profile(passes: str, profile: str | os.PathLike[str] | None, further: Sequence[Pass] = ()) -> Sequence[Pass]:
    """Parse a pipeline, give the ``profile`` to passes that take one and name none, and add ``further`` passes, which
    have it. Raises MoecError for a profile that cannot be read, and for one that no pass takes."""
    from moec.passes import pipeline

    if profile is None:
        return (*pipeline.parse(passes), *further)
    from moec.profiles import Profile

    path = os.fspath(profile)
    chain = (*pipeline.parse(passes, path), *further)
    if not pipeline.take_profile(chain, path):
        raise MoecError(
            f"{path}: no pass reads this profile: the pipeline has none that takes a profile, or each names its own; "
            "leave the profile out, or add such a pass (assign-bits{avg=3}, prune-experts{keep=0.75}) or resident"
        )
    Profile.read(path).close()  # a damaged one is refused before the model is read
    return chain

"""Options of a compilation: checks before anything heavy is imported, and the pipeline that they select."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moec import targets
from moec.common.arguments import check_flags, check_optional_text, check_path, shown
from moec.common.byte_counts import bytes_of
from moec.common.errors import MoecError, UnsupportedError
from moec.targets.kind import ProgramKind

if TYPE_CHECKING:
    from moec.common.tokenizers import TextFiles
    from moec.passes.framework.base import Pass


def check_options(target: Any, passes: Any, verify_each: Any, progress: Any) -> None:
    """Raise MoecError for an invalid target, pipeline, flag or callback."""
    targets.check_name(target)
    check_optional_text(passes=passes)
    check_flags(verify_each=verify_each)
    if progress is not None and not callable(progress):
        raise MoecError(f"progress is {shown(progress)}; expected a function of one string, or None")


def check_surroundings(path: Any, threads: Any, dump_to: Any) -> None:
    """Raise MoecError for an invalid number of threads, and for places that cannot be written to."""
    from moec.runtime.machine import check_threads
    from moec.runtime.writer import check_destination

    check_path("path", path)
    check_threads(threads)
    if dump_to is not None:
        check_path("dump_to", dump_to)
    check_destination(path)


def resident_bytes(resident: Any, target: str) -> int | None:
    """Parse the bytes that weights may take in memory. Raises MoecError for other text, and for targets without
    streaming."""
    if resident is None:
        return None
    kind = targets.kind_of(target)
    if not (isinstance(kind, ProgramKind) and kind.streams_experts):
        raise UnsupportedError(f"target '{target}' holds all weights in memory; compile without resident")
    return bytes_of("resident", resident)


def kept_text_files(model: Any, tokenizer: Any) -> TextFiles | None:
    """Read the tokenizer and chat template for the artifact: those of ``tokenizer``, by default the model's own.
    Returns None where there are none. Raises MoecError for a tokenizer that cannot be read."""
    from moec.common.tokenizers import check_tokenizer
    from moec.frontend.text_files import read_text_files, text_files_of

    if tokenizer is not None:
        check_path("tokenizer", tokenizer)
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


def multiplies_bytes(target: str) -> bool:
    """Whether rounding activations to 8 bits makes a target's products faster."""
    kind = targets.kind_of(target)
    return isinstance(kind, ProgramKind) and kind.multiplies_bytes


def check_rounding(passes: Sequence[Pass], target: str) -> None:
    """Raise UnsupportedError for activations in int8, as by -O3, on a target that makes projects. These compute in
    integers of their own, so rounding would change nothing."""
    from moec.passes.round_activations import RoundActivations

    rounds = any(isinstance(step, RoundActivations) and step.format == "int8" for step in passes)
    if rounds and not isinstance(targets.kind_of(target), ProgramKind):
        raise UnsupportedError(
            f"target '{target}' computes in integers at every level, by scales that come from its calibration; "
            "-O3 (round-activations) changes nothing about that: compile with -O2"
        )


def chosen_passes(
    passes: str,
    experts: str | None,
    linears: str | None,
    arithmetic: str | None,
    streams: bool,
    profile: str | os.PathLike[str] | None,
) -> Sequence[Pass]:
    """Parse the pipeline ``passes`` and extend it.

    Added are passes that round weights and activations and, where experts are read on demand (``streams``), passes that
    expect them. The ``profile`` goes to every pass that takes one and names none. Raises MoecError for a profile that
    cannot be read, and for one that no pass takes.
    """
    from moec.passes.framework.shorthand import with_arithmetic, with_formats, with_streaming

    rounded = with_arithmetic(with_formats(passes, experts, linears), arithmetic)
    return with_profile(with_streaming(rounded, streams), profile)


def with_profile(passes: str, profile: str | os.PathLike[str] | None) -> Sequence[Pass]:
    """Parse a pipeline and give the ``profile`` to passes that take one and name none. Raises MoecError for a profile
    that cannot be read, and for one that no pass takes."""
    from moec.passes import pipeline

    if profile is None:
        return pipeline.parse(passes)
    from moec.profiles import Profile

    check_path("profile", profile)
    path = os.fspath(profile)
    chain = pipeline.parse(passes, path)
    if not pipeline.take_profile(chain, path):
        raise MoecError(
            f"{path}: no pass reads this profile: the pipeline has none that takes a profile, or each names its own; "
            "leave the profile out, or add such a pass (assign-bits{avg=3}, prune-experts{keep=0.75}) or resident"
        )
    Profile.read(path).close()  # a damaged one is refused before the model is read
    return chain

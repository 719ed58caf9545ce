"""Selection of the pipelines that a sweep tries."""

from __future__ import annotations

import os
from collections.abc import Sequence

from moec.common.errors import MoecError
from moec.passes import pipeline
from moec.passes.framework.shorthand import with_formats

BASE = "O2"
"""Beginning of all variants, and the variant that they are compared with."""
FORMATS = ("int8", "int4", "int3", "int2")
AVERAGES = ("2", "2.5", "3", "3.5", "4")
METHODS = ("rtn", "gptq")


def variants(
    passes: Sequence[str] = (),
    *,
    formats: Sequence[str] = (),
    averages: Sequence[str] = (),
    methods: Sequence[str] = (),
    profile: str | os.PathLike[str] | None = None,
) -> list[str]:
    """List pipelines as text, :data:`BASE` first, none twice: every format with every method, every average of bits
    (assign-bits) with every method, and ``passes``, complete pipelines.

    Without any of these: :data:`FORMATS`, and with a profile :data:`AVERAGES`. ``methods``: by default rtn alone
    without a profile, else :data:`METHODS`. Raises MoecError for options that no pipeline can express, and for averages
    or methods that need a profile where none is given.
    """
    if not (passes or formats or averages):
        formats, averages = FORMATS, AVERAGES if profile is not None else ()
    methods = methods or (METHODS if profile is not None else METHODS[:1])
    needing = [method for method in methods if method != "rtn"] + [f"avg={average}" for average in averages]
    if needing and profile is None:
        raise MoecError(f"{needing[0]} needs a profile; add --profile FILE, which moec profile makes")
    option = "" if profile is None else f",profile={os.fspath(profile)}"
    texts = [BASE]
    for form in formats:
        stored = with_formats(BASE, experts=form)
        if not stored.startswith(f"{BASE},quantize-experts{{"):
            texts.append(stored)  # a cast, which has no method
            continue
        texts += [stored if method == "rtn" else f"{stored[:-1]},method={method}{option}}}" for method in methods]
    for average in averages:
        texts += [f"{BASE},assign-bits{{avg={average},method={method}{option}}}" for method in methods]
    unique: dict[str, str] = {}
    for text in [*texts, *passes]:
        unique.setdefault(pipeline.print_pipeline(pipeline.parse(text)), text)
    return list(unique.values())

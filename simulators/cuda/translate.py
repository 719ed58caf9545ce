"""Replacement of the inline assembly in a CUDA source by calls of the models of its instructions."""

from __future__ import annotations

from moec.simulators.cuda import models as _models  # registers the models  # noqa: F401
from moec.simulators.cuda.assembly.inline_assembly import find_inline_assembly
from moec.simulators.cuda.assembly.instructions import to_cpp


def translate_assembly(source: str) -> str:
    """The source without inline assembly. Raises UnsupportedError for an instruction without a model."""
    parts, position = [], 0
    for assembly in find_inline_assembly(source):
        parts += [source[position : assembly.begin], to_cpp(assembly)]
        position = assembly.end
    return "".join([*parts, source[position:]])

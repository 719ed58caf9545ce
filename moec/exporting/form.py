"""A form of exported files: its name, the outputs that ask for it, and the function that writes it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from moec.exporting.export_options import ExportOptions

if TYPE_CHECKING:
    from moec.passes.framework.base import Report


@dataclasses.dataclass(frozen=True)
class ExportedPart:
    """A part of the model that a form can express in several ways, or not at all. ``name``: its node or tensor.
    ``written_as``: operator or format in the output; empty if it stayed a graph of standard operators, for the
    ``reason``."""

    name: str
    written_as: str
    reason: str = ""


Write = Callable[[Any, pathlib.Path, pathlib.Path, ExportOptions, "Report"], list[ExportedPart]]
"""Function that writes a source (as for :func:`moec.compile`) to a path that does not exist yet. That path is in a
folder of the export's own, and becomes the second path, the output, only if the function returns. Raises
UnsupportedError, naming the nearest form that can, for what the form cannot express."""


def no_companions(output: pathlib.Path) -> set[str]:
    """Return the companions of an output that is complete in itself."""
    return set()


@dataclasses.dataclass(frozen=True)
class ExportForm:
    """A form of exported files.

    ``name`` is the value of ``--for``. ``reader``: the program that reads the output, in help texts. ``suffix`` of an
    output file that asks for this form without ``--for``; None for a folder, and for forms that have to be named.
    ``why_not`` explains why a source cannot be written in this form, or returns None. ``foreign_because`` recognises
    outputs that moec did not write (:mod:`moec.common.replacing`). ``companions`` returns the names of the files that
    an output of moec's needs beside it (:mod:`moec.common.companions`).
    """

    name: str
    reader: str
    suffix: str | None
    why_not: Callable[[Any], str | None]
    foreign_because: Callable[[pathlib.Path], str | None]
    write: Write
    companions: Callable[[pathlib.Path], set[str]] = no_companions

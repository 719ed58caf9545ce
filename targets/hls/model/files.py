"""Files of generated projects: templates with their variables filled in, and the library that all projects share."""

from __future__ import annotations

import functools
import importlib.resources
import re
from collections.abc import Iterable
from typing import Any

from moec.common.short_lines import with_short_lines
from moec.targets.hls.design.channels import Channel
from moec.targets.hls.hardware.memories import Memory, channel_memories

CLOCK_UNCERTAINTY = 12
"""Percent of the clock period that scheduling leaves to placement and routing; the tool's default is 27."""
_PACKAGE = "moec.targets.hls"
_NUMBERS_PER_LINE = 12


def library_files(memories: Iterable[Memory]) -> dict[str, bytes]:
    """The files that all projects share. They differ only in the storage of arrays, which is written into pragmas,
    since these take no constants."""
    root = importlib.resources.files(_PACKAGE)
    headers = {
        f"src/moec/{header.name}": _bound(header.read_text(encoding="utf-8"), memories)
        for header in _headers(root / "library")
    }
    return {
        **headers,
        "sim/hls_stream.h": (root / "library" / "sim" / "hls_stream.h").read_bytes(),
        "compare_report.py": (root / "compare_report.py").read_bytes(),
    }


def _bound(header: str, memories: Iterable[Memory]) -> bytes:
    """The header with the BIND_STORAGE pragmas of its processes' arrays set to the storage of these memories."""
    for memory in memories:
        # The function of the process, or of a part of it, whose name begins with the process's.
        start = re.search(rf"^(inline )?void {memory.process}(_\w+)?\(", header, re.MULTILINE)
        if memory.variable and start is not None:
            pragma = re.compile(rf"(#pragma HLS BIND_STORAGE variable={memory.variable} .*impl=)\w+")
            match = pragma.search(header, start.start())
            if match is not None:
                header = header[: match.start()] + match[1] + memory.implementation + header[match.end() :]
    return header.encode()


def bound_channels(channels: Iterable[Channel]) -> list[Memory]:
    """The memories of channels too large for shift registers, which a pragma binds so that the tool has no choice."""
    return [memory for memory in channel_memories(channels) if memory.variable]


def render(template: str, context: dict[str, Any]) -> bytes:
    """The text of a file; C++ in short lines."""
    text = _environment().get_template(template).render(context)
    return (with_short_lines(text) if template.endswith((".cpp.j2", ".h.j2")) else text).encode()


def repeated(macro: str, count: int) -> str:
    return ", ".join([macro] * count)


def listed(numbers: Iterable[int]) -> str:
    """The numbers separated by commas, as a macro continued over lines."""
    texts = [str(int(number)) for number in numbers]
    lines = [", ".join(texts[at : at + _NUMBERS_PER_LINE]) for at in range(0, len(texts), _NUMBERS_PER_LINE)]
    return ", \\\n    ".join(lines)


def _headers(folder: Any) -> list[Any]:
    return sorted((file for file in folder.iterdir() if file.name.endswith(".h")), key=lambda file: file.name)


@functools.cache
def _environment() -> Any:
    import jinja2

    loader = jinja2.PackageLoader(_PACKAGE, "templates")
    return jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)

"""Generated CUDA C in lines of at most 120 characters."""

from __future__ import annotations

import re

from moec.targets.tvm.text.wrapped import WIDTH, wrapped

_OPERANDS = re.compile(r"(?<=[}\]]), (?=[{\[])|(?<=;) | (?=\{%)")
"""Places in assembly where its text may be cut: between instructions, and around groups of operands."""
_STRING = re.compile(r'"[^"\n]{40,}"')
_JOINT = '" "'
"""The end of a string and the beginning of the next one, which the compiler joins."""
_KEPT_AS_IS = re.compile(r"\s*(?:#|//)")


def with_short_lines(source: str) -> str:
    """The source with long lines cut after commas and before operators, and long instructions between operands."""
    return "".join(part for line in source.splitlines() for part in _short(line))


def _short(line: str) -> list[str]:
    if len(line) <= WIDTH or _KEPT_AS_IS.match(line):
        return [f"{line}\n"]
    parts = wrapped(line)
    if max(map(len, parts)) > WIDTH:
        cut = _STRING.sub(lambda string: _OPERANDS.sub(rf"\g<0>{_JOINT}", string[0]), line)
        parts = [part.replace(_JOINT, "") for part in wrapped(cut)]
    return [f"{part}\n" for part in parts]

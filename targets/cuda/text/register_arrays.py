"""Registers of ``wgmma`` in generated CUDA C: an array, where TVM passes each of them by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

from moec.targets.cuda.text.syntax import HELPER, closing

_NUMBERED = re.compile(r"(?P<type>\w+)& (?P<array>\w*?)(?P<number>\d+)")
_ELEMENT = re.compile(r"(?P<array>\w+)\[(?P<index>.*)\]")
_LEAST = 8
"""References that become an array: fewer are read at a glance."""
_PER_LINE = 8
_OPERANDS = re.compile(rf"(?:%\d+, ){{{_PER_LINE}}}(?=%)")
_CONSTRAINTS = re.compile(rf'(?:"\+\w"\(\w+\[\d+\]\), ){{{_PER_LINE}}}')
_SECTION = re.compile(r'(?<=") : (?="\+)')


def with_register_arrays(source: str) -> str:
    """The same source, in which a helper that begins with eight or more numbered references, ``float& d0, float& d1,
    ...``, takes an array: it has a parameter ``float d[8]``, and is called as ``helper(sums, ...)`` or
    ``helper(&sums[64], ...)``. A helper stays that is ever called with anything but neighbouring elements."""
    for helper in list(HELPER.finditer(source)):
        parameters = helper["parameters"].split(", ")
        count = _count_numbered(parameters)
        if count < _LEAST or '"' not in helper["body"]:
            continue
        calls = list(_calls(source, helper["name"]))
        arrays = [_array(arguments[:count]) for _, _, arguments in calls]
        if None in arrays:
            continue
        for (begin, end, arguments), array in reversed(list(zip(calls, arrays, strict=True))):
            source = f"{source[:begin]}{', '.join([str(array), *arguments[count:]])}{source[end:]}"
        source = source.replace(helper[0], _with_array(helper, parameters, count))
    return source


def _count_numbered(parameters: list[str]) -> int:
    """How many parameters, from the first on, are references ``x0``, ``x1``, ... of one type."""
    first = _NUMBERED.fullmatch(parameters[0])
    if first is None:
        return 0
    wanted = (f"{first['type']}& {first['array']}{number}" for number in range(len(parameters)))
    equal = [found == name for found, name in zip(parameters, wanted, strict=True)]
    return equal.index(False) if False in equal else len(equal)


def _calls(source: str, name: str) -> Iterator[tuple[int, int, list[str]]]:
    """Where the arguments of each call begin and end, and what they are."""
    for found in re.finditer(rf"^ *{name}\(", source, re.MULTILINE):
        end = closing(source, found.end())
        yield found.end(), end, _arguments(source[found.end() : end])


def _arguments(text: str) -> list[str]:
    """What stands between the commas that are in no bracket."""
    arguments, depth = [""], 0
    for character in text:
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(character, 0)
        if depth == 0 and character == ",":
            arguments.append("")
        else:
            arguments[-1] += character
    return [argument.strip() for argument in arguments]


def _array(arguments: list[str]) -> str | None:
    """The array whose elements, one behind the other, these are; None where they are anything else."""
    first = _ELEMENT.fullmatch(arguments[0])
    if first is None:
        return None
    index = first["index"]
    for number, argument in enumerate(arguments[1:], 1):
        following = str(int(index) + number) if index.isdigit() else f"({index} + {number})"
        if argument != f"{first['array']}[{following}]":
            return None
    return first["array"] if index == "0" else f"&{first['array']}[{index}]"


def _with_array(helper: re.Match[str], parameters: list[str], count: int) -> str:
    """The helper, whose assembly is written in several lines."""
    first = _NUMBERED.fullmatch(parameters[0])
    assert first is not None
    array = first["array"]
    body = re.sub(rf"\b{array}(\d+)\b", rf"{array}[\1]", helper["body"])
    indent = " " * body.index('"')
    body = _OPERANDS.sub(rf'\g<0>"\n{indent}"', body)
    body = _SECTION.sub(rf"\n{indent}: ", body)
    body = _CONSTRAINTS.sub(lambda some: f"{some[0].rstrip()}\n{indent}  ", body)
    head = helper[0][: helper[0].index("(") + 1]
    rest = ", ".join([f"{first['type']} {array}[{count}]", *parameters[count:]])
    return f"{head}{rest}) {{\n{body}}}\n"

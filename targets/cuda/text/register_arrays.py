"""Arrays for the registers of ``wgmma`` in generated CUDA C, where TVM passes each register as its own argument."""

from __future__ import annotations

import re
from collections.abc import Iterator

from moec.targets.cuda.text.syntax import HELPER, closing

_NUMBERED = re.compile(r"(?P<type>\w+)& (?P<array>\w*?)(?P<number>\d+)")
_ELEMENT = re.compile(r"(?P<array>\w+)\[(?P<index>.*)\]")
_LEAST = 8
"""The least number of references that become an array; fewer are easy to read as they are."""
_PER_LINE = 8
_OPERANDS = re.compile(rf"(?:%\d+, ){{{_PER_LINE}}}(?=%)")
_CONSTRAINTS = re.compile(rf'(?:"\+\w"\(\w+\[\d+\]\), ){{{_PER_LINE}}}')
_SECTION = re.compile(r'(?<=") : (?="\+)')


def with_register_arrays(source: str) -> str:
    """The source with an array parameter in place of eight or more numbered references of a helper.

    A helper whose first parameters are ``float& d0, float& d1, ...`` takes ``float d[8]`` instead, and is called as
    ``helper(sums, ...)`` or ``helper(&sums[64], ...)``. A helper stays if any call passes it something other than
    consecutive elements of an array.
    """
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
    """The number of leading parameters that are references ``x0``, ``x1``, ... of one type."""
    first = _NUMBERED.fullmatch(parameters[0])
    if first is None:
        return 0
    expected = (f"{first['type']}& {first['array']}{number}" for number in range(len(parameters)))
    equal = [parameter == name for parameter, name in zip(parameters, expected, strict=True)]
    return equal.index(False) if False in equal else len(equal)


def _calls(source: str, name: str) -> Iterator[tuple[int, int, list[str]]]:
    """The arguments of each call of a helper, after the positions in the source where they begin and end."""
    for match in re.finditer(rf"^ *{name}\(", source, re.MULTILINE):
        end = closing(source, match.end())
        yield match.end(), end, _arguments(source[match.end() : end])


def _arguments(text: str) -> list[str]:
    """The arguments in a list, split at commas outside of brackets."""
    arguments, depth = [""], 0
    for character in text:
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(character, 0)
        if depth == 0 and character == ",":
            arguments.append("")
        else:
            arguments[-1] += character
    return [argument.strip() for argument in arguments]


def _array(arguments: list[str]) -> str | None:
    """The array (or pointer to its first element) if the arguments are consecutive elements of it; otherwise None."""
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
    """The helper's text with an array in place of its first ``count`` parameters, and its assembly in several lines."""
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

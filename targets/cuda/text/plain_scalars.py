"""Plain variables in generated CUDA C for a thread's numbers, in place of TVM's arrays of one element."""

from __future__ import annotations

import collections
import itertools
import keyword
import re

from moec.targets.cuda.text.syntax import KERNEL

_DECLARATION = re.compile(r"^(?P<indent> *)alignas\(\d+\) (?P<type>\w[\w ]*) (?P<name>\w+)\[1\];$", re.MULTILINE)
_NAME = re.compile(r"(?<![.\w])[A-Za-z_]\w*")
_USE = re.compile(r"(?P<address>&\(*)?\b(?P<name>[A-Za-z_]\w*)\b(?P<element>\[0\])?")
_TVM_NAME = re.compile(r"(?P<buffer>\w*?)_ptr(?P<number>_\d+)?")
_RESERVED = {
    "case",
    "const",
    "default",
    "delete",
    "do",
    "double",
    "int",
    "long",
    "new",
    "operator",
    "private",
    "public",
}
_RESERVED |= {"register", "short", "signed", "static", "struct", "switch", "this", "union", "unsigned", "using", "void"}
"""Keywords of C++ that are valid names in Python, so a kernel may use them for its numbers."""


def with_plain_scalars(source: str) -> str:
    """The source with a variable in place of each array of one element that belongs to a thread.

    ``alignas(64) float best_ptr[1];`` and ``best_ptr[0]`` become ``float best;`` and ``best``. An array stays if its
    address is taken, or if it is used other than by its only element.
    """
    return KERNEL.sub(lambda kernel: _of_kernel(kernel[0]), source)


def _of_kernel(text: str) -> str:
    declared = collections.Counter(match["name"] for match in _DECLARATION.finditer(text))
    kept = {name for name, times in declared.items() if times > 1}
    uses = list(_USE.finditer(_DECLARATION.sub("", text)))
    kept |= {use["name"] for use in uses if use["address"] is not None or use["element"] is None}
    taken = set(_NAME.findall(text))
    names = dict[str, str]()
    for name in [name for name in declared if name not in kept]:
        names[name] = _free_name(name, taken)
        taken.add(names[name])

    def declaration(match: re.Match[str]) -> str:
        return f"{match['indent']}{match['type']} {names[match['name']]};" if match["name"] in names else match[0]

    return _USE.sub(lambda use: names.get(use["name"], use[0]), _DECLARATION.sub(declaration, text))


def _free_name(name: str, taken: set[str]) -> str:
    """The name of the variable, ``best`` for ``best_ptr``; with a number appended, as TVM does, if it is taken."""
    match = _TVM_NAME.fullmatch(name)
    base = match["buffer"] if match is not None else name
    if not base or base in _RESERVED or keyword.iskeyword(base):
        base = f"{base}_number".lstrip("_")
    numbered = (f"{base}_{number}" for number in itertools.count(1))
    return next(free for free in itertools.chain([base], numbered) if free not in taken)

"""Named arrays in shared memory of generated CUDA C, where TVM accesses one pool with offsets from its beginning.

A kernel names an array by :func:`name_shared_array`. The statement reaches the text as a call of a function that does
not exist, and is replaced by the declaration of a pointer.
"""

from __future__ import annotations

import re
from typing import Any

from tvm.script import tirx as T

from moec.targets.cuda.text.syntax import KERNEL, bare, closing

_CALL = "moec_shared_array"
_BYTE = "uchar"
_ARRAY = r"(?:\(\((?P<type>\w+)\*\)(?P<typed>\w+)\)|\b(?P<pool>\w+))\["
"""The beginning of an access. TVM casts the pool to the type of the array, except for arrays of bytes, which have the
type of the pool."""
_NAMED = re.compile(rf'^(?P<indent> *){_CALL}\("(?P<name>\w+)", \(&\({_ARRAY}(?P<first>\d+)\]\)\)\);\n', re.MULTILINE)
_ACCESS = re.compile(rf"(?P<address>\(&\()?{_ARRAY}(?!\])")
_LAST_CONSTANT = re.compile(r"(?P<rest>.*) \+ (?P<constant>\d+)|(?P<only>\d+)(?P<less> - .*)?", re.DOTALL)


def name_shared_array(name: str, array: Any) -> None:
    """Emit, in a kernel, a statement that names ``array`` [...] in its text. The array has to begin at a constant
    offset of the pool."""
    T.evaluate(T.call_extern("void", _CALL, name, T.address_of(array[(0,) * len(array.shape)])))


def with_shared_arrays(source: str) -> str:
    """The source with named arrays: ``((uint64_t*)pool)[(stage + 25600)]`` becomes ``full[stage]``, after a declaration
    ``uint64_t* full = (uint64_t*)pool + 25600;``."""
    return KERNEL.sub(lambda kernel: _of_kernel(kernel[0]), source)


def _of_kernel(text: str) -> str:
    firsts = dict[tuple[str, str], dict[int, str]]()
    for match in _NAMED.finditer(text):
        firsts.setdefault(_place(match), {})[int(match["first"])] = match["name"]
    if not firsts:
        return text
    declared = _NAMED.sub(_declaration, text)
    return _with_accesses(declared, firsts)


def _declaration(named: re.Match[str]) -> str:
    kind, pool = _place(named)
    first = "" if named["first"] == "0" else f" + {named['first']}"
    cast = "" if kind == _BYTE else f"({kind}*)"
    return f"{named['indent']}{kind}* {named['name']} = {cast}{pool}{first};\n"


def _place(match: re.Match[str]) -> tuple[str, str]:
    """The type of an array's numbers, and the pool that holds it."""
    return (_BYTE, match["pool"]) if match["pool"] is not None else (match["type"], match["typed"])


def _with_accesses(text: str, firsts: dict[tuple[str, str], dict[int, str]]) -> str:
    """The text with accesses to named arrays. Accesses are replaced from the last to the first, because an index may
    contain another access."""
    for match in reversed(list(_ACCESS.finditer(text))):
        arrays = firsts.get(_place(match), {})
        end = closing(text, match.end())
        rest, constant = _split(text[match.end() : end])
        first = max((first for first in arrays if first <= constant), default=None)
        if first is None:
            continue
        access = f"{arrays[first]}[{_sum(rest, constant - first)}]"
        if match["address"] is not None:
            access, end = f"&{access}", end + len("))")
        text = f"{text[: match.start()]}{access}{text[end + 1 :]}"
    return text


def _split(index: str) -> tuple[str, int]:
    """Split an index into its variable part and the constant added last: ``(stage + 25600)`` into ``stage`` and 25600,
    ``(25611 - consumer)`` into `` - consumer`` and 25611."""
    whole = bare(index)
    match = _LAST_CONSTANT.fullmatch(whole)
    if match is None or (match["rest"] is not None and not _balanced(match["rest"])):
        return whole, 0
    if match["only"] is not None:
        return match["less"] or "", int(match["only"])
    return match["rest"], int(match["constant"])


def _balanced(text: str) -> bool:
    try:
        return closing(f"{text})", 0) == len(text)
    except ValueError:
        return False


def _sum(rest: str, constant: int) -> str:
    if not rest or rest.startswith(" - "):
        return f"{constant}{rest}"
    return bare(rest) if constant == 0 else f"{rest} + {constant}"

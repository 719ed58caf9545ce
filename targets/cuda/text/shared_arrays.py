"""Arrays in shared memory of generated CUDA C: by their names, where TVM counts from the beginning of all of them.

A kernel says what it calls an array by :func:`name_shared_array`. The statement reaches the text as a call, of no
function that exists, and becomes the declaration of a pointer there.
"""

from __future__ import annotations

import re
from typing import Any

from tvm.script import tirx as T

from moec.targets.cuda.text.syntax import KERNEL, bare, closing

_CALL = "moec_shared_array"
_BYTE = "uchar"
_ARRAY = r"(?:\(\((?P<type>\w+)\*\)(?P<typed>\w+)\)|\b(?P<pool>\w+))\["
"""Of numbers that take one byte each TVM says no type: that of the pool is theirs."""
_NAMED = re.compile(rf'^(?P<indent> *){_CALL}\("(?P<name>\w+)", \(&\({_ARRAY}(?P<first>\d+)\]\)\)\);\n', re.MULTILINE)
_ACCESS = re.compile(rf"(?P<address>\(&\()?{_ARRAY}(?!\])")
_LAST_CONSTANT = re.compile(r"(?P<rest>.*) \+ (?P<constant>\d+)|(?P<only>\d+)(?P<less> - .*)?", re.DOTALL)


def name_shared_array(name: str, array: Any) -> None:
    """In a kernel: ``array`` [...], which begins at a constant place of the pool, is called ``name`` in its text."""
    T.evaluate(T.call_extern("void", _CALL, name, T.address_of(array[(0,) * len(array.shape)])))


def with_shared_arrays(source: str) -> str:
    """The same kernels, in which ``((uint64_t*)pool)[(stage + 25600)]`` is ``full[stage]`` behind a declaration
    ``uint64_t* full = (uint64_t*)pool + 25600;``."""
    return KERNEL.sub(lambda kernel: _of_kernel(kernel[0]), source)


def _of_kernel(text: str) -> str:
    firsts = dict[tuple[str, str], dict[int, str]]()
    for found in _NAMED.finditer(text):
        firsts.setdefault(_place(found), {})[int(found["first"])] = found["name"]
    if not firsts:
        return text
    declared = _NAMED.sub(_declaration, text)
    return _with_accesses(declared, firsts)


def _declaration(named: re.Match[str]) -> str:
    kind, pool = _place(named)
    first = "" if named["first"] == "0" else f" + {named['first']}"
    cast = "" if kind == _BYTE else f"({kind}*)"
    return f"{named['indent']}{kind}* {named['name']} = {cast}{pool}{first};\n"


def _place(found: re.Match[str]) -> tuple[str, str]:
    """The type of an array's numbers, and the pool that it is in."""
    return (_BYTE, found["pool"]) if found["pool"] is not None else (found["type"], found["typed"])


def _with_accesses(text: str, firsts: dict[tuple[str, str], dict[int, str]]) -> str:
    """From the last access to the first, for an index may hold another."""
    for found in reversed(list(_ACCESS.finditer(text))):
        arrays = firsts.get(_place(found), {})
        end = closing(text, found.end())
        rest, constant = _split(text[found.end() : end])
        first = max((first for first in arrays if first <= constant), default=None)
        if first is None:
            continue
        access = f"{arrays[first]}[{_sum(rest, constant - first)}]"
        if found["address"] is not None:
            access, end = f"&{access}", end + len("))")
        text = f"{text[: found.start()]}{access}{text[end + 1 :]}"
    return text


def _split(index: str) -> tuple[str, int]:
    """An index as what varies and the constant that is added last: ``(stage + 25600)`` as ``stage`` and 25600. Of
    ``(25611 - consumer)``, `` - consumer`` varies."""
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

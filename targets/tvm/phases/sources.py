"""Readable text of a kernel, cut from its LLVM or assembly module."""

from __future__ import annotations

import re

SYMBOL_PREFIX = "__tvm_ffi_"
"""Prefix of a kernel's name in the object file."""

_LLVM_FUNCTION = re.compile(r'^define [^\n]*?@"?(?P<name>[\w.$]+)"?\(.*?^}\n', re.MULTILINE | re.DOTALL)
_ASSEMBLY_FUNCTION = re.compile(
    r"^\t\.type\t(?P<name>[\w.$]+),@function\n.*?^\t\.size\t(?P=name),[^\n]*\n", re.MULTILINE | re.DOTALL
)
_SYMBOL = re.compile(r"[\w.$]+")
_NOISE = re.compile(
    r"^\t\.(loc|cfi_|p2align)[^\n]*\n"
    r"|^\.L(tmp|func_begin|func_end)\d+:\n"
    r"|^ *#dbg_\w+\([^\n]*\n"
    r"|,? !(dbg|prof) !\d+"
    r"|[ ]+; preds = [^\n]*",
    re.MULTILINE,
)
"""Debug annotations, and the lists of predecessors that LLVM prints after a label."""


def llvm_of(module: str, kernel: str) -> str:
    """LLVM IR of a kernel, parallel bodies that it calls included, debug annotations left out."""
    return _cut(_LLVM_FUNCTION, module, kernel)


def assembly_of(module: str, kernel: str) -> str:
    """Assembly of a kernel, parallel bodies that it calls included, debug directives left out."""
    return _cut(_ASSEMBLY_FUNCTION, module, kernel)


def _cut(pattern: re.Pattern[str], module: str, kernel: str) -> str:
    functions = {match["name"]: _NOISE.sub("", match[0]) for match in pattern.finditer(module)}
    return "\n".join(functions[name] for name in _reachable(functions, SYMBOL_PREFIX + kernel))


def _reachable(functions: dict[str, str], entry: str) -> list[str]:
    """The entry and the private functions it calls; not other kernels."""
    reachable, pending = [entry], [entry]
    while pending:
        for name in dict.fromkeys(_SYMBOL.findall(functions[pending.pop()])):
            if name in functions and name not in reachable and not name.startswith(SYMBOL_PREFIX):
                reachable.append(name)
                pending.append(name)
    return reachable

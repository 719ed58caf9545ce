"""Short names for helpers in generated CUDA C: TVM's names contain all qualifiers of an instruction."""

from __future__ import annotations

import collections
import re

from moec.targets.cuda.text.syntax import HELPER

_INSTRUCTION = re.compile(r'"(?:\{.*; )?(?P<mnemonic>[a-z]\w+(?:\.[\w:]+)+)(?P<operands>[^;"]*)')
"""The instruction of a helper: the only one, or the last of several between braces."""
_PREFIX = re.compile(r"^tvm_builtin_(?:cuda_|ptx_)?")
_NUMBER = re.compile(r"(?<![\w%])\d+(?!\w)")
_SAID_BY_OPERANDS = re.compile(r"shared|global|shared::\w+|mbarrier::\w+::\w+|L2::\w+|sync|aligned|[bu]\d+")
"""Qualifiers that a short name leaves out, because operands show them or the instruction always has them: state spaces,
sizes, hints."""
_SET_BY_NUMBER = ("setmaxnreg", "cp.async.wait_group", "wgmma.wait_group")
"""Instructions for which TVM writes one helper for each value of an immediate operand."""


def with_helper_names(source: str) -> str:
    """The source with short names of helpers.

    A helper of one instruction is named after it: ``mbarrier_init`` for
    ``tvm_builtin_ptx_mbarrier_init_init_shared_b64``. If two helpers would share a name, it says in which shared memory
    they work: ``mbarrier_arrive_shared`` and ``mbarrier_arrive_shared_cluster``. Other helpers lose the prefix
    ``tvm_builtin``. If a short name is taken, or two helpers would still share it, they lose the prefix only.
    """
    old = {helper["name"]: helper["body"] for helper in HELPER.finditer(source) if _PREFIX.match(helper["name"])}
    new = {name: _short(name, body) for name, body in old.items()}
    times = collections.Counter(new.values())
    new = {name: _short(name, old[name], says_where=times[short] > 1) for name, short in new.items()}
    times = collections.Counter(new.values())
    for name, short in new.items():
        if times[short] > 1 or re.search(rf"(?<![.\w]){short}(?![.\w])", source):
            new[name] = _PREFIX.sub("", name)
    return re.sub(r"\btvm_builtin_\w+", lambda match: new.get(match[0], match[0]), source)


def _short(name: str, body: str, *, says_where: bool = False) -> str:
    instruction = _INSTRUCTION.search(body) if "_ptx_" in name else None
    if instruction is None:
        return _PREFIX.sub("", name)
    mnemonic = instruction["mnemonic"]
    words = []
    for word in mnemonic.split("."):
        if says_where and word.startswith("shared"):
            words.append(word.replace("::", "_"))
        elif not _SAID_BY_OPERANDS.fullmatch(word):
            words.append(word.partition("::")[0])
    if mnemonic.startswith(_SET_BY_NUMBER):
        words += _NUMBER.findall(instruction["operands"])
    return "_".join(words)

"""The threads of a program, as an object file next to those of its kernels. ``team.ll`` describes how they work."""

from __future__ import annotations

import functools
import pathlib
import string
import sys

import tvm

from moec.targets.kernel_cache import through_cache
from moec.targets.tvm.phases.host_code import OBJECT, code_of, compiled_text

_WORDS = {"x86_64": {"pause": "pause", "futex": "202"}, "aarch64": {"pause": "yield", "futex": "98"}}
"""What the text calls otherwise on other processors: the instruction that eases waiting, and Linux's number of the
system call ``futex``."""


def team_object(target: tvm.target.Target) -> bytes | None:
    """The object file; None for systems and processors that it is not written for, where TVM's own threads work."""
    empty = _empty_module(str(target))
    words = next((words for name, words in _WORDS.items() if f'triple = "{name}' in empty), None)
    if words is None or sys.platform != "linux":
        return None
    text = string.Template(pathlib.Path(__file__).with_name("team.ll").read_text("utf-8"))
    source = text.substitute(words)
    files = through_cache({"team": f"{target}\0{source}"}, lambda _name: {OBJECT: compiled_text(source, empty)})
    return files["team"][OBJECT]


@functools.cache
def _empty_module(target: str) -> str:
    """LLVM's text of nothing, which says for which processor it is."""
    return code_of(tvm.IRModule({}), tvm.target.Target(target)).inspect_source("ll")

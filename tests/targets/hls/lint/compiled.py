"""A check of every project that tests compile, by the linter."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping

import onnx_ir as ir

from moec.targets.base import Projects
from moec.targets.hls.target import HlsTarget

from .linter import is_source, lint

Compile = Callable[[HlsTarget, ir.Model], Projects]


def linting(compile_model: Compile) -> Compile:
    """The compilation of a model, after which the code of each project must break no rule."""
    clean: set[str] = set()

    @functools.wraps(compile_model)
    def checked(target: HlsTarget, model: ir.Model) -> Projects:
        projects = compile_model(target, model)
        for project in projects.projects:
            digest = _digest(project.files)
            if digest not in clean:
                findings = lint(project.files)
                assert not findings, f"{project.name}: {findings[0]}"
                clean.add(digest)
        return projects

    return checked


def _digest(files: Mapping[str, bytes]) -> str:
    """A digest of the C++ of a project."""
    parts = [name.encode() + b"\0" + files[name] for name in sorted(files) if is_source(name)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()

"""Description of an artifact and its kernels, which need not run on this machine."""

from __future__ import annotations

import dataclasses
from typing import Any

from moec.common.errors import MoecError
from moec.common.work import WorkModel, parse_work
from moec.runtime.artifact import Artifact
from moec.runtime.entries import CandidateEntry
from moec.runtime.manifest import ProgramEntry


@dataclasses.dataclass(frozen=True)
class CompiledKernel:
    """One generated kernel: its formula, the nodes it computes, and the candidates that were considered for them, with
    reasons."""

    name: str
    op: str
    computes: str
    nodes: list[str]
    candidates: list[CandidateEntry]
    attributes: dict[str, Any]
    crossovers: tuple[str, ...]
    """Names of the numbers (:attr:`moec.runtime.probe.Probe.crossovers`) that select it by sizes."""
    work: WorkModel | None
    _artifact: Artifact
    _sources: dict[str, str]

    def __repr__(self) -> str:
        forms = ", ".join(self.forms) or "none"
        return f"<CompiledKernel {self.name!r} of {self.op} ({len(self.nodes)} nodes): {self.computes}; forms: {forms}>"

    @property
    def forms(self) -> tuple[str, ...]:
        """Forms that :meth:`source` can return."""
        return tuple(self._sources)

    def source(self, form: str = "tir") -> str:
        """Return the kernel as text. Raises MoecError for a form that the artifact does not have."""
        if form not in self._sources:
            raise MoecError(
                f"kernel {self.name!r} is not available as {form!r}; available: {', '.join(self.forms) or 'none'}"
            )
        return self._artifact.text(self._sources[form])


def describe(artifact: Artifact, architecture: str | None = None) -> dict[str, Any]:
    """Describe an artifact as :meth:`CompiledModel.describe` does, also for another machine. ``architecture``: omit
    programs for other architectures."""
    fields = dataclasses.asdict(artifact.manifest)
    del fields["files"]
    selected = None if architecture is None else artifact.program(architecture).architecture
    programs = [program for program in fields.pop("programs") if selected in (None, program["architecture"])]
    fields["architectures"] = [program["architecture"] for program in programs if program["architecture"]]
    fields["requirements"] = list(dict.fromkeys(need for program in programs for need in program["requirements"]))
    fields["binaries"] = {
        program["architecture"]: program["binary"] for program in programs if program["binary"] is not None
    }
    fields["kernels"] = [
        {**kernel, "architecture": program["architecture"]} for program in programs for kernel in program["kernels"]
    ]
    fields["inputs"] = [{**tensor, "shape": list(tensor["shape"])} for tensor in fields["inputs"]]
    fields["outputs"] = [{**tensor, "shape": list(tensor["shape"])} for tensor in fields["outputs"]]
    fields["weights"] = [{**tensor, "shape": list(tensor["shape"])} for tensor in fields["weights"]]
    return fields


def kernels_of(artifact: Artifact, program: ProgramEntry) -> dict[str, CompiledKernel]:
    """Describe a program's kernels, by name."""
    return {
        record["name"]: CompiledKernel(
            record["name"],
            record["op"],
            record["computes"],
            record["nodes"],
            record["candidates"],
            record["attributes"],
            tuple(record["crossovers"]),
            parse_work(record["work"], f"{artifact.where}: kernel {record['name']!r}"),
            artifact,
            record["sources"],
        )
        for record in program.kernels
    }


def find_kernel(artifact: Artifact, name: str, architecture: str | None = None) -> CompiledKernel:
    """Look up a kernel of the program for an architecture, or for the newest. Raises MoecError, with the names of all
    kernels, where there is none of that name."""
    kernels = kernels_of(artifact, artifact.program(architecture))
    if name not in kernels:
        raise MoecError(f"{artifact.where}: has no kernel {name!r}; its kernels: {', '.join(kernels) or 'none'}")
    return kernels[name]

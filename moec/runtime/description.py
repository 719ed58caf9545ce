"""What an artifact says about itself and its kernels, which need not run on this machine."""

from __future__ import annotations

import dataclasses
from typing import Any

from moec.common.work import WorkModel, parse_work
from moec.errors import MoecError
from moec.runtime.artifact import Artifact
from moec.runtime.manifest import ProgramEntry


@dataclasses.dataclass(frozen=True)
class CompiledKernel:
    """One generated kernel: its formula, the nodes it computes, and which kernels were considered for them and why."""

    name: str
    op: str
    computes: str
    nodes: list[str]
    candidates: list[dict[str, Any]]
    attributes: dict[str, Any]
    crossovers: tuple[str, ...]
    """Names of the numbers (:attr:`CompiledModel.crossovers`) that say for which sizes it is taken."""
    work: WorkModel | None
    _artifact: Artifact
    _sources: dict[str, str]

    def __repr__(self) -> str:
        forms = ", ".join(self.forms) or "none"
        return f"<CompiledKernel {self.name!r} of {self.op} ({len(self.nodes)} nodes): {self.computes}; forms: {forms}>"

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms :meth:`source` can give."""
        return tuple(self._sources)

    def source(self, form: str = "tir") -> str:
        """The kernel as text. Raises MoecError for a form it was not kept in."""
        if form not in self._sources:
            raise MoecError(
                f"kernel {self.name!r} is not available as {form!r}; available: {', '.join(self.forms) or 'none'}"
            )
        return self._artifact.text(self._sources[form])


def describe(artifact: Artifact, architecture: str | None = None) -> dict[str, Any]:
    """What :meth:`CompiledModel.describe` returns, for an artifact that need not run on this machine. ``architecture``:
    leave the programs for others out."""
    fields = dataclasses.asdict(artifact.manifest)
    del fields["files"]
    wanted = None if architecture is None else artifact.program(architecture).architecture
    programs = [program for program in fields.pop("programs") if wanted in (None, program["architecture"])]
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
    """A program's kernels by name."""
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
    """One kernel of the program for an architecture, or for the newest, by name. Raises MoecError, with the names there
    are, when it has none such."""
    kernels = kernels_of(artifact, artifact.program(architecture))
    if name not in kernels:
        raise MoecError(f"{artifact.where}: has no kernel {name!r}; its kernels: {', '.join(kernels) or 'none'}")
    return kernels[name]

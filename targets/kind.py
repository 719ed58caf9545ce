"""The interface of a kind of target: everything that the compiler, the command line, the runtime and the tools need.

The module of each kind is imported whenever moec starts. To keep that fast it imports only this module, and everything
else inside the methods that need it.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from moec.common.errors import MoecError

if TYPE_CHECKING:
    import pathlib

    import numpy as np
    from rich.console import RenderableType

    from moec.common.crossovers import Tuned
    from moec.common.roofline import Roofline
    from moec.runtime.artifact import Artifact
    from moec.runtime.device import Device
    from moec.runtime.manifest import ProjectEntry
    from moec.runtime.model import CompiledModel
    from moec.targets.base import Target


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of a kernel's source, such as CUDA C or PTX. ``suffix``: of its files' names; ``comment``: the characters
    that begin a comment in it; ``made_by``: the tools that make it, if it is not moec; ``is_code``: whether its lines
    are code."""

    name: str
    suffix: str
    comment: str
    made_by: str = ""
    is_code: bool = True


@dataclasses.dataclass(frozen=True)
class DesignText:
    """The text that describes a project's design: its form, its file in the artifact, and the names of the nodes that
    the design computes."""

    form: str
    file: str
    nodes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class CommandResult:
    """The result of a command: plain data, the same data as tables, and whether it is as expected."""

    data: Any
    tables: Iterable[RenderableType]
    as_expected: bool


@dataclasses.dataclass(frozen=True)
class LayerEstimate:
    """Estimated seconds of a call by layers. ``machine``: what it runs on; ``run``: the call, for people; ``nodes``: by
    the names of nodes, one of each layer; ``ends``: by kinds, ``embedding`` and ``head``."""

    machine: str
    run: str
    nodes: Mapping[str, float]
    ends: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class CaughtTensor:
    """A parameter of a kernel before and after a call."""

    name: str
    before: np.ndarray
    after: np.ndarray


class Standalone(Protocol):
    """A kernel as a program of its own, without the numbers that it runs on. ``parameters``: names of the kernel's
    parameters. ``least_size``: a value of all dynamic sizes at which the kernel computes something."""

    @property
    def parameters(self) -> Sequence[str]: ...

    @property
    def least_size(self) -> int: ...

    def files(self, tensors: Sequence[CaughtTensor]) -> dict[str, bytes]:
        """The files by name: the program, and the numbers of a call. ``tensors``: one for each parameter."""
        ...


class Options(Protocol):
    """Options of a kind of target, which come in addition to a target's name. ``kind``: the kind's name; ``subject``:
    the text of an error for targets that do not take them."""

    kind: ClassVar[str]
    subject: ClassVar[str]


class Kind(abc.ABC):
    """A kind of target. :data:`moec.targets.KINDS` lists all kinds."""

    name: ClassVar[str]
    """The kind's name, with which the names of its targets begin."""
    examples: ClassVar[tuple[str, ...]]
    """Names of targets, for messages."""
    takes_several: ClassVar[bool] = False
    """Whether a name may list several variants for one artifact: ``cuda:sm_80+sm_90a``."""
    forms: ClassVar[tuple[Form, ...]] = ()
    """The forms of kernels' sources, except TIR, which all kinds have."""
    machines: ClassVar[tuple[str, ...]] = ()
    """Names of the machines that :meth:`estimate_launches` knows."""
    tools: ClassVar[tuple[str, ...]] = ()
    """External programs that the kind uses if they are installed, for ``moec doctor``."""

    def oldest_first(self, variants: Sequence[str]) -> Sequence[str]:
        """The variants, known or not, in the order in which an artifact holds their programs."""
        return variants

    @abc.abstractmethod
    def target(self, name: str, options: Options | None = None) -> Target:
        """The target of that name. ``options``: None, or of this kind. Raises UnsupportedError for an unknown
        variant."""

    def read_options(self) -> Callable[..., Options | None] | None:
        """A function that reads this kind's options of ``moec compile``; None for a kind without options. Its
        parameters are the options, annotated for typer. It returns them together, or None if none is given."""
        return None

    def commands(self) -> Sequence[Callable[..., CommandResult]]:
        """The kind's own commands, whose parameters are annotated for typer. Each also takes ``progress``, a function
        that it may call with the name of a step."""
        return ()

    def tables(self, description: Mapping[str, Any]) -> Iterable[RenderableType]:
        """Tables that ``moec inspect`` shows in addition for artifacts of this kind."""
        return ()

    def weight_types(self, description: Mapping[str, Any]) -> Mapping[str, str]:
        """The types of MoE blocks' weights, by the blocks' names, if the target replaced those that the passes
        chose."""
        return {}

    def layer_estimate(self, description: Mapping[str, Any]) -> LayerEstimate | None:
        """The times of layers that the target estimated when it compiled; None if it does not estimate them."""
        return None

    def needs(self, description: Mapping[str, Any]) -> Sequence[str]:
        """Requirements of an artifact at run time, as phrases; features of the processor are not among them."""
        return ()

    def design_text(self, project: ProjectEntry) -> DesignText | None:
        """The text of a project's design; None for kinds that make programs."""
        return None

    def resources(self, artifact: Artifact, kernel: Mapping[str, Any], architecture: str) -> list[dict[str, Any]]:
        """The resources of a kernel's functions on a device: for each its ``function``, ``registers`` of a thread,
        ``threads`` and ``shared_bytes`` of a block, ``spill_bytes``, and ``occupancy``: the ``gpu``, the ``blocks`` and
        ``warps`` that a multiprocessor of it holds, ``most_warps`` of any kernel, and the ``limit`` that allows no
        more. What is not known is None. ``kernel``: its entry in the manifest."""
        return []

    def estimate_launches(
        self,
        artifact: Artifact,
        machine: str | None,
        tokens: Sequence[int],
        past: int | None,
        architecture: str | None = None,
    ) -> CommandResult:
        """Estimate the least time of an artifact's launches without running them, at each number of ``tokens`` that
        follow ``past`` tokens of a session. ``machine``: by default one that the artifact, or its program for this
        ``architecture``, is for. Raises MoecError if there is no estimate for it."""
        raise MoecError(
            f"{artifact.where}: is for {artifact.manifest.target}, which has no launches of a GPU; choose an artifact "
            "for --target cuda"
        )

    def find_tool(self, name: str) -> pathlib.Path | str | None:
        """The path of one of :attr:`tools`, or None if it is not installed."""
        import shutil

        return shutil.which(name)

    def findings(self) -> Mapping[str, Any]:
        """Findings of ``moec doctor`` about this kind on this machine, as plain data."""
        return {}

    def finding_tables(self, findings: Mapping[str, Any]) -> Iterable[RenderableType]:
        """This kind's findings as tables. ``findings``: those of all kinds."""
        return ()


class ProgramKind(Kind):
    """A kind whose targets make programs: models that are loaded and called."""

    has_device: ClassVar[bool] = False
    """Whether programs run on a device other than the processor."""
    streams_experts: ClassVar[bool] = False
    """Whether experts can be read from their file when they are chosen, for weights larger than memory."""
    joins_products: ClassVar[bool] = False
    """Whether one product takes less time than several of the same rows (:mod:`moec.passes.join_products`)."""
    exchanges_rows: ClassVar[bool] = False
    """Whether programs can exchange rows of experts with those of other processes."""
    multiplies_bytes: ClassVar[bool] = False
    """Whether products of int8 arithmetic are computed in integers, which is faster. Otherwise rows are rounded to 8
    bits and multiplied as floats."""

    def processor(self, name: str) -> str | None:
        """The architecture (``x86_64``) of the processor that a target's programs run on, if C can call them; None for
        kinds with a device. Raises UnsupportedError for an unknown variant."""
        return None

    def device(self, artifact: Artifact, architecture: str | None) -> Device | None:
        """The device of this machine that runs the artifact's program; None for the processor. ``architecture``: of the
        program to run, by default the best for the device. Raises MoecError if the device is missing."""
        return None

    def emulated_device(self, architecture: str) -> Device | None:
        """An emulation of the device on the processor; None if programs run on the processor anyway."""
        return None

    def standalone(self, artifact: Artifact, kernel: str, architecture: str | None) -> Standalone:
        """One kernel as a program of its own. ``architecture``: of the artifact's program, by default the newest.
        Raises MoecError for a kernel that does not exist or is not for a GPU; UnsupportedError for one whose launch
        needs more than its tensors and sizes."""
        raise MoecError(f"{artifact.where}: kernel {kernel!r} is not for a GPU; choose an artifact for --target cuda")

    @abc.abstractmethod
    def measure_roofline(self, threads: int) -> Roofline:
        """Measure the limits of this machine, whatever variant a target's name asks for. Raises MoecError if the device
        is missing."""

    @abc.abstractmethod
    def tune(self, compiled: CompiledModel, progress: Callable[[str], None]) -> list[Tuned]:
        """Measure the program's crossovers on this machine; see :func:`moec.tools.tune.measure`."""

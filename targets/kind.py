"""What a kind of target is: everything that the compiler, the command line, the runtime and the tools ask of it.

A module of a kind is imported whenever moec starts, so it imports nothing but this; what it names, it imports when it
is asked.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from moec.errors import MoecError

if TYPE_CHECKING:
    import pathlib

    import numpy as np
    from rich.console import RenderableType

    from moec.common.roofline import Roofline
    from moec.runtime.artifact import Artifact
    from moec.runtime.device import Device
    from moec.runtime.model import CompiledModel
    from moec.targets.base import Target
    from moec.tools.crossovers import Tuned


@dataclasses.dataclass(frozen=True)
class Form:
    """A form that the source of a kernel is kept in. ``suffix``: how its files' names end; ``comment``: how its
    comments begin."""

    name: str
    suffix: str
    comment: str


@dataclasses.dataclass(frozen=True)
class CommandResult:
    """What a command of a kind of target found: plain data, the same as tables, and whether it is as expected."""

    data: Any
    tables: Iterable[RenderableType]
    as_expected: bool


@dataclasses.dataclass(frozen=True)
class CaughtTensor:
    """A parameter of a kernel before and after a call."""

    name: str
    before: np.ndarray
    after: np.ndarray


class Standalone(Protocol):
    """A kernel as a program of its own, but for the numbers. ``parameters``: names of those of the kernel.
    ``least_size``: one that dynamic sizes may have so that the kernel computes something."""

    @property
    def parameters(self) -> Sequence[str]: ...

    @property
    def least_size(self) -> int: ...

    def files(self, tensors: Sequence[CaughtTensor]) -> dict[str, bytes]:
        """By name: the program, and the numbers of a call, by the kernel's parameters."""
        ...


class Options(Protocol):
    """What a kind of target takes beside a target's name. ``kind``: its name; ``subject``: what they are about, and for
    which targets, as a refusal says it."""

    kind: ClassVar[str]
    subject: ClassVar[str]


class Kind(abc.ABC):
    """A kind of target. Those there are stand in :data:`moec.targets.KINDS`."""

    name: ClassVar[str]
    """How the names of its targets begin."""
    examples: ClassVar[tuple[str, ...]]
    """Names of targets."""
    takes_several: ClassVar[bool] = False
    """Whether a name may list several variants, for one artifact: ``cuda:sm_80+sm_90a``."""
    forms: ClassVar[tuple[Form, ...]] = ()
    """The forms of kernels' sources, beside TIR."""
    tools: ClassVar[tuple[str, ...]] = ()
    """Programs of others that its users may have, for ``moec doctor``."""

    def oldest_first(self, variants: Sequence[str]) -> Sequence[str]:
        """Variants, known or not, in the order in which an artifact holds their programs."""
        return variants

    @abc.abstractmethod
    def target(self, name: str, options: Options | None = None) -> Target:
        """The target of that name. ``options``: None, or of this kind. Raises UnsupportedError for a variant that is
        not known."""

    def read_options(self) -> Callable[..., Options | None] | None:
        """None for a kind that has no options; or a function whose parameters are the options of ``moec compile`` for
        it, annotated for typer, and which returns them together, or None where none is given."""
        return None

    def commands(self) -> Sequence[Callable[..., CommandResult]]:
        """Commands of its own, whose parameters are annotated for typer. Each is also given ``progress``, which it may
        call with a step's name."""
        return ()

    def tables(self, description: Mapping[str, Any]) -> Iterable[RenderableType]:
        """What ``moec inspect`` shows of an artifact beyond what it shows of all."""
        return ()

    def weight_types(self, description: Mapping[str, Any]) -> Mapping[str, str]:
        """The types that MoE blocks have their weights in, by the blocks' names, where the target chooses others than
        the passes did."""
        return {}

    def needs(self, description: Mapping[str, Any]) -> Sequence[str]:
        """What an artifact needs to run, beside features of the processor."""
        return ()

    def predict_launches(
        self, artifact: Artifact, machine: str | None, tokens: Sequence[int], past: int | None
    ) -> CommandResult:
        """What the launches of an artifact take on a machine, by default one that it is for, at these numbers of
        tokens, behind ``past`` ones that a session keeps: predicted, without running anything. Raises MoecError where
        there is no model of that."""
        raise MoecError(
            f"{artifact.where}: is for {artifact.manifest.target}, and launches are those of a GPU; choose an artifact "
            "for --target cuda"
        )

    def find_tool(self, name: str) -> pathlib.Path | str | None:
        """The path of one of :attr:`tools`, or None."""
        import shutil

        return shutil.which(name)

    def findings(self) -> Mapping[str, Any]:
        """What ``moec doctor`` finds for it on this machine, as plain data."""
        return {}

    def finding_tables(self, findings: Mapping[str, Any]) -> Iterable[RenderableType]:
        """The same as tables. ``findings``: all of ``moec doctor``."""
        return ()


class ProgramKind(Kind):
    """A kind whose targets make programs: models that are loaded and called."""

    has_device: ClassVar[bool] = False
    """Whether they run on a device beside the processor."""
    streams_experts: ClassVar[bool] = False
    """Whether experts may be read from their file when they are chosen, if weights are larger than memory."""
    multiplies_bytes: ClassVar[bool] = False
    """Whether products of int8 arithmetic are computed in integers, which is faster; else rows are rounded to 8 bits
    and multiplied as floats."""

    def device(self, artifact: Artifact, architecture: str | None) -> Device | None:
        """Where the artifact's program runs on this machine; None for the processor. ``architecture``: of the program
        to run, by default the best for the device. Raises MoecError for a device that is not there."""
        return None

    def emulated_device(self, architecture: str) -> Device | None:
        """A device on the processor that takes the place of one; None where programs run on the processor anyway."""
        return None

    def standalone(self, artifact: Artifact, kernel: str, architecture: str | None) -> Standalone:
        """One kernel of the program for an architecture, by default the newest. Raises MoecError for a kernel that is
        not there or not for a GPU; UnsupportedError for one whose launch needs more than its tensors and sizes."""
        raise MoecError(f"{artifact.where}: kernel {kernel!r} is not for a GPU; choose an artifact for --target cuda")

    @abc.abstractmethod
    def measure_roofline(self, threads: int) -> Roofline:
        """The limits of the machine at hand, whatever variant a target's name asks for. Raises MoecError where there is
        none."""

    @abc.abstractmethod
    def tune(self, compiled: CompiledModel, progress: Callable[[str], None]) -> list[Tuned]:
        """What :func:`moec.tools.tune.tune` does."""

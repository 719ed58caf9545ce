"""The interface of a pass, and the report of a pipeline.

A pass is a frozen dataclass: its fields are its options, in Python and in pipeline text alike
(``fold-constants{limit=1024}``). ``apply`` changes the model in place and returns whether it changed anything; the
model verifies before and after. Remarks (on a proposal that was dropped, a block left as it was) go into the
``Report``, so that nothing is skipped in silence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar, Literal, Protocol

import onnx_ir as ir

from moec.common.jobs import HERE, JobRunner
from moec.common.progress import Progress, silent
from moec.passes.framework.evidence import MOST_ATTEMPTS, MOST_MISSES, Attempt, RaisedBlock

Exactness = Literal["exact", "reassociating", "lossy"]


@dataclasses.dataclass(frozen=True)
class Remark:
    """A remark of a pass about a node or block."""

    pass_name: str
    subject: str
    message: str
    severity: Literal["note", "warning"] = "note"


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss of one layer by a lossy pass: relative errors (of Frobenius norms) of its weights and of its output,
    against the layer before the pass. ``formats``: the present formats of every weight."""

    pass_name: str
    layer: str
    formats: dict[str, list[str]]
    arithmetic: str
    weight_error: float
    output_error: float


@dataclasses.dataclass(frozen=True)
class Unraised:
    """A likely mixture of experts that was not raised: the node that shows it, and the reason. ``experts`` and
    ``top_k`` are None and ``router`` is empty if they were not established. ``attempts``: what was tried on it;
    ``attempts_left_out`` counts further ones."""

    node: str
    reason: str
    experts: int | None = None
    top_k: int | None = None
    router: str = ""
    attempts: tuple[Attempt, ...] = ()
    attempts_left_out: int = 0


@dataclasses.dataclass
class Report:
    """Collected remarks, losses, raised blocks and unraised mixtures of a whole compilation. ``progress`` is called
    immediately, for steps that take long, and ``jobs`` runs their parts."""

    remarks: list[Remark] = dataclasses.field(default_factory=list)
    losses: list[Loss] = dataclasses.field(default_factory=list)
    raised: list[RaisedBlock] = dataclasses.field(default_factory=list)
    unraised: list[Unraised] = dataclasses.field(default_factory=list)
    progress: Progress = silent
    jobs: JobRunner = HERE

    def add_unraised(self, region: Unraised, attempts: Iterable[Attempt] = ()) -> None:
        """Add a mixture that was not raised, with as many of the attempts on it as fit."""
        every = tuple(dict.fromkeys(attempts))
        kept = every[:MOST_ATTEMPTS] if len(self.unraised) < MOST_MISSES else ()
        self.unraised.append(dataclasses.replace(region, attempts=kept, attempts_left_out=len(every) - len(kept)))

    def note(self, pass_name: str, subject: str, message: str) -> None:
        self.remarks.append(Remark(pass_name, subject, message))

    def warn(self, pass_name: str, subject: str, message: str) -> None:
        self.remarks.append(Remark(pass_name, subject, message, "warning"))


class Pass(Protocol):
    """The interface of a pass. Implementations are frozen dataclasses."""

    name: ClassVar[str]
    exactness: ClassVar[Exactness]

    def apply(self, model: ir.Model, report: Report) -> bool:
        """Rewrite ``model`` in place; return whether it changed."""
        ...

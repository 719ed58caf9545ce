"""What a pass is, and what a pipeline of passes is.

A pass is a frozen dataclass: its fields are its options, in Python and in pipeline text alike
(``fold-constants{limit=1024}``). ``apply`` changes the model in place and says whether it changed anything; the model
verifies before and after. What a pass noticed on its way (a proposal that was dropped, a block left as it was) goes
into the ``Report``, so that nothing is skipped in silence.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal, Protocol

import onnx_ir as ir

from moec.common.progress import Progress, silent

Exactness = Literal["exact", "reassociating", "lossy"]


@dataclasses.dataclass(frozen=True)
class Remark:
    """One thing a pass has to tell: which pass, about which node or block, how serious, and what."""

    pass_name: str
    subject: str
    message: str
    severity: Literal["note", "warning"] = "note"


@dataclasses.dataclass(frozen=True)
class Loss:
    """What a lossy pass cost one layer: relative errors (of Frobenius norms) of its weights and of its output, against
    the layer as it was before the pass. ``formats``: for every weight the formats that it has now."""

    pass_name: str
    layer: str
    formats: dict[str, list[str]]
    arithmetic: str
    weight_error: float
    output_error: float


@dataclasses.dataclass(frozen=True)
class Unraised:
    """What looks like a mixture of experts and stays as it is: the node that shows it, and why. ``experts`` and
    ``top_k`` are None and ``router`` is empty where they were not established."""

    node: str
    reason: str
    experts: int | None = None
    top_k: int | None = None
    router: str = ""


@dataclasses.dataclass
class Report:
    """Collects remarks, losses, and what was not raised over a whole compilation. ``progress`` is told at once what
    takes long."""

    remarks: list[Remark] = dataclasses.field(default_factory=list)
    losses: list[Loss] = dataclasses.field(default_factory=list)
    unraised: list[Unraised] = dataclasses.field(default_factory=list)
    progress: Progress = silent

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

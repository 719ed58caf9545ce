"""Entries of a manifest that describe an artifact to people: plain data, of which fields that are read anywhere have a
type here; others may be there, too."""

from __future__ import annotations

from typing import Any, TypedDict

from moec.common.records import Size


class CandidateEntry(TypedDict):
    kernel: str
    eligible: bool
    reason: str
    chosen: bool


class ParameterEntry(TypedDict):
    name: str
    dtype: str
    shape: list[Any]


class TensorMapEntry(TypedDict):
    name: str
    tensor: str
    dtype: str
    rank: int
    numbers: list[str]


class RangeEntry(TypedDict):
    least: int
    most: int | None


class ConditionEntry(TypedDict):
    size: str
    sizes: RangeEntry


class _OptionalOfLaunch(TypedDict, total=False):
    only_if: ConditionEntry | None
    tensor_columns: int


class LaunchEntry(_OptionalOfLaunch):
    function: str
    arguments: list[str]
    grid: list[str]
    block: list[str]
    shared_bytes: str
    static_shared_bytes: int
    tensor_maps: list[TensorMapEntry]
    cluster: int
    registers: int | None
    begins_early: bool


class SizedWorkEntry(TypedDict):
    """Work by the sizes of a kernel, as :class:`moec.common.work.SizedWork` has it."""

    operations: str
    arithmetic: str
    moved: dict[str, str]
    experts: int
    block_rows: int


class KernelEntry(TypedDict):
    """One kernel of a program, as :class:`moec.targets.base.KernelRecord` has it; ``sources``: files by form;
    ``structure``: the file of a :class:`moec.common.kernel_structure.KernelStructure`, if there is one."""

    name: str
    op: str
    computes: str
    nodes: list[str]
    attributes: dict[str, Any]
    sources: dict[str, str]
    structure: str | None
    sizes: dict[str, Any]
    calls: Size
    crossovers: list[str]
    candidates: list[CandidateEntry]
    parameters: list[ParameterEntry]
    launches: list[LaunchEntry]
    work: dict[str, Any] | None
    sized_work: SizedWorkEntry | None


class StageEntry(TypedDict):
    """One step of the compilation, and the file of the model after it."""

    name: str
    changed: bool
    file: str


class LossEntry(TypedDict):
    pass_name: str
    layer: str
    formats: dict[str, list[str]]
    arithmetic: str
    weight_error: float
    output_error: float


class RemarkEntry(TypedDict):
    pass_name: str
    subject: str
    message: str
    severity: str


class TrialEntry(TypedDict):
    name: str
    runs: int
    tokens: int
    difference: float | None
    tolerance: float
    failure: str
    miniature: bool


class SideEntry(TypedDict):
    condition: str
    seen: str
    by: str


class DecisionEntry(TypedDict):
    node: str
    operator: str
    sides: list[SideEntry]
    others: int


class EvidenceEntry(TypedDict):
    difference: float | None
    tolerance: float
    worst_trial: str
    trials: list[TrialEntry]
    decisions: list[DecisionEntry]
    decisions_left_out: int
    assumed: list[str]


class RaisedEntry(TypedDict):
    """A raised block, as :class:`moec.passes.framework.evidence.RaisedBlock` has it."""

    name: str
    reading: str
    proposal: str
    evidence: EvidenceEntry
    isomorphic_to: str


class AttemptEntry(TypedDict):
    reading: str
    reason: str
    proposal: str
    proposals: int
    evidence: EvidenceEntry | None


class UnraisedEntry(TypedDict):
    """A near miss, as :class:`moec.passes.framework.base.Unraised` has it."""

    node: str
    reason: str
    experts: int | None
    top_k: int | None
    router: str
    attempts: list[AttemptEntry]
    attempts_left_out: int


class ExpertsEntry(TypedDict):
    arithmetic: str
    activation_group: int
    hidden_sizes: list[int]


class RowBytesEntry(TypedDict):
    out: int
    back: int


class ProductEntry(TypedDict):
    name: str
    inputs: int | None
    outputs: int | None


class _DispatchedProducts(TypedDict, total=False):
    products: list[ProductEntry]


class BlockEntry(_DispatchedProducts):
    """One MoE block, as :func:`moec.ir.blocks.moe_blocks` describes it."""

    name: str
    op: str
    num_experts: int | None
    top_k: int | None
    hidden_size: int | None
    intermediate_size: int | None
    router: str | None
    activation: str | None
    gate_layout: str | None
    dtype: str | None
    formulation: str | None
    block: str | None
    formats: dict[str, list[str]]
    experts: ExpertsEntry | None
    row_bytes: RowBytesEntry | None

"""The launches of an artifact's kernel at given sizes, each with its predicted time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from moec.common.errors import ArtifactError, MoecError
from moec.runtime.artifact import Artifact
from moec.runtime.description import find_kernel
from moec.targets.cuda.architectures import WARP
from moec.targets.cuda.launch_model.attention import AttentionSizes
from moec.targets.cuda.launch_model.gpus import Gpu
from moec.targets.cuda.launch_model.loops import CountedPlan, Issued, count
from moec.targets.cuda.launch_model.occupancy import occupancy
from moec.targets.cuda.launch_model.plans import (
    ROWS,
    SLOTS,
    TOKENS,
    AttentionPlan,
    LaunchPlan,
    MemoryBoundPlan,
    TilePlan,
    WalkPlan,
    WarpPlan,
)
from moec.targets.cuda.launch_model.predict import LaunchFacts, Prediction, predict
from moec.targets.cuda.launch_model.rows import RowSpread
from moec.targets.cuda.launch_model.sizes import evaluate, tensor_bytes


@dataclasses.dataclass(frozen=True)
class PredictedLaunch:
    """One launch of ``function`` of a kernel, as the host makes it at some number of tokens, with its prediction."""

    function: str
    grid: int
    facts: LaunchFacts
    plan: LaunchPlan
    prediction: Prediction
    begins_early: bool = False
    """Whether it may begin before the preceding launch has ended, and lets the next one do so."""


class KernelCalls:
    """Predictions for the kernels of a program on a GPU. Raises ArtifactError for a record that cannot be read."""

    def __init__(self, artifact: Artifact, architecture: str, gpu: Gpu) -> None:
        self._artifact, self._architecture, self._gpu = artifact, architecture, gpu
        self._issued: dict[str, Issued | None] = {}

    def where(self, kernel: Mapping[str, Any]) -> str:
        return f"{self._artifact.where}: kernel {kernel['name']!r}"

    def launches(
        self,
        kernel: Mapping[str, Any],
        plan: LaunchPlan,
        sizes: Mapping[str, int],
        experts: int = 1,
        before: Sequence[PredictedLaunch] = (),
    ) -> list[PredictedLaunch]:
        """The launches that the host makes at these sizes of the kernel. ``experts``: of the whole layer; ``before``:
        the launch that precedes those of the kernel, if any."""
        where = self.where(kernel)
        launches: list[PredictedLaunch] = []
        try:
            for launch in kernel["launches"]:
                facts = self._facts(kernel, launch, plan, sizes) if _is_made(launch, sizes, where) else None
                if facts is None or not facts.blocks:
                    continue
                self._check_fits(facts, where)
                early = launch["begins_early"]
                overlaps = early and any(previous.begins_early for previous in [*before, *launches][-1:])
                facts = dataclasses.replace(facts, overlaps=overlaps)
                prediction = predict(plan, self._gpu, facts, *_rows_of(plan, sizes, experts))
                launches.append(PredictedLaunch(launch["function"], facts.blocks, facts, plan, prediction, early))
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{self._artifact.where}: a launch cannot be read: {error!r}") from error
        return launches

    def _check_fits(self, facts: LaunchFacts, where: str) -> None:
        threads, registers, shared_bytes = facts.threads, facts.registers, facts.shared_bytes
        if threads < 1 or not occupancy(self._gpu, threads, registers, shared_bytes).blocks:
            raise MoecError(
                f"{where}: a block of {threads} threads with {registers} registers each and {shared_bytes} bytes of "
                f"shared memory does not fit on {self._gpu.name}; choose another GPU"
            )

    def _facts(
        self, kernel: Mapping[str, Any], launch: Mapping[str, Any], plan: LaunchPlan, sizes: Mapping[str, int]
    ) -> LaunchFacts:
        where = self.where(kernel)
        blocks, threads = (
            math.prod(evaluate(extent, sizes, where) for extent in launch[what]) for what in ("grid", "block")
        )
        read, written = self._moved(kernel, launch, plan, sizes)
        issued = None
        if isinstance(plan, CountedPlan):
            issued = self._count(kernel["name"], launch["function"], plan, threads)
        return LaunchFacts(
            blocks,
            threads,
            int(launch["registers"]),
            int(launch["static_shared_bytes"]) + evaluate(launch["shared_bytes"], sizes, where),
            read,
            written,
            evaluate(plan.steps, sizes, where) if isinstance(plan, WalkPlan) else 0,
            issued,
            _attention_sizes(plan, sizes, where) if isinstance(plan, AttentionPlan) else None,
        )

    def _moved(
        self, kernel: Mapping[str, Any], launch: Mapping[str, Any], plan: LaunchPlan, sizes: Mapping[str, int]
    ) -> tuple[float, float]:
        """Bytes that the launch reads and writes. If the plan does not distinguish them, all tensors count as read."""
        parameters, where = kernel["parameters"], self.where(kernel)
        if not isinstance(plan, MemoryBoundPlan):
            names = plan.moved or None if isinstance(plan, WalkPlan) else None
            return tensor_bytes(parameters, names, sizes, where), 0.0
        own = [parameter for parameter in parameters if f"{parameter['name']}_ptr" in launch["arguments"]]
        read = tensor_bytes(own, plan.read, sizes, where, plan.most_read)
        written = tensor_bytes(own, plan.written, sizes, where, plan.most_written)
        pairs = sizes[TOKENS] * sizes[SLOTS] if plan.read_of_pair or plan.written_of_pair else 0
        return read + plan.read_of_pair * pairs, written + plan.written_of_pair * pairs

    def _count(self, kernel: str, function: str, plan: CountedPlan, threads: int) -> Issued | None:
        if function not in self._issued:
            text = find_kernel(self._artifact, kernel, self._architecture)
            sass = text.source("sass") if "sass" in text.forms else ""
            self._issued[function] = count(sass, function, plan, threads // WARP)
        return self._issued[function]


def _is_made(launch: Mapping[str, Any], sizes: Mapping[str, int], where: str) -> bool:
    condition = launch["only_if"]
    if condition is None:
        return True
    size, most = evaluate(condition["size"], sizes, where), condition["sizes"]["most"]
    return size >= condition["sizes"]["least"] and (most is None or size <= most)


def _rows_of(plan: LaunchPlan, sizes: Mapping[str, int], experts: int) -> tuple[RowSpread, int]:
    """The spread of a product's rows over its matrices, and the number of tokens."""
    if not isinstance(plan, TilePlan | WarpPlan):
        return RowSpread(0, 1), 0
    if TOKENS not in sizes:
        return RowSpread(sizes[ROWS], 1), sizes[ROWS]
    own = plan.product.experts
    return RowSpread(sizes[TOKENS] * sizes[SLOTS] * own // experts, own), sizes[TOKENS]


def _attention_sizes(plan: AttentionPlan, sizes: Mapping[str, int], where: str) -> AttentionSizes:
    return AttentionSizes(
        *(evaluate(text, sizes, where) for text in (plan.sequences, plan.queries, plan.held, plan.parts))
    )

"""Predictions for the layers of experts in an artifact: every launch at some numbers of tokens, and their sums."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from moec.common.guards import size_names
from moec.errors import ArtifactError, MoecError
from moec.runtime.artifact import Artifact
from moec.runtime.description import find_kernel
from moec.runtime.manifest import ProgramEntry
from moec.targets.cuda.architectures import WARP, newest_that_runs
from moec.targets.cuda.device.gpu import best_binary
from moec.targets.cuda.launch_model.gpus import GPUS, Gpu, gpu_called
from moec.targets.cuda.launch_model.loops import Issued, count
from moec.targets.cuda.launch_model.occupancy import occupancy
from moec.targets.cuda.launch_model.plans import (
    MULTIPROCESSORS,
    SLOTS,
    TOKENS,
    LaunchPlan,
    Product,
    StreamPlan,
    TilePlan,
    WalkPlan,
    WarpPlan,
    parse_plan,
)
from moec.targets.cuda.launch_model.predict import LaunchFacts, Prediction, predict
from moec.targets.cuda.launch_model.rows import Spread
from moec.targets.cuda.launch_model.sizes import evaluate, kernel_sizes, model_sizes, tensor_bytes

_GPU_OF = {"sm_80": "a100", "sm_89": "rtx4090", "sm_90a": "h100"}
"""The GPU that predictions are for where none is named."""


@dataclasses.dataclass(frozen=True)
class PredictedLaunch:
    """One launch, ``function`` of a kernel, as the host makes it at some number of tokens."""

    function: str
    grid: int
    facts: LaunchFacts
    plan: LaunchPlan
    prediction: Prediction
    begins_early: bool = False
    """Whether it may begin before the one before has ended, and lets the next one."""


@dataclasses.dataclass(frozen=True)
class PredictedLayer:
    """All launches of a node at some number of tokens. ``least``: the seconds that its operations and bytes take at the
    published peaks."""

    node: str
    tokens: int
    launches: tuple[PredictedLaunch, ...]
    least: float

    @property
    def seconds(self) -> float:
        return sum(launch.prediction.seconds for launch in self.launches)

    @property
    def operations(self) -> float:
        return sum(launch.prediction.operations for launch in self.launches)


def predict_layers(artifact: Artifact, name: str | None, tokens: Sequence[int]) -> tuple[Gpu, list[PredictedLayer]]:
    """Every layer of experts at every number of tokens, on the GPU of that name, by default the newest that the
    artifact is for. Raises MoecError for a GPU that is not known, or that holds no block of a launch, and an artifact
    without such layers or without machine code for the GPU."""
    code = [program for program in artifact.manifest.programs if program.binary is not None]
    architectures = [program.architecture for program in code]
    gpu = gpu_called(_best_known(architectures, artifact.where) if name is None else name)
    best = best_binary(architectures, gpu.capability, artifact.where)
    program = artifact.program(best)
    nodes = _layers_of(program)
    if not nodes:
        raise MoecError(f"{artifact.where}: has no layer of experts whose launches could be predicted")
    layers = [_Layer(artifact, program, gpu, node) for node in nodes]
    return gpu, [layer.at(number) for layer in layers for number in tokens]


def not_predicted(artifact: Artifact, gpu: Gpu) -> list[Mapping[str, Any]]:
    """The records of the kernels that are launched outside of layers of experts: nothing is predicted of them. Errors
    as for :func:`predict_layers`."""
    architectures = [program.architecture for program in artifact.manifest.programs if program.binary is not None]
    program = artifact.program(best_binary(architectures, gpu.capability, artifact.where))
    predicted = set(_layers_of(program))
    return [kernel for kernel in program.kernels if kernel["launches"] and not predicted.intersection(kernel["nodes"])]


def _layers_of(program: ProgramEntry) -> list[str]:
    """The nodes that are layers of experts, in the order of the program."""
    nodes = [
        node
        for kernel in program.kernels
        if kernel["op"].startswith("moec.") and TOKENS in kernel["sizes"] and kernel["launches"]
        for node in kernel["nodes"]
    ]
    return list(dict.fromkeys(nodes))


def _best_known(architectures: Sequence[str], where: str) -> str:
    """The GPU of the newest architecture that has one, or the first that runs any. Raises MoecError where none does."""
    if own := [_GPU_OF[name] for name in architectures if name in _GPU_OF]:
        return own[-1]
    able = [name for name, gpu in GPUS.items() if newest_that_runs(architectures, gpu.capability)]
    if architectures and not able:
        raise MoecError(
            f"{where}: holds code for {', '.join(architectures)}, which no GPU runs whose figures are known, "
            f"{', '.join(GPUS)}; compile it for an older one too: --target cuda:sm_80+{architectures[-1]}"
        )
    return next(iter(able or GPUS))


class _Layer:
    """The launches of a node. Raises ArtifactError for a record that cannot be read."""

    def __init__(self, artifact: Artifact, program: ProgramEntry, gpu: Gpu, node: str) -> None:
        self._artifact, self._architecture, self._gpu, self._node = artifact, program.architecture, gpu, node
        self._kernels = [kernel for kernel in program.kernels if node in kernel["nodes"] and kernel["launches"]]
        self._plans = {
            kernel["name"]: parse_plan(kernel["plan"], self._where(kernel))
            or StreamPlan(tuple(parameter["name"] for parameter in kernel["parameters"]), ())
            for kernel in self._kernels
        }
        self._issued: dict[str, Issued | None] = {}
        blocks = {block["name"]: block.get("num_experts") for block in artifact.manifest.moe_blocks}
        products = [plan.product.experts for plan in self._plans.values() if isinstance(plan, TilePlan | WarpPlan)]
        self._experts = blocks.get(node) or max(products, default=1)

    def at(self, tokens: int) -> PredictedLayer:
        called = next(kernel for kernel in self._kernels if TOKENS in kernel["sizes"])
        others = [name for spec in self._artifact.manifest.inputs for size in spec.shape for name in size_names(size)]
        sizes = {**dict.fromkeys(others, 1), **model_sizes(called, tokens, self._where(called))}
        sizes[MULTIPROCESSORS] = self._gpu.multiprocessors
        launches: list[PredictedLaunch] = []
        try:
            for kernel in self._kernels:
                own = kernel_sizes(kernel, sizes, self._where(kernel))
                launches += self._of_kernel(kernel, own, tokens, launches[-1:])
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{self._artifact.where}: a launch cannot be read: {error!r}") from error
        if not launches:
            raise ArtifactError(f"{self._artifact.where}: {self._node!r} has no launch for {tokens} tokens")
        return PredictedLayer(self._node, tokens, tuple(launches), self._least(launches, tokens))

    def _of_kernel(
        self, kernel: Mapping[str, Any], sizes: Mapping[str, int], tokens: int, before: Sequence[PredictedLaunch]
    ) -> list[PredictedLaunch]:
        """``before``: the launch before those of the kernel; none where they are the first."""
        where = self._where(kernel)
        found: list[PredictedLaunch] = []
        for launch in kernel["launches"]:
            condition = launch["only_if"]
            if condition is not None:
                size, most = evaluate(condition["size"], sizes, where), condition["sizes"]["most"]
                if size < condition["sizes"]["least"] or (most is not None and size > most):
                    continue
            facts = self._facts(kernel, launch, sizes)
            if facts.blocks:
                self._check_fits(facts, where)
                overlaps = launch["begins_early"] and any(one.begins_early for one in [*before, *found][-1:])
                facts = dataclasses.replace(facts, overlaps=overlaps)
                found.append(self._predicted(kernel, launch, facts, sizes, tokens))
        return found

    def _check_fits(self, facts: LaunchFacts, where: str) -> None:
        threads, registers, shared_bytes = facts.threads, facts.registers, facts.shared_bytes
        if threads < 1 or not occupancy(self._gpu, threads, registers, shared_bytes).blocks:
            raise MoecError(
                f"{where}: a block of {threads} threads with {registers} registers each and {shared_bytes} bytes of "
                f"shared memory does not fit on {self._gpu.name}; choose another GPU"
            )

    def _predicted(
        self,
        kernel: Mapping[str, Any],
        launch: Mapping[str, Any],
        facts: LaunchFacts,
        sizes: Mapping[str, int],
        tokens: int,
    ) -> PredictedLaunch:
        plan = self._plans[kernel["name"]]
        spread = Spread(0, 1)
        if isinstance(plan, TilePlan | WarpPlan):
            own = plan.product.experts
            spread = Spread(sizes[TOKENS] * sizes[SLOTS] * own // self._experts, own)
        prediction = predict(plan, self._gpu, facts, spread, tokens)
        return PredictedLaunch(launch["function"], facts.blocks, facts, plan, prediction, launch["begins_early"])

    def _facts(self, kernel: Mapping[str, Any], launch: Mapping[str, Any], sizes: Mapping[str, int]) -> LaunchFacts:
        where, plan = self._where(kernel), self._plans[kernel["name"]]
        blocks, threads = (
            math.prod(evaluate(extent, sizes, where) for extent in launch[what]) for what in ("grid", "block")
        )
        read, written, of_pair = None, (), (0, 0)
        if isinstance(plan, StreamPlan):
            read, written, of_pair = plan.read, plan.written, (plan.read_of_pair, plan.written_of_pair)
        pairs = sizes[TOKENS] * sizes[SLOTS] if any(of_pair) else 0
        if isinstance(plan, WalkPlan):
            read = plan.moved or None
        issued = None
        if isinstance(plan, TilePlan | WarpPlan):
            issued = self._count(kernel["name"], launch["function"], plan, threads)
        return LaunchFacts(
            blocks,
            threads,
            int(launch["registers"]),
            int(launch["static_shared_bytes"]) + evaluate(launch["shared_bytes"], sizes, where),
            tensor_bytes(kernel["parameters"], read, sizes, where) + of_pair[0] * pairs,
            tensor_bytes(kernel["parameters"], written, sizes, where) + of_pair[1] * pairs,
            evaluate(plan.steps, sizes, where) if isinstance(plan, WalkPlan) else 0,
            issued,
        )

    def _count(self, kernel: str, function: str, plan: TilePlan | WarpPlan, threads: int) -> Issued | None:
        if function not in self._issued:
            found = find_kernel(self._artifact, kernel, self._architecture)
            sass = found.source("sass") if "sass" in found.forms else ""
            self._issued[function] = count(sass, function, plan, threads // WARP)
        return self._issued[function]

    def _least(self, launches: Sequence[PredictedLaunch], tokens: int) -> float:
        """Of all products at the peak of tensor cores; of matrices in use, and of rows in and out."""
        products: list[Product] = []
        seconds, moved = 0.0, 0.0
        for launch in launches:
            if isinstance(launch.plan, TilePlan | WarpPlan):
                product = launch.plan.product
                unit = launch.plan.unit if isinstance(launch.plan, TilePlan) else "mma"
                seconds += launch.prediction.operations / self._gpu.peak(product.dtype, unit)
                pairs = round(launch.prediction.operations / 2 / product.columns / product.inner)
                moved += product.matrix_bytes * Spread(pairs, product.experts).used
                products.append(product)
        if products:
            moved += 2 * tokens * products[0].inner * products[0].row_bytes
        else:
            moved = sum(launch.prediction.traffic.l2 for launch in launches)
        return max(seconds, moved / self._gpu.memory_peak)

    def _where(self, kernel: Mapping[str, Any]) -> str:
        return f"{self._artifact.where}: kernel {kernel['name']!r}"

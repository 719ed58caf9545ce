"""Predictions for the kernels of an artifact: each launch at some numbers of tokens, and totals."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from moec.common.errors import ArtifactError, MoecError
from moec.runtime.artifact import Artifact
from moec.runtime.manifest import ProgramEntry
from moec.targets.cuda.architectures import newest_that_runs
from moec.targets.cuda.device.gpu import best_binary
from moec.targets.cuda.launch_model.gpus import GPU_OF, GPUS, Gpu, gpu_called
from moec.targets.cuda.launch_model.kernel_calls import KernelCalls, PredictedLaunch
from moec.targets.cuda.launch_model.outside import OutsideKernels, PredictedOutside
from moec.targets.cuda.launch_model.plans import TOKENS, MemoryBoundPlan, ProductPlan, TilePlan, WarpPlan, parse_plan
from moec.targets.cuda.launch_model.rows import RowSpread
from moec.targets.cuda.launch_model.sizes import ModelSizes, kernel_sizes


@dataclasses.dataclass(frozen=True)
class PredictedLayer:
    """All launches of a node at some number of tokens. ``least``: the least time of its operations and bytes at the
    published peaks, in seconds."""

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


@dataclasses.dataclass(frozen=True)
class PredictedModel:
    """The predictions for a model. ``layers``: layers of experts; ``outside``: launches outside of these, at the same
    numbers of tokens; ``others``: records of the kernels that are not predicted."""

    gpu: Gpu
    layers: tuple[PredictedLayer, ...]
    outside: tuple[PredictedOutside, ...]
    others: tuple[Mapping[str, Any], ...]


def predict_model(
    artifact: Artifact, name: str | None, tokens: Sequence[int], past: int | None = None
) -> PredictedModel:
    """Predict every layer of experts, and all other kernels that have a plan, at each number of ``tokens`` that follow
    ``past`` ones. ``name``: the GPU, by default the newest that the artifact is for.

    Raises MoecError for an unknown GPU, one that cannot hold a block of a launch, a ``past`` for a model that keeps no
    state, and an artifact without such kernels or without machine code for the GPU.
    """
    code = [program for program in artifact.manifest.programs if program.binary is not None]
    architectures = [program.architecture for program in code]
    gpu = gpu_called(_best_known(architectures, artifact.where) if name is None else name)
    best = best_binary(architectures, gpu.capability, artifact.where)
    program = artifact.program(best)
    calls = KernelCalls(artifact, program.architecture, gpu)
    model = ModelSizes(artifact, program, past or 0, gpu.multiprocessors)
    if past is not None and not model.has_past:
        raise MoecError(f"{artifact.where}: keeps no keys and values between runs on a GPU; leave out --past")
    nodes = _layers_of(program)
    layers = [_ExpertsLaunches(artifact, program, gpu, node, calls) for node in nodes]
    outside = OutsideKernels(program, set(nodes), calls, model)
    called = layers[0].called if layers else outside.called
    if called is None:
        raise MoecError(
            f"{artifact.where}: has no layer of experts and no product with a constant matrix, whose launches could be "
            "predicted"
        )
    sizes = {number: model.at(*called, number, calls.where(called[0])) for number in tokens}
    return PredictedModel(
        gpu,
        tuple(layer.at(number, model) for layer in layers for number in tokens),
        tuple(outside.at(number, sizes[number]) for number in tokens) if outside.has_any else (),
        tuple(outside.others),
    )


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
    """The name of the GPU of the newest architecture that has one, otherwise of the first GPU that runs any of them.
    Raises MoecError if no known GPU does."""
    if own := [GPU_OF[name] for name in architectures if name in GPU_OF]:
        return own[-1]
    able = [name for name, gpu in GPUS.items() if newest_that_runs(architectures, gpu.capability)]
    if architectures and not able:
        raise MoecError(
            f"{where}: holds code for {', '.join(architectures)}, which no GPU runs whose figures are known, "
            f"{', '.join(GPUS)}; compile it for an older one too: --target cuda:sm_80+{architectures[-1]}"
        )
    return next(iter(able or GPUS))


class _ExpertsLaunches:
    """A layer of experts: the launches of one node. Raises ArtifactError for a record that cannot be read."""

    def __init__(self, artifact: Artifact, program: ProgramEntry, gpu: Gpu, node: str, calls: KernelCalls) -> None:
        self._artifact, self._gpu, self._node, self._calls = artifact, gpu, node, calls
        self._kernels = [kernel for kernel in program.kernels if node in kernel["nodes"] and kernel["launches"]]
        self._plans = {
            kernel["name"]: parse_plan(kernel["plan"], calls.where(kernel))
            or MemoryBoundPlan(tuple(parameter["name"] for parameter in kernel["parameters"]), ())
            for kernel in self._kernels
        }
        blocks = {block["name"]: block.get("num_experts") for block in artifact.manifest.moe_blocks}
        products = [plan.product.experts for plan in self._plans.values() if isinstance(plan, TilePlan | WarpPlan)]
        self._experts = blocks.get(node) or max(products, default=1)
        self.called = next(kernel for kernel in self._kernels if TOKENS in kernel["sizes"]), TOKENS
        """A kernel, and the name of its size that is the number of tokens."""

    def at(self, tokens: int, model: ModelSizes) -> PredictedLayer:
        sizes = model.at(*self.called, tokens, self._calls.where(self.called[0]))
        launches: list[PredictedLaunch] = []
        for kernel in self._kernels:
            own = kernel_sizes(kernel, sizes, self._calls.where(kernel))
            plan = self._plans[kernel["name"]]
            launches += self._calls.launches(kernel, plan, own, self._experts, launches[-1:])
        if not launches:
            raise ArtifactError(f"{self._artifact.where}: {self._node!r} has no launch for {tokens} tokens")
        return PredictedLayer(self._node, tokens, tuple(launches), self._least(launches, tokens))

    def _least(self, launches: Sequence[PredictedLaunch], tokens: int) -> float:
        """The least time in seconds: that of all products at the peak of their units, or that of moving the matrices in
        use and the rows of the layer's input and output, whichever is longer."""
        products: list[ProductPlan] = []
        seconds, moved = 0.0, 0.0
        for launch in launches:
            if isinstance(launch.plan, TilePlan | WarpPlan):
                product = launch.plan.product
                unit = launch.plan.unit if isinstance(launch.plan, TilePlan) else "mma"
                seconds += launch.prediction.operations / self._gpu.peak(product.dtype, unit)
                pairs = round(launch.prediction.operations / 2 / product.columns / product.inner)
                moved += product.matrix_bytes * RowSpread(pairs, product.experts).used
                products.append(product)
        if products:
            moved += 2 * tokens * products[0].inner * products[0].row_bytes
        else:
            moved = sum(launch.prediction.traffic.l2 for launch in launches)
        return max(seconds, moved / self._gpu.memory_peak)

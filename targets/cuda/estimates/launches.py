"""The launches of an artifact at some numbers of tokens, each with the least time that it can take on a GPU.

The least time is that of its operations or of its bytes at the published peaks, whichever is longer
(:mod:`moec.common.roofline`). Tokens draw their experts at random (:mod:`.draws`), and padding of blocks is computed.
Waits and caches are left out: a measured time is longer, and its share of the roofline says by how much. The host's
time without a captured graph stands beside it (:mod:`.host`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moec.common.errors import ArtifactError, MoecError
from moec.common.kernel_sizes import LARGEST_WORK, evaluate, kernel_sizes, tensor_bytes
from moec.common.roofline import Roofline
from moec.common.weight_reads import WeightReads, sized_reads
from moec.common.work import SizedWork, Work
from moec.runtime.artifact import Artifact
from moec.runtime.manifest import ProgramEntry
from moec.targets.cuda.device.gpu import best_binary
from moec.targets.cuda.estimates.draws import Draws
from moec.targets.cuda.estimates.gpus import GPU_OF, GPUS, Gpu, Occupancy, gpu_called
from moec.targets.cuda.estimates.host import graph_seconds, host_seconds
from moec.targets.cuda.estimates.sizes import ROWS, SLOTS, TOKENS, ModelSizes
from moec.targets.cuda.hardware.architectures import newest_that_runs

MEMORY, ARITHMETIC = "memory", "arithmetic"


@dataclasses.dataclass(frozen=True)
class LaunchEstimate:
    """One launch of ``function`` of a ``kernel``, as the host makes it at some number of tokens, and how often a run
    makes it.

    ``blocks``: of the grid, which may be larger than what has work; ``registers``: of a thread; ``occupancy``: of a
    multiprocessor; ``waves``: those that the grid takes. ``seconds``: the least time of one call; ``limit``:
    :data:`MEMORY` or :data:`ARITHMETIC`. ``reads``: the weights that it reads, if it computes a product with them.
    """

    kernel: str
    function: str
    calls: int
    blocks: int
    threads: int
    registers: int
    shared_bytes: int
    occupancy: Occupancy
    waves: int
    work: Work
    seconds: float
    limit: str
    reads: WeightReads | None = None


@dataclasses.dataclass(frozen=True)
class LaunchGroup:
    """All launches of a layer of experts, the ``node``, at some number of tokens; or those outside of layers (None)."""

    node: str | None
    tokens: int
    launches: tuple[LaunchEstimate, ...]

    @property
    def seconds(self) -> float:
        return sum(launch.calls * launch.seconds for launch in self.launches)

    @property
    def operations(self) -> int:
        return sum(launch.calls * (launch.work.operations or 0) for launch in self.launches)

    @property
    def launch_count(self) -> int:
        """Launches in one run."""
        return sum(launch.calls for launch in self.launches)


@dataclasses.dataclass(frozen=True)
class RunEstimate:
    """A whole run of ``tokens`` tokens. ``seconds``: the least time on the GPU; ``launches``: those of all kernels,
    also of those without an estimate; ``host_seconds``: in which the host makes them where no captured graph runs;
    ``graph_seconds``: of the GPU in a captured graph."""

    tokens: int
    seconds: float
    launches: int
    host_seconds: float
    graph_seconds: float


@dataclasses.dataclass(frozen=True)
class ModelEstimate:
    """The launches of a model: ``layers`` of experts, and those ``outside`` of them at the same numbers of tokens.
    ``others``: records of the kernels whose sizes are computed at run time. ``fixed_lengths``: nodes and states because
    of which sessions run without captured graphs."""

    gpu: Gpu
    layers: tuple[LaunchGroup, ...]
    outside: tuple[LaunchGroup, ...]
    others: tuple[Mapping[str, Any], ...]
    fixed_lengths: tuple[str, ...] = ()

    @property
    def runs(self) -> Sequence[RunEstimate]:
        """A run at each number of tokens, of all layers and what is outside of them."""
        groups = (*self.layers, *self.outside)
        return [self._run(tokens, groups) for tokens in dict.fromkeys(group.tokens for group in groups)]

    def _run(self, tokens: int, groups: Sequence[LaunchGroup]) -> RunEstimate:
        own = [group for group in groups if group.tokens == tokens]
        launches = sum(group.launch_count for group in own)
        launches += sum(kernel["calls"] * len(kernel["launches"]) for kernel in self.others)
        least = sum(group.seconds for group in own)
        return RunEstimate(tokens, least, launches, host_seconds(launches), graph_seconds(launches, least))


def estimate_launches(
    artifact: Artifact,
    name: str | None,
    tokens: Sequence[int],
    past: int | None = None,
    architecture: str | None = None,
) -> ModelEstimate:
    """Estimate all launches at each number of ``tokens`` that follow ``past`` ones. ``name``: the GPU, by default the
    newest that the artifact is for. ``architecture``: only of the program for it.

    Raises MoecError for an unknown GPU, one that cannot hold a block of a launch, a ``past`` for a model that keeps no
    state, and an artifact without layers of experts or products, or without machine code for the GPU.
    """
    programs = [each for each in artifact.manifest.programs if architecture in (None, each.architecture)]
    code = [program for program in programs if program.binary is not None]
    architectures = [program.architecture for program in code]
    gpu = gpu_called(_best_known(architectures, artifact.where) if name is None else name)
    program = artifact.program(best_binary(architectures, gpu.capability, artifact.where))
    sizes = ModelSizes(artifact, program, past or 0, gpu.multiprocessors)
    if past is not None and not sizes.has_past:
        raise MoecError(f"{artifact.where}: keeps no keys and values between runs on a GPU; leave out --past")
    return _Launches(artifact.where, program, gpu, sizes).at(tokens)


def _best_known(architectures: Sequence[str], where: str) -> str:
    """The name of the GPU of the newest architecture that has one, otherwise of the first GPU that runs any of them.
    Raises MoecError if no known GPU does."""
    if own := [GPU_OF[name] for name in architectures if name in GPU_OF]:
        return own[-1]
    able = [name for name, gpu in GPUS.items() if newest_that_runs(architectures, gpu.capability)]
    if architectures and not able:
        raise MoecError(
            f"{where}: has code for {', '.join(architectures)}; expected code for one of {', '.join(GPUS)}; "
            f"compile it for an older one, too: --target cuda:sm_80+{architectures[-1]}"
        )
    return next(iter(able or GPUS))


class _Launches:
    """The launches of a program on a GPU. Raises ArtifactError for a record that cannot be read."""

    def __init__(self, where: str, program: ProgramEntry, gpu: Gpu, sizes: ModelSizes) -> None:
        self._where, self._gpu, self._roofline, self._sizes = where, gpu, gpu.roofline, sizes
        self._fixed_lengths = tuple(program.fixed_lengths)
        kernels = [kernel for kernel in program.kernels if kernel["launches"] and kernel["calls"]]
        layers = [kernel for kernel in kernels if kernel["op"].startswith("moec.") and TOKENS in kernel["sizes"]]
        # A launch that experts share with a product of another node has the names of both.
        nodes = dict.fromkeys(node for kernel in layers if " + " not in kernel["op"] for node in kernel["nodes"])
        self._layers = {node: [kernel for kernel in kernels if node in kernel["nodes"]] for node in nodes}
        outside = [kernel for kernel in kernels if not nodes.keys() & set(kernel["nodes"])]
        self._outside = [kernel for kernel in outside if self._follow(kernel)]
        self._others = tuple(kernel for kernel in outside if kernel not in self._outside)
        counted = [(kernel, TOKENS) for kernel in layers]
        counted += [(kernel, ROWS) for kernel in self._outside if ROWS in kernel["sizes"]]
        if not counted:
            raise MoecError(
                f"{where}: has no layer of experts and no product with a constant matrix; expected one of them to "
                "estimate launches"
            )
        self._counted = counted[0]
        """A kernel, and the name of its size that is the number of tokens."""

    def at(self, tokens: Sequence[int]) -> ModelEstimate:
        kernel, size = self._counted
        models = {count: self._sizes.at(kernel, size, count, self._named(kernel)) for count in tokens}
        layers = [
            LaunchGroup(node, count, tuple(self._each(kernels, model, in_layer=True)))
            for node, kernels in self._layers.items()
            for count, model in models.items()
        ]
        for layer in layers:
            if not layer.launches:
                raise ArtifactError(f"{self._where}: {layer.node!r} has no launch for {layer.tokens} tokens")
        outside = [
            LaunchGroup(None, count, tuple(self._each(self._outside, model, in_layer=False)))
            for count, model in models.items()
            if self._outside
        ]
        return ModelEstimate(self._gpu, tuple(layers), tuple(outside), self._others, self._fixed_lengths)

    def _named(self, kernel: Mapping[str, Any]) -> str:
        return f"{self._where}: kernel {kernel['name']!r}"

    def _follow(self, kernel: Mapping[str, Any]) -> bool:
        """Whether all sizes that an estimate needs follow from those of the model."""
        texts = [*kernel["sizes"], *(str(size) for parameter in kernel["parameters"] for size in parameter["shape"])]
        for launch in kernel["launches"]:
            texts += [*launch["grid"], *launch["block"], launch["shared_bytes"]]
        return self._sizes.tell(kernel, texts, self._named(kernel))

    def _each(
        self, kernels: Sequence[Mapping[str, Any]], model: Mapping[str, int], *, in_layer: bool
    ) -> Iterator[LaunchEstimate]:
        """The launches that the host makes at these sizes of the model. A layer calls a kernel once."""
        for kernel in kernels:
            where = self._named(kernel)
            sizes, calls = kernel_sizes(kernel, model, where), 1 if in_layer else kernel["calls"]
            try:
                for launch in kernel["launches"]:
                    if not _is_made(launch, sizes, where):
                        continue
                    estimate = self._estimate(kernel, launch, sizes, calls)
                    if estimate.blocks:
                        yield estimate
            except (KeyError, TypeError) as error:
                raise ArtifactError(f"{self._where}: a launch cannot be read: {error!r}") from error

    def _estimate(
        self, kernel: Mapping[str, Any], launch: Mapping[str, Any], sizes: Mapping[str, int], calls: int
    ) -> LaunchEstimate:
        where = self._named(kernel)
        blocks, threads = (
            math.prod(evaluate(extent, sizes, where) for extent in launch[what]) for what in ("grid", "block")
        )
        registers = int(launch["registers"])
        shared_bytes = int(launch["static_shared_bytes"]) + evaluate(launch["shared_bytes"], sizes, where)
        tensor_columns = int(launch.get("tensor_columns", 0))
        occupancy = self._gpu.occupancy(threads, registers, shared_bytes, tensor_columns) if threads else None
        if occupancy is None or not occupancy.blocks:
            raise MoecError(
                f"{where}: a block of {threads} threads with {registers} registers each and {shared_bytes} bytes of "
                f"shared memory does not fit on {self._gpu.name}; choose another GPU"
            )
        waves = -(-blocks // (self._gpu.multiprocessors * occupancy.blocks))
        work, reads = _work_of(kernel, launch, sizes, where)
        seconds, limit = _least_time(work, self._roofline)
        return LaunchEstimate(
            kernel["name"],
            launch["function"],
            calls,
            blocks,
            threads,
            registers,
            shared_bytes,
            occupancy,
            waves,
            work,
            seconds,
            limit,
            reads,
        )


def _is_made(launch: Mapping[str, Any], sizes: Mapping[str, int], where: str) -> bool:
    condition = launch["only_if"]
    if condition is None:
        return True
    size, most = evaluate(condition["size"], sizes, where), condition["sizes"]["most"]
    return size >= condition["sizes"]["least"] and (most is None or size <= most)


def _work_of(
    kernel: Mapping[str, Any], launch: Mapping[str, Any], sizes: Mapping[str, int], where: str
) -> tuple[Work, WeightReads | None]:
    """The work of a launch, and the weights in it: the operations of its kernel, and the bytes of the tensors that it
    is given, some of them by tensor maps."""
    sized = SizedWork() if kernel["sized_work"] is None else SizedWork(**kernel["sized_work"])
    reached = {*launch["arguments"], *(f"{tensor_map['tensor']}_ptr" for tensor_map in launch["tensor_maps"])}
    own = [parameter for parameter in kernel["parameters"] if f"{parameter['name']}_ptr" in reached]
    moved = tensor_bytes(own, sized.moved, sizes, where)
    work = Work(evaluate(sized.operations, sizes, where, LARGEST_WORK), moved, sized.arithmetic)
    reads = sized_reads(kernel, own, sized.moved, sizes, where)
    experts, block_rows = (evaluate(str(size), {}, where) for size in (sized.experts, sized.block_rows))
    if reads is None or not experts:
        return work, reads
    draws = Draws(evaluate(TOKENS, sizes, where), evaluate(SLOTS, sizes, where), experts)
    return _drawn(work, reads, draws, block_rows) if draws.pairs else (work, reads)


def _drawn(work: Work, reads: WeightReads, draws: Draws, block_rows: int) -> tuple[Work, WeightReads]:
    """The work of a product of experts, and the weights in it, where tokens draw experts at random. ``work`` and
    ``reads``: those of an even spread, in which each pair has an expert of its own as long as there are any, and no
    row is padding."""
    used = reads.times(draws.used / min(draws.pairs, draws.experts))
    moved = work.bytes_moved - round(reads.bytes - used.bytes)
    computed = draws.blocks(block_rows) * block_rows if block_rows else draws.pairs
    operations = round((work.operations or 0) * computed / draws.pairs)
    return Work(operations, moved, work.arithmetic), used


def _least_time(work: Work, roofline: Roofline) -> tuple[float, str]:
    moving = roofline.seconds(0, work.bytes_moved, work.arithmetic)
    computing = roofline.seconds(work.operations or 0, 0, work.arithmetic)
    return max((moving, MEMORY), (computing, ARITHMETIC))

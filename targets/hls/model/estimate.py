"""Estimated costs and speed of the design of a whole model on a part, without synthesis.

Layers run one after the other, so their cycles add up. Layers of experts and attention are estimated like blocks, and
linear layers like a second product. Both kernels are on the chip at the same time and share their masters.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from moec.common.errors import UnsupportedError
from moec.targets.hls.attention.cycles import attention_cycles
from moec.targets.hls.attention.quantize import QuantizedAttention
from moec.targets.hls.attention.resources import attention_dsps, attention_luts, attention_memories
from moec.targets.hls.design.attention import AttentionDesign
from moec.targets.hls.design.channels import channels_of
from moec.targets.hls.design.experts import Design, LargeArrays
from moec.targets.hls.design.numbers import BEAT_BYTES, PARAMETER_BYTES, RESULT_BITS
from moec.targets.hls.hardware.arithmetic import dsps_of, logic_luts
from moec.targets.hls.hardware.calibration import UNCORRECTED, Calibration
from moec.targets.hls.hardware.costs import RESOURCE_NAMES, Estimate, Resources
from moec.targets.hls.hardware.cycles import Array, Loader, MemoryPace, count_cycles, in_series, norm_start, pipelines
from moec.targets.hls.hardware.memories import Memory, memories_of
from moec.targets.hls.hardware.parts import FpgaPart
from moec.targets.hls.hardware.ports import MOE_MASTERS, Ports, connect, model_ports
from moec.targets.hls.model import reference
from moec.targets.hls.model.channels import KERNELS
from moec.targets.hls.model.design import ModelDesign, model_design
from moec.targets.hls.model.plan import Layer, ModelPlan, QuantizedLinear
from moec.targets.hls.moe import reference as moe_reference
from moec.targets.hls.moe.exploration import HIDDEN_TILES, Constraints, fullest, routers_of
from moec.targets.hls.moe.quantize import QuantizedBlock

Steps = np.ndarray[Any, Any]

LANES = (32, 16, 8)
_FAST_ENOUGH = 1.05
"""The cycles of a smaller design that may replace the fastest one, as a part of the fastest one's."""
_LAYER_BEATS = 2
Loads = Sequence[Sequence[int]]


@dataclasses.dataclass(frozen=True)
class LayerCycles:
    """The cycles of one layer. ``beats``: that read weights."""

    kind: str
    cycles: int
    beats: int


@dataclasses.dataclass(frozen=True)
class ModelCycles:
    """The cycles of a call, layer by layer."""

    layers: tuple[LayerCycles, ...]

    @property
    def beats(self) -> int:
        return sum(layer.beats for layer in self.layers)

    @property
    def total(self) -> int:
        return sum(layer.cycles for layer in self.layers)

    @property
    def bound_by(self) -> str:
        """The kind of the slowest layer."""
        return max(self.layers, key=lambda layer: layer.cycles).kind


ModelEstimate = Estimate[ModelDesign, ModelCycles]


def loads_of(plan: ModelPlan, steps: Steps) -> Loads:
    """The number of tokens of one image that each expert of each layer gets; empty for layers without experts."""
    return loads_of_calls(plan, steps, [len(steps)])[0]


def loads_of_calls(plan: ModelPlan, steps: Steps, calls: Sequence[int]) -> list[Loads]:
    """The loads of each call, if the tokens of a sequence come in ``calls`` of so many each."""
    by_call: list[list[list[int]]] = [[] for _ in calls]
    bounds, stream = [*itertools.accumulate(calls, initial=0)], steps
    for layer in plan.layers:
        if isinstance(layer, QuantizedBlock):
            results, shape = moe_reference.run(layer, stream), layer.shape
            for of_call, first, count in zip(by_call, bounds, calls, strict=False):
                chosen = results.chosen[first : first + count].reshape(-1)
                counts = map(int, np.bincount(chosen, minlength=shape.experts))
                of_call.append([*counts, *[count] * shape.shared])
            stream = results.output
            continue
        for of_call in by_call:
            of_call.append([])
        if isinstance(layer, QuantizedAttention) or layer is plan.embedding:
            stream = reference.run_layer(layer, stream)
    return [*by_call]


def estimate_model(
    design: ModelDesign,
    plan: ModelPlan,
    loads: Loads,
    part: FpgaPart,
    clock_megahertz: float,
    memory_share: float = 1.0,
    calibration: Calibration = UNCORRECTED,
) -> ModelEstimate:
    """The estimate of a design. ``loads``: as of :func:`loads_of`; ``memory_share``: of the peak bandwidth."""
    attention = None if design.attention is None else design.attention.shape
    ports = connect(
        part, MOE_MASTERS, clock_megahertz, memory_share, model_ports(part.memory, attention, design.experts)
    )
    layers = tuple(
        layer_cycles(design, plan, layer, layer_loads, ports, calibration.stages)
        for layer, layer_loads in zip(plan.layers, loads, strict=True)
    )
    costs = model_dsps(design), model_memories(design), model_luts(design)
    return Estimate.of(design, part, clock_megahertz, ports, ModelCycles(layers), *costs, calibration)


def layer_cycles(
    design: ModelDesign,
    plan: ModelPlan,
    layer: Layer,
    loads: Sequence[int],
    ports: Ports,
    stages: int = 0,
    tokens: int | None = None,
    past: int = 0,
) -> LayerCycles:
    """The cycles of a layer, including reading its record, in a call with ``tokens`` tokens of a decoder after ``past``
    others. By default a call has as many tokens as fit, and a decoder's head takes the last."""
    pace = ports.loaders
    if tokens is None:
        is_last = design.is_decoder and isinstance(layer, QuantizedLinear)
        tokens = design.rows_of_last(plan.tokens) if is_last else plan.tokens
    header = pace.cycles(_LAYER_BEATS, _LAYER_BEATS) + stages
    if isinstance(layer, QuantizedLinear):
        cycles, beats = _linear_cycles(design.of(layer), layer, tokens, pace, stages)
        return LayerCycles("embedding" if layer is plan.embedding else "head", round(header + cycles), beats)
    if isinstance(layer, QuantizedAttention):
        assert design.attention is not None
        attention = attention_cycles(design.attention, tokens, pace, stages, past, layer.window, ports.caches)
        return LayerCycles("attention", round(header + attention.total), attention.beats)
    own = count_cycles(design.of(layer), loads, pace, stages)
    waits = max(0.0, _results_cycles(design.experts, tokens, pace, adds=True) - own.results)
    kind = "experts" if layer.shape.experts else "feed-forward"
    return LayerCycles(kind, round(header + own.total + waits), own.beats)


def _results_cycles(design: Design, rows: int, pace: MemoryPace, *, adds: bool) -> float:
    """Cycles that write results to memory, through the port that also reads the residual that they are added to."""
    beats = rows * design.width * RESULT_BITS / 8 / BEAT_BYTES
    return max(rows * design.output_chunks, (1 + adds) * beats * pace.cycles_per_beat)


def _linear_cycles(
    design: Design, layer: QuantizedLinear, tokens: int, pace: MemoryPace, stages: int
) -> tuple[float, int]:
    """The cycles and the beats of a linear layer. Patches arrive as they are used. Tokens are all normalised before the
    first job of the second product. A tile is computed while the next one arrives."""
    tokens = 1 if layer.pool == "first" else tokens
    per_token, beats = design.hidden_in_chunks * design.output_chunks, design.job_beats_down
    start = _inputs_ready(design, layer, tokens, pace, stages)
    loader, loads_from = Loader(design.fifos.weights, pace, stages), 0.0 if layer.norm is None else start
    # The parameters of results come after the last tile, in the same burst.
    first, *more = [beats] * (design.tiles - 1) + [beats + design.result_beats_down]
    product = Array(loader, design.fifos.items, first, loads_from)
    product.start = max(product.start, start)
    for burst in more:
        product.turn(product.start + tokens * per_token, tokens, per_token, burst)
    if layer.pool == "none":
        results = _results_cycles(design, tokens, pace, adds=layer.positions is not None)
    else:
        results = tokens * design.output_chunks
    total = product.start + tokens * per_token + results
    total += (1 + pipelines(design.shape, "combine", "write_tokens")) * stages
    return total, design.masters_down * (design.tiles * beats + design.result_beats_down)


def _inputs_ready(design: Design, layer: QuantizedLinear, tokens: int, pace: MemoryPace, stages: int) -> float:
    """The time at which the first patches, or all normalised tokens, are at the second product."""
    # Tokens of linear layers pass the router by.
    channels = [channel for channel in channels_of(design) if channel.consumer != "router"]
    if layer.norm is None:
        beats = design.width * PARAMETER_BYTES / BEAT_BYTES
        loops = 1 + in_series(channels, "feed_tokens", "product_down")
        return 2 * pace.latency + beats * pace.cycles_per_beat + loops * stages
    reads = design.width * RESULT_BITS / 8 / BEAT_BYTES * pace.cycles_per_beat
    steps = design.width / design.router_lanes
    start = norm_start(design.width, design.fifos.beats, pace) + tokens * max(steps, reads) + steps
    return start + in_series(channels, "read_inputs", "product_down") * stages


def model_dsps(design: ModelDesign) -> dict[str, int]:
    """DSPs by process of both kernels. Names of processes are those in channels: they begin with the kernel's."""
    attention = {} if design.attention is None else attention_dsps(design.attention)
    both = zip(KERNELS, (dsps_of(design.experts), attention), strict=True)
    return {f"{kernel}.{process}": count for kernel, dsps in both for process, count in dsps.items()}


def model_memories(design: ModelDesign) -> list[Memory]:
    """The memories of both kernels, which share their adapters. Processes are named as in :func:`model_dsps`."""
    attention = [] if design.attention is None else attention_memories(design.attention)
    shared = {memory.name for memory in memories_of(design.experts) if memory.name.startswith("adapter ")}
    own = [memory for memory in attention if memory.name not in shared]
    return [
        dataclasses.replace(memory, process=f"{kernel}.{memory.process}")
        for kernel, memories in zip(KERNELS, (memories_of(design.experts), own), strict=True)
        for memory in memories
    ]


def model_luts(design: ModelDesign) -> int:
    """LUTs of both kernels, without those of memories."""
    return logic_luts(design.experts) + (0 if design.attention is None else attention_luts(design.attention))


def choose_model(plan: ModelPlan, loads: Loads, part: FpgaPart, constraints: Constraints) -> ModelEstimate:
    """The design that leaves most of the part free, among those that fit within 5% of the fastest one's cycles.

    Raises UnsupportedError where layers cannot share one design, and where none fits, naming the resources that are
    short.
    """
    limits, clock = constraints.limits(part), constraints.clock(part)
    designs = list(_designs(plan, part, constraints))
    buildable = [design for design in designs if design.why_not() is None]
    if not buildable:
        raise UnsupportedError(f"{plan.name}: no design of the whole model: {designs[-1].why_not()}")
    shares = [(design, _shares(design, limits, constraints.calibration)) for design in buildable]
    fitting = [design for design, share in shares if max(share.values()) <= 1]
    if not fitting:
        least = min((share for _, share in shares), key=lambda share: max(share.values()))
        needed = ", ".join(f"{share:.0%} of the {RESOURCE_NAMES[name]}" for name, share in least.items() if share > 1)
        raise UnsupportedError(
            f"{plan.name}: no design of the whole model fits {part.board}: the smallest needs {needed} that it may have"
        )
    costed = [
        estimate_model(design, plan, loads, part, clock, constraints.memory_share, constraints.calibration)
        for design in fitting
    ]
    fastest = min(candidate.cycles.total for candidate in costed)
    fast = [candidate for candidate in costed if candidate.cycles.total <= fastest * _FAST_ENOUGH]
    return min(fast, key=lambda candidate: (fullest(candidate.resources, part), candidate.cycles.total))


def _shares(design: ModelDesign, limits: Resources, calibration: Calibration) -> dict[str, float]:
    """The ratio of the resources that a design needs to its limits, by resource."""
    resources = Resources.of(model_dsps(design), model_memories(design), model_luts(design)).corrected(calibration)
    return {name: getattr(resources, name) / max(getattr(limits, name), 1) for name in RESOURCE_NAMES}


def _designs(plan: ModelPlan, part: FpgaPart, constraints: Constraints) -> Iterator[ModelDesign]:
    """The designs of the grid, from large to small. Kernels may have different lanes if they pad tokens to the same
    width."""
    storages: tuple[LargeArrays, ...] = ("bram", "uram") if constraints.use_uram and part.uram else ("bram",)
    base = model_design(plan, LANES[0], LANES[0], 1)
    grid = itertools.product(LANES, LANES, HIDDEN_TILES[::-1], routers_of(base.experts.shape)[::-1], storages)
    for lanes, attention_lanes, tile, (router_lanes, at_once), storage in grid:
        if not router_lanes <= lanes <= tile:
            continue
        experts = dataclasses.replace(
            base.experts,
            lanes_in=lanes,
            lanes_out=lanes,
            hidden_tile=tile,
            router_lanes=router_lanes,
            large_arrays=storage,
            router_experts=at_once,
        )
        if base.attention is None:
            attention = None
        else:
            attention = AttentionDesign(base.attention.shape, attention_lanes, attention_lanes)
            if attention.width != experts.width:
                continue
        yield ModelDesign(experts, attention, base.layers, base.patch_width)

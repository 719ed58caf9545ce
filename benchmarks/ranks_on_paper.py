"""Predicted times of published models on H100 GPUs, beside figures that others published.

    python benchmarks/ranks_on_paper.py

All times are those of ``moec.predicting`` from published sizes and limits; none was measured by moec. Routing is even
unless a table says otherwise. Attention is that of decoding after ``context`` tokens, or of whole prompts.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from results import print_rows

from moec.common.roofline import Roofline
from moec.common.work import GroupedWork
from moec.placing.place import place
from moec.placing.placement import ExpertPlacement, linear
from moec.placing.volume import RowBytes
from moec.predicting.layers import Experts, Schedule
from moec.predicting.links import Link, Links
from moec.predicting.workload import DenseTimes, Prediction, RoutedLayer, Setup, Workload, predict
from moec.targets.cuda.estimates.gpus import GPUS
from moec.targets.gpu.constants import FP8

H100 = GPUS["h100"].roofline
NVLINK, INFINIBAND = Link(450e9, 2e-6), Link(50e9, 5e-6)
"""NVLink 4 (half of 900 GB/s) and one ConnectX-7 of 400 Gbit/s for each GPU; latencies are assumed."""
H800_NVLINK = Link(160e9, 2e-6)
"""Bandwidth as DeepEP states it."""
SAMPLED = 3
"""Layers that are simulated; all others take as long."""
SCALED = 128
"""Numbers of a row in FP8 that share a scale of 4 bytes."""


@dataclasses.dataclass(frozen=True)
class Model:
    """Sizes of a model with experts in FP8. ``attention``: weights of its products in a layer; ``pair_operations`` of
    a token with one earlier token, in decoding and in a prompt; ``cached``: bytes of a token's keys and values in a
    layer; ``shared``: hidden units of the shared expert."""

    name: str
    layers: int
    d: int
    hidden: int
    experts: int
    k: int
    attention: int
    pair_operations: tuple[int, int]
    cached: int
    shared: int = 0
    groups: int = 1
    kept: int = 1

    @property
    def row(self) -> RowBytes:
        """A row in FP8 with scales and ids on its way out, in bfloat16 on its way back."""
        return RowBytes(self.d + self.d // SCALED * 4 + self.k * 4, 2 * self.d)

    def dense(self, tokens: int, context: int, prompt: bool, roofline: Roofline) -> DenseTimes:
        """Compute the times of attention and of the shared expert in all layers."""
        seconds = roofline.seconds(2 * tokens * self.attention, self.attention, FP8)
        seen = context / 2 if prompt else context
        read = tokens * self.cached * (1 if prompt else context)
        seconds += roofline.seconds(tokens * seen * self.pair_operations[prompt], read, "bfloat16")
        weights = 3 * self.d * self.shared
        shared = roofline.seconds(2 * tokens * weights, weights, FP8)
        return DenseTimes(SAMPLED * seconds, (shared,) * SAMPLED)

    def workload(self, context: int, prompt: bool, skew: float = 0.0) -> Workload:
        """Make the workload. ``skew``: exponent of the Zipf distribution of experts, in an order of each layer."""
        products = (
            GroupedWork(self.d, 2 * self.hidden, 1, FP8, (8.0,)),
            GroupedWork(self.hidden, self.d, 1, FP8, (8.0,)),
        )
        ranked = 1 / np.arange(1, self.experts + 1) ** skew
        layers = tuple(
            RoutedLayer(
                Experts(f"layers.{layer}", products, self.row, value_bytes=1),
                self.k,
                np.random.default_rng(layer).permutation(ranked),
                self.groups,
                self.kept,
            )
            for layer in range(SAMPLED)
        )
        return Workload(layers, lambda tokens: self.dense(tokens, context, prompt, H100))


DEEPSEEK = Model(
    "DeepSeek-V3",
    layers=58,
    d=7168,
    hidden=2048,
    experts=256,
    k=8,
    attention=7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168,
    pair_operations=(2 * 128 * (576 + 512), 2 * 128 * (192 + 128)),
    cached=576 * 2,
    shared=2048,
    groups=8,
    kept=4,
)
QWEN = Model(
    "Qwen3-235B-A22B",
    layers=94,
    d=4096,
    hidden=1536,
    experts=128,
    k=8,
    attention=2 * 4096 * 64 * 128 + 2 * 4096 * 4 * 128,
    pair_operations=(2 * 64 * 256, 2 * 64 * 256),
    cached=2 * 4 * 128 * 2,
)


def setup_of(model: Model, ranks: int, nodes: int, tokens: int, replicas: int = 0, **fields: bool) -> Setup:
    """Make a setup on H100 with experts in order, or spread evenly with replicas."""
    loads, names = [np.ones(model.experts)] * SAMPLED, [f"layers.{layer}" for layer in range(SAMPLED)]
    if replicas:
        placement = place(loads, ranks, nodes, replicas, method="eplb", names=names)
    else:
        placement = ExpertPlacement(ranks, tuple(linear(name, model.experts, ranks) for name in names), nodes)
    return Setup(H100, Links(NVLINK, INFINIBAND, nodes), placement, tokens, Schedule("alltoall"), **fields)


def runs() -> None:
    """Print whole runs on 8 and 64 GPUs, and on those of SGLang's deployment."""
    cases = [
        (DEEPSEEK, 8, 1, 128, 2000, False, 0, ""),
        (DEEPSEEK, 64, 8, 128, 2000, False, 0, ""),
        (DEEPSEEK, 72, 9, 256, 2000, False, 32, "22,300 (SGLang, 72 GPUs of 96)"),
        (DEEPSEEK, 8, 1, 8192, 2000, True, 0, ""),
        (DEEPSEEK, 64, 8, 8192, 2000, True, 0, ""),
        (DEEPSEEK, 32, 4, 8192, 2000, True, 0, "52,300 (SGLang, 32 GPUs)"),
        (QWEN, 8, 1, 128, 2000, False, 0, ""),
        (QWEN, 64, 8, 128, 2000, False, 0, ""),
        (QWEN, 8, 1, 8192, 2000, True, 0, ""),
        (QWEN, 64, 8, 8192, 2000, True, 0, ""),
    ]
    rows = []
    for model, ranks, nodes, tokens, context, prompt, replicas, published in cases:
        workload = model.workload(context, prompt)
        whole, halves = (
            predict(workload, setup_of(model, ranks, nodes, tokens, replicas, halves=halves))
            for halves in (False, True)
        )
        scale = SAMPLED / model.layers * 8 / ranks
        rows.append(
            {
                "model": model.name,
                "GPUs": ranks,
                "run": f"{'prompts of' if prompt else 'step after'} {context:,}",
                "tokens of a GPU": f"{tokens:,}",
                **_layer(whole),
                "communication": f"{whole.exposed:.0%}",
                "tokens/s of 8 GPUs": f"{scale / whole.seconds_per_token:,.0f}",
                "in two halves": f"{scale / halves.seconds_per_token:,.0f}",
                "published": published,
            }
        )
    print_rows(rows)


def _layer(predicted: Prediction) -> dict[str, str]:
    """Show the mean of all layers."""
    steps = {"µs of a layer": "seconds", "send": "out", "experts": "experts", "return": "back"}
    return {
        name: f"{1e6 * float(np.mean([getattr(layer, field) for layer in predicted.layers])):.0f}"
        for name, field in steps.items()
    }


def kernels() -> None:
    """Print the exchanges of one layer beside those that DeepEP measured with its low-latency kernels."""
    published = {8: (77, 114), 16: (118, 195), 32: (155, 273), 64: (173, 314), 128: (192, 369), 256: (194, 360)}
    free = dataclasses.replace(DEEPSEEK, groups=1, kept=1)
    rows = []
    for ranks, (dispatch, combine) in published.items():
        setup = setup_of(free, ranks, ranks // 8, 128)
        links = Links(H800_NVLINK, INFINIBAND, ranks // 8)
        layer = predict(free.workload(0, False), dataclasses.replace(setup, links=links)).layers[0]
        rows.append(
            {
                "GPUs": ranks,
                "dispatch, predicted µs": f"{layer.out * 1e6:.0f}",
                "measured by DeepEP": dispatch,
                "of it": f"{layer.out * 1e6 / dispatch:.0%}",
                "combine, predicted µs": f"{layer.back * 1e6:.0f}",
                "measured": combine,
                "of that": f"{layer.back * 1e6 / combine:.0%}",
            }
        )
    print_rows(rows)


def balance() -> None:
    """Print what EPLB's placement saves with skewed routing."""
    rows = []
    for title, ranks, nodes, tokens, prompt, published in (
        ("prompts of 2,000", 32, 4, 8192, True, "1.49 (SGLang)"),
        ("step after 2,000", 72, 9, 256, False, "2.54 (SGLang)"),
    ):
        for skew in (0.3, 0.6):
            model = dataclasses.replace(DEEPSEEK, groups=1, kept=1)
            workload = model.workload(2000, prompt, skew)
            before = setup_of(model, ranks, nodes, tokens)
            loads, names = zip(*((layer.popularity, layer.experts.name) for layer in workload.layers), strict=True)
            placed = place(loads, ranks, nodes, 32, method="eplb", names=names)
            linearly, balanced = (
                predict(workload, dataclasses.replace(before, placement=each)) for each in (before.placement, placed)
            )
            rows.append(
                {
                    "run": title,
                    "GPUs": ranks,
                    "Zipf": skew,
                    "most rows, linear": f"{_imbalance(linearly):.2f}",
                    "EPLB, 32 replicas": f"{_imbalance(balanced):.2f}",
                    "predicted speed-up": f"{linearly.seconds / balanced.seconds:.2f}",
                    "published": published,
                }
            )
    print_rows(rows)


def _imbalance(predicted: Prediction) -> float:
    return float(np.mean([layer.imbalance for layer in predicted.layers]))


def main() -> None:
    for part in (runs, kernels, balance):
        part()
        print()


if __name__ == "__main__":
    main()

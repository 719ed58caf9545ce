"""The layers of the benchmark: sizes, weights, the inputs of every repetition, and reference results."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from moec.passes.pipeline import LEVELS

DISTINCT_EXPERTS = 5
"""Number of experts with numbers of their own; the others repeat them, each in memory of its own, so that making a
layer takes seconds. A power of two would hide that an expert was mistaken for another."""
PASSES = LEVELS["O2"].replace("merge-equal-experts,", "")
"""moec's default pipeline without the pass that would find these repetitions and store each expert once."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """Width of a token, hidden units of an expert, experts, and experts per token. Gated experts use SwiGLU, others
    ReLU."""

    name: str
    width: int
    hidden: int
    experts: int
    chosen: int
    gated: bool = True

    @property
    def weights_per_expert(self) -> int:
        return (3 if self.gated else 2) * self.width * self.hidden

    def operations(self, tokens: int) -> int:
        """Count the operations; a multiply-add counts as two."""
        return 2 * tokens * self.chosen * self.weights_per_expert

    def __str__(self) -> str:
        kind = "SwiGLU" if self.gated else "ReLU"
        return f"{self.name} (d {self.width}, f {self.hidden}, E {self.experts}, k {self.chosen}, {kind})"


LAYERS = {
    layer.name: layer
    for layer in (
        Layer("granite", 1024, 512, 32, 8),
        Layer("olmoe", 2048, 1024, 64, 8),
        Layer("qwen3", 2048, 768, 128, 8),
        Layer("mixtral", 2048, 7168, 8, 2),
        Layer("gpt-oss", 2880, 2880, 32, 4),
        Layer("switch", 768, 3072, 8, 1, gated=False),
    )
}
"""Layers by the names of models with experts of such sizes."""


class Weights:
    """The weights of a layer in float32, in files that the processes of all contestants map into memory.

    ``projection("up")[i]`` is [out, in]; expert e has the numbers of ``i = e % DISTINCT_EXPERTS``.
    """

    def __init__(self, layer: Layer, folder: pathlib.Path) -> None:
        self.layer, self.folder = layer, folder

    @property
    def projections(self) -> tuple[str, ...]:
        return ("gate", "up", "down") if self.layer.gated else ("up", "down")

    def make(self) -> None:
        """Write the files."""
        random = np.random.default_rng(0)
        distinct = min(DISTINCT_EXPERTS, self.layer.experts)
        for name in self.projections:
            shape = self._shape(name)
            numbers = random.standard_normal((distinct, *shape), dtype=np.float32) / np.float32(np.sqrt(shape[1]))
            np.save(self._path(name), numbers)

    def projection(self, name: str) -> np.ndarray:
        """Map the distinct experts of one projection, [distinct, out, in]."""
        return np.load(self._path(name), mmap_mode="r")

    def for_all_experts(self, distinct: np.ndarray) -> np.ndarray:
        """Repeat an array over distinct experts, [distinct, ...], for all experts, [E, ...]."""
        return distinct[np.arange(self.layer.experts) % len(distinct)]

    def _shape(self, name: str) -> tuple[int, int]:
        d, f = self.layer.width, self.layer.hidden
        return (d, f) if name == "down" else (f, d)

    def _path(self, name: str) -> pathlib.Path:
        return self.folder / f"{name}.npy"


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs of one repetition: tokens [T, d] and router logits [T, E]."""

    x: np.ndarray
    logits: np.ndarray


def make_cases(layer: Layer, tokens: int, most: int) -> list[Case]:
    """Make cases with equally many tokens for equally many experts, but different experts.

    With one token, neighbouring cases share no expert as long as there are enough, so that cached weights of one case
    do not help the next.
    """
    random = np.random.default_rng(tokens)
    base = random.standard_normal((tokens, layer.experts), dtype=np.float32)
    if tokens == 1:
        base = -np.sort(-base)
    names = random.permutation(layer.experts)
    count = min(most, max(2, layer.experts // layer.chosen))
    x = random.standard_normal((count, tokens, layer.width), dtype=np.float32)
    shifted = (np.roll(base, index * layer.chosen, axis=1) for index in range(count))
    return [Case(x[index], np.ascontiguousarray(logits[:, names])) for index, logits in enumerate(shifted)]


def chosen_experts(layer: Layer, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Route: ids and weights [T, k], softmax over the k largest logits."""
    ids = np.argsort(-logits, axis=1, kind="stable")[:, : layer.chosen]
    scores = np.exp(np.take_along_axis(logits, ids, axis=1) - logits.max(axis=1, keepdims=True))
    return ids, scores / scores.sum(axis=1, keepdims=True)


def active_experts(layer: Layer, case: Case) -> int:
    """Count the experts that have a token."""
    return len(np.unique(chosen_experts(layer, case.logits)[0]))


def reference(weights: Weights, case: Case, tokens: int) -> np.ndarray:
    """Compute the results of the first ``tokens`` tokens in float32."""
    layer, numbers = weights.layer, {name: weights.projection(name) for name in weights.projections}
    ids, scores = chosen_experts(layer, case.logits[:tokens])
    y = np.zeros((len(ids), layer.width), np.float32)
    for token, slot in np.ndindex(*ids.shape):
        expert = ids[token, slot] % len(numbers["up"])
        up = numbers["up"][expert] @ case.x[token]
        hidden = _swish(numbers["gate"][expert] @ case.x[token]) * up if layer.gated else np.maximum(up, 0)
        y[token] += scores[token, slot] * (numbers["down"][expert] @ hidden)
    return y


def _swish(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))

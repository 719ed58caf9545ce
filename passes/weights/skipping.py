"""Fewer experts per token: the ways in which a router can drop pairs, and their effect on the outputs, by a profile."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from moec.common.errors import MoecError
from moec.ir.dialect import RouteSpec
from moec.passes.weights.calibration import profile_reading
from moec.passes.weights.expert_set import ExpertSet
from moec.profiles.keys import key_of
from moec.profiles.measures import ExpertsMeasures

Array = np.ndarray[Any, Any]
Method = Literal["ratio", "k", "both"]
_STEPS = 64
"""Denominator of the thresholds that are tried: float32 holds its fractions exactly."""


@dataclasses.dataclass(frozen=True)
class SkipRule:
    """A way in which a router drops pairs: the fields of :class:`RouteSpec` for it, and its effect on the tokens of the
    sample: the remaining ``calls``, and the ``error``, which is the sum of the squared norms of dropped
    contributions."""

    k: int
    relative_threshold: float
    calls: int
    error: float


@dataclasses.dataclass(frozen=True)
class Sample:
    """Some tokens of a layer. ``gates`` [n,E]: the weights of all experts, 0 for those not selected. ``norms`` [n,E]:
    of their contributions, each the weight times the mean norm of the expert's outputs. ``tokens``: the number of all
    tokens."""

    gates: Array
    norms: Array
    tokens: int

    @staticmethod
    def of(measures: ExpertsMeasures, where: str) -> Sample:
        """The sample in a profile. Raises MoecError, with ``where``, for a profile that lacks arrays or is damaged."""
        with profile_reading(where):
            gates = measures.array("sample_gates")
            measured, norm = measures.measured, measures.array("output_norm")
            if gates.ndim != 2 or not gates.shape[1:] == measured.shape == norm.shape == (measures.experts,):
                raise ValueError(f"sample_gates have the shape {gates.shape}")
            mean = np.divide(norm, measured, out=np.zeros(measures.experts), where=measured > 0)
            return Sample(gates, np.abs(gates) * mean, measures.tokens)

    @property
    def calls(self) -> int:
        return int(np.count_nonzero(self.gates))

    @property
    def energy(self) -> float:
        """The sum of the squared norms of all contributions."""
        return float(np.square(self.norms).sum())

    @property
    def weight(self) -> float:
        """Number of tokens that one of the sample stands for."""
        return self.tokens / len(self.gates) if len(self.gates) else 0.0

    def without(self, k: int, threshold: float, dropped: Array) -> SkipRule:
        """The way that drops the pairs [n,E] of ``dropped``."""
        gone = dropped & (self.gates != 0)
        return SkipRule(k, threshold, self.calls - int(gone.sum()), float(np.square(self.norms[gone]).sum()))


def skip_rules_of(spec: RouteSpec, sample: Sample, method: Method, lowest: int) -> list[SkipRule]:
    """Rules that drop pairs and leave every token ``lowest`` experts, or so many on average with a threshold. The first
    rule drops none."""
    chosen = (sample.gates != 0).sum(axis=1)
    least = int(np.minimum(chosen, lowest).sum())
    nothing = sample.without(spec.k, 0.0, np.zeros(sample.gates.shape, bool))
    rules = [*(_lower(spec, sample, lowest) if method != "ratio" else ())]
    rules += _thresholds(spec, sample) if method != "k" else ()
    return [nothing, *(rule for rule in rules if rule.calls >= least)]


def _lower(spec: RouteSpec, sample: Sample, lowest: int) -> Iterator[SkipRule]:
    """Rules with fewer experts per token. Weights are in the order of the selection, since that has no bias."""
    in_order = np.where(sample.gates != 0, sample.gates, -np.inf)
    rank = np.argsort(np.argsort(-in_order, axis=1, kind="stable"), axis=1)
    return (sample.without(k, 0.0, rank >= k) for k in reversed(range(lowest, spec.k)))


def _thresholds(spec: RouteSpec, sample: Sample) -> Iterator[SkipRule]:
    magnitudes = np.abs(sample.gates)
    largest = magnitudes.max(axis=1, keepdims=True, initial=0)
    shares = (step / _STEPS for step in range(1, _STEPS + 1))
    return (sample.without(spec.k, share, magnitudes < np.float32(share) * largest) for share in shares)


def why_not(experts: ExpertSet, method: Method, lowest: int) -> str | None:
    """The reason why a layer stays as it is; None if some of its pairs may be dropped."""
    spec = experts.routing
    if experts.table is not None:
        return "its experts share weights; this pass comes before merge-equal-experts and fold-trivial-experts"
    if experts.identity:
        return "the profile says nothing of its identity experts"
    if spec.selection != "topk":
        return f"its selection is {spec.selection}, not topk"
    if spec.capacity > 0:
        return f"with its capacity of {spec.capacity}, pairs that are dropped make room for others"
    if spec.relative_threshold > 0:
        return f"it has a relative_threshold of {spec.relative_threshold:g} already"
    if spec.k <= lowest:
        return f"it has {spec.k} experts per token, and lowest is {lowest}"
    if method == "k" and experts.correction_bias is not None:
        return "its choice has a bias, and a profile knows weights alone; try method=ratio"
    return None


def check_measured(experts: ExpertSet, measures: ExpertsMeasures, where: str) -> None:
    """Raises MoecError if the layer's tokens went to other experts when the profile was made."""
    k, problem = experts.routing.k, None
    if measures.k != k:
        problem = f"it was measured with {measures.k} experts per token, but has {k}"
    elif measures.key != key_of(experts.node):
        problem = "experts were removed since it was measured, and tokens go to others in their place"
    if problem is not None:
        raise MoecError(
            f"{where}: {problem}; profile the model after the passes before this one (moec profile --passes)"
        )

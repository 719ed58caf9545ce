"""Routers, all with the same experts, which compute every token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .module import D, E, K, OfModules, all_outputs, dense_weights, formulation, loop


class _Routed(OfModules):
    def mixture(self, x: Tensor) -> Tensor:
        """Weights [T,E]."""
        return dense_weights(*self.route(x))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ted,te->td", all_outputs(x, self.experts), self.mixture(x))


@formulation
class RawSoftmax(_Routed):
    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = torch.topk(self.router(x).softmax(dim=-1), K)
        return weights, ids


@formulation
class SoftmaxOfTheChosen(_Routed):
    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, ids = torch.topk(self.router(x), K)
        return logits.softmax(dim=-1), ids


@formulation
class NormalisedWithEpsilon(_Routed):
    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = torch.topk(self.router(x).sigmoid(), K)
        return weights / (weights.sum(dim=-1, keepdim=True) + 1e-20), ids


@formulation
class NormalisedByL1(_Routed):
    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = torch.topk(self.router(x).softmax(dim=-1), K)
        return functional.normalize(weights, p=1.0, dim=-1), ids


@formulation
class KeepTopKWithMinusInfinity(_Routed):
    """Shazeer's: logits that are not selected become -inf before softmax."""

    def mixture(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        top, ids = torch.topk(logits, K)
        return torch.full_like(logits, float("-inf")).scatter(1, ids, top).softmax(dim=-1)


@formulation
class KeepAboveTheKthLogit(_Routed):
    """Logits below the k-th largest are masked."""

    def mixture(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        least = torch.topk(logits, K).values[:, -1:]
        return logits.masked_fill(logits < least, float("-inf")).softmax(dim=-1)


@formulation
class NoisyTopKInEvaluation(_Routed):
    def more(self) -> None:
        self.noise = nn.Linear(D, E, bias=False)

    def mixture(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        if self.training:
            logits = logits + torch.randn_like(logits) * functional.softplus(self.noise(x))
        top, ids = torch.topk(logits, K)
        return torch.zeros_like(logits).scatter(1, ids, top.softmax(dim=-1))


@formulation
class SigmoidWithBiasThatSelects(_Routed):
    """DeepSeek-V3 without groups."""

    def more(self) -> None:
        self.bias = nn.Parameter(torch.randn(E) / 5)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.router(x).sigmoid()
        ids = torch.topk(scores + self.bias, K).indices
        weights = scores.gather(1, ids)
        return weights / (weights.sum(dim=-1, keepdim=True) + 1e-20) * 2.5, ids


@formulation
class GroupsOfExperts(_Routed):
    """DeepSeek-V3 with groups."""

    def more(self) -> None:
        self.bias = nn.Parameter(torch.randn(E) / 5)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.router(x).sigmoid()
        choice = scores + self.bias
        best = choice.view(-1, 2, E // 2).topk(2, dim=-1).values.sum(dim=-1)
        group = best.topk(1, dim=-1).indices
        mask = torch.zeros_like(best).scatter(1, group, 1.0)
        wide = mask.unsqueeze(-1).expand(-1, 2, E // 2).reshape(-1, E)
        ids = choice.masked_fill(wide == 0, float("-inf")).topk(K, dim=-1).indices
        weights = scores.gather(1, ids)
        return weights / (weights.sum(dim=-1, keepdim=True) + 1e-20), ids


@formulation
class SparseMixer(_Routed):
    """PhiMoE."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, weights, ids = self.router(x), [], []
        remaining = logits
        for _ in range(2):
            largest, chosen = remaining.max(dim=-1, keepdim=True)
            factor = torch.maximum(logits.abs(), largest.abs())
            mask = (largest - logits) / factor > 0.02
            gates = remaining.masked_fill(mask, float("-inf")).softmax(dim=-1)
            weights.append(gates.gather(1, chosen))
            ids.append(chosen)
            remaining = remaining.scatter(1, chosen, float("-inf"))
        return torch.cat(weights, dim=1), torch.cat(ids, dim=1)


@formulation
class ReluRouter(_Routed):
    """ReMoE: as many experts as have a positive logit."""

    def mixture(self, x: Tensor) -> Tensor:
        return self.router(x).relu()


@formulation
class Threshold(_Routed):
    """Every expert of a probability above 0.3."""

    def mixture(self, x: Tensor) -> Tensor:
        scores = self.router(x).softmax(dim=-1)
        return scores * (scores > 0.3)


@formulation
class TopP(_Routed):
    def mixture(self, x: Tensor) -> Tensor:
        scores = self.router(x).softmax(dim=-1)
        ordered, ids = torch.sort(scores, dim=-1, descending=True)
        kept = ordered * ((ordered.cumsum(dim=-1) - ordered) < 0.6)
        return torch.zeros_like(scores).scatter(1, ids, kept / kept.sum(dim=-1, keepdim=True))


@formulation
class SwitchTop1(_Routed):
    def mixture(self, x: Tensor) -> Tensor:
        scores = self.router(x).softmax(dim=-1)
        largest, chosen = scores.max(dim=-1)
        return functional.one_hot(chosen, E) * largest.unsqueeze(-1)


@formulation
class StraightThrough(_Routed):
    """A hard selection with soft gradients, which evaluation still contains."""

    def mixture(self, x: Tensor) -> Tensor:
        soft = self.router(x).softmax(dim=-1)
        hard = functional.one_hot(soft.argmax(dim=-1), E).to(soft.dtype)
        return hard - soft.detach() + soft


@formulation
class EqualWeights(_Routed):
    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        ids = torch.topk(self.router(x), K).indices
        return torch.full_like(ids, 1, dtype=x.dtype) / K, ids


@formulation
class HashOfTokens(_Routed):
    tokens = True

    def more(self) -> None:
        self.register_buffer("table", torch.randint(0, E, (32,)))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        chosen = self.table[tokens]
        mixture = functional.one_hot(chosen, E).to(x.dtype)
        return torch.einsum("ted,te->td", all_outputs(x, self.experts), mixture)


@formulation
class CosineRouter(_Routed):
    def more(self) -> None:
        self.directions = nn.Parameter(torch.randn(E, D))

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = functional.normalize(x, dim=-1) @ functional.normalize(self.directions, dim=-1).T / 0.1
        weights, ids = torch.topk(logits.softmax(dim=-1), K)
        return weights, ids


@formulation
class TwoLayerRouter(_Routed):
    def more(self) -> None:
        self.first = nn.Linear(D, D)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().route(torch.tanh(self.first(x)))


@formulation
class TemperatureAndBias(_Routed):
    def more(self) -> None:
        self.biased = nn.Linear(D, E)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = torch.topk((self.biased(x) / 0.7).softmax(dim=-1), K)
        return weights, ids


@formulation
class ScaleForEachExpert(_Routed):
    """Gemma 4."""

    def more(self) -> None:
        self.scale = nn.Parameter(torch.rand(E) + 0.5)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = super().route(x)
        return weights * self.scale[ids], ids


@formulation
class SoftMixture(_Routed):
    """All experts, weighted by softmax."""

    def mixture(self, x: Tensor) -> Tensor:
        return self.router(x).softmax(dim=-1)


@formulation
class ProductOfTwoRouters(_Routed):
    """Hierarchical: a group by one router, an expert of it by another."""

    def more(self) -> None:
        self.groups, self.within = nn.Linear(D, 2), nn.Linear(D, E)

    def mixture(self, x: Tensor) -> Tensor:
        outer = self.groups(x).softmax(dim=-1)
        best, group = outer.max(dim=-1, keepdim=True)
        inner = self.within(x).view(-1, 2, E // 2).softmax(dim=-1)
        mask = functional.one_hot(group.squeeze(-1), 2).to(x.dtype).unsqueeze(-1)
        return (inner * mask).reshape(-1, E) * best


@formulation
class LoopWithSigmoidScores(_Routed):
    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, ids = torch.topk(self.router(x), K)
        return logits.sigmoid(), ids

    def forward(self, x: Tensor) -> Tensor:
        return loop(x, *self.route(x), self.experts)


@formulation
class SecondRouterForWeights(_Routed):
    """One router selects, another weighs."""

    def more(self) -> None:
        self.weigher = nn.Linear(D, E)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        ids = torch.topk(self.router(x), K).indices
        return self.weigher(x).sigmoid().gather(1, ids), ids

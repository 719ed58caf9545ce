"""Kinds of experts, all with the same router."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .module import (
    D,
    E,
    F,
    K,
    Mixture,
    OfModules,
    SwiGlu,
    all_outputs,
    dense_weights,
    formulation,
    loop,
    several,
    stack,
)


class _Experts(OfModules):
    """Every expert computes every token."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ted,te->td", all_outputs(x, self.experts), dense_weights(*self.route(x)))


@formulation
class GeluWithBiases(_Experts):
    def expert(self) -> nn.Module:
        return nn.Sequential(nn.Linear(D, F), nn.GELU(), nn.Linear(F, D))


@formulation
class TanhGeluGated(_Experts):
    def expert(self) -> nn.Module:
        class Gated(SwiGlu):
            def forward(self, x: Tensor) -> Tensor:
                return self.down(functional.gelu(self.gate(x), approximate="tanh") * self.up(x))

        return Gated()


@formulation
class SquaredRelu(_Experts):
    def expert(self) -> nn.Module:
        class Squared(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.up, self.down = nn.Linear(D, F), nn.Linear(F, D)

            def forward(self, x: Tensor) -> Tensor:
                return self.down(functional.relu(self.up(x)) ** 2)

        return Squared()


@formulation
class ClampedSwiGlu(_Experts):
    """gpt-oss."""

    def expert(self) -> nn.Module:
        class Clamped(SwiGlu):
            def forward(self, x: Tensor) -> Tensor:
                gate = self.gate(x).clamp(max=7.0)
                up = self.up(x).clamp(-7.0, 7.0)
                return self.down((up + 1) * gate * torch.sigmoid(1.702 * gate))

        return Clamped()


@formulation
class MishActivation(_Experts):
    def expert(self) -> nn.Module:
        return nn.Sequential(nn.Linear(D, F), nn.Mish(), nn.Linear(F, D))


@formulation
class ThreeLayers(_Experts):
    def expert(self) -> nn.Module:
        return nn.Sequential(nn.Linear(D, F), nn.ReLU(), nn.Linear(F, F), nn.ReLU(), nn.Linear(F, D))


@formulation
class OneLinear(_Experts):
    def expert(self) -> nn.Module:
        return nn.Linear(D, D)


@formulation
class NormInsideOfExperts(_Experts):
    def expert(self) -> nn.Module:
        return nn.Sequential(nn.Linear(D, F), nn.LayerNorm(F), nn.GELU(), nn.Linear(F, D))


@formulation
class NormInFrontOfEachExpert(_Experts):
    """Each with a scale of its own, which its weights could take in."""

    def expert(self) -> nn.Module:
        return nn.Sequential(nn.LayerNorm(D), nn.Linear(D, F), nn.GELU(), nn.Linear(F, D))


@formulation
class ResidualInsideOfExperts(_Experts):
    """An expert adds its input, which weights of another width could say."""

    def expert(self) -> nn.Module:
        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.up, self.down = nn.Linear(D, F), nn.Linear(F, D)

            def forward(self, x: Tensor) -> Tensor:
                return x + self.down(functional.gelu(self.up(x)))

        return Residual()


@formulation
class ConvolutionalExperts(_Experts):
    """Neighbours of a token enter."""

    fits = "experts that see several tokens"

    def expert(self) -> nn.Module:
        class Convolution(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.up, self.down = nn.Conv1d(D, F, 3, padding=1), nn.Conv1d(F, D, 1)

            def forward(self, x: Tensor) -> Tensor:
                return self.down(functional.relu(self.up(x.T.unsqueeze(0)))).squeeze(0).T

        return Convolution()


@formulation
class ExpertsOfDifferentSizes(Mixture):
    def make(self) -> None:
        self.experts = nn.ModuleList(SwiGlu(D, F + number) for number in range(E))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ted,te->td", all_outputs(x, self.experts), dense_weights(*self.route(x)))


@formulation
class DropoutInEvaluation(_Experts):
    def expert(self) -> nn.Module:
        return nn.Sequential(nn.Linear(D, F), nn.ReLU(), nn.Dropout(0.1), nn.Linear(F, D), nn.Dropout(0.1))


@formulation
class InputTimesWeight(Mixture):
    """Llama 4: experts see the token times its weight."""

    def make(self) -> None:
        self.gate_up, self.down = stack(E, D, 2 * F), stack(E, F, D)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        top, ids = torch.topk(logits, 1)
        scores = torch.full_like(logits, float("-inf")).scatter(1, ids, top).sigmoid().T
        rows = x.repeat(E, 1) * scores.reshape(-1, 1)
        gate, up = torch.bmm(rows.view(E, -1, D), self.gate_up).chunk(2, dim=-1)
        return torch.bmm(up * functional.silu(gate), self.down).sum(dim=0)


@formulation
class LoraExperts(Mixture):
    """A common matrix, and a product of two small ones for each expert."""

    def make(self) -> None:
        self.base = nn.Linear(D, D)
        self.a, self.b = stack(E, 2, D), stack(E, D, 2)

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        low = torch.einsum("td,tkrd->tkr", x, self.a[ids])
        return self.base(x) + torch.einsum("tkr,tkdr,tk->td", low, self.b[ids], weights)


@formulation
class LoraInsideOfAnMlp(Mixture):
    """MixLoRA: weights of an expert are common ones and its own small ones, added on the way."""

    def make(self) -> None:
        self.up, self.down = nn.Linear(D, F), nn.Linear(F, D)
        self.a, self.b = stack(E, 2, D), stack(E, F, 2)

    def forward(self, x: Tensor) -> Tensor:
        mixture, y = dense_weights(*self.route(x)), torch.zeros_like(x)
        for number in range(E):
            hidden = functional.relu(self.up(x) + x @ self.a[number].T @ self.b[number].T)
            y = y + mixture[:, number : number + 1] * self.down(hidden)
        return y


@formulation
class CopyExperts(OfModules):
    """LongCat: the last two experts return the token as it is."""

    count = E - 2

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        y = loop(x, weights, torch.where(ids < E - 2, ids, torch.full_like(ids, E - 3)), self.experts) * 0
        for number, expert in enumerate(self.experts):
            weight = (weights * (ids == number)).sum(dim=-1, keepdim=True)
            y = y + weight * expert(x)
        return y + x * (weights * (ids >= E - 2)).sum(dim=-1, keepdim=True)


@formulation
class ZeroExperts(OfModules):
    """The last expert returns nothing."""

    count = E - 1

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            y = y + (weights * (ids == number)).sum(dim=-1, keepdim=True) * expert(x)
        return y


@formulation
class ConstantExperts(Mixture):
    """MoE++: the last expert returns a learned vector."""

    def make(self) -> None:
        self.experts, self.vector = several(SwiGlu, E - 1), nn.Parameter(torch.randn(D))

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        y = (weights * (ids == E - 1)).sum(dim=-1, keepdim=True) * self.vector
        for number, expert in enumerate(self.experts):
            y = y + (weights * (ids == number)).sum(dim=-1, keepdim=True) * expert(x)
        return y


@formulation
class SharedUpProjection(Mixture):
    """Experts differ in their second matrix alone."""

    def make(self) -> None:
        self.up, self.down = nn.Linear(D, F), stack(E, D, F)

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        return torch.einsum("tf,tkdf,tk->td", functional.gelu(self.up(x)), self.down[ids], weights)


@formulation
class ProductKeys(Mixture):
    """PEER: a million experts of one hidden unit, found by the best of two halves of a key."""

    fits = "no selection by product keys"

    def make(self) -> None:
        self.keys = nn.Parameter(torch.randn(2, E, D // 2))
        self.up, self.down = nn.Embedding(E * E, D), nn.Embedding(E * E, D)

    def forward(self, x: Tensor) -> Tensor:
        halves = [query @ key.T for query, key in zip(x.chunk(2, dim=-1), self.keys, strict=True)]
        (best_first, first), (other, second) = (torch.topk(half, K) for half in halves)
        scores = (best_first.unsqueeze(-1) + other.unsqueeze(-2)).flatten(1)
        places = (first.unsqueeze(-1) * E + second.unsqueeze(-2)).flatten(1)
        best, chosen = torch.topk(scores, K)
        ids = places.gather(1, chosen)
        hidden = functional.gelu(torch.einsum("td,tkd->tk", x, self.up(ids))) * best.softmax(dim=-1)
        return torch.einsum("tk,tkd->td", hidden, self.down(ids))

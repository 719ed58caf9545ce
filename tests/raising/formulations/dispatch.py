"""One router and one kind of experts, in many ways to bring tokens and experts together."""

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
    OfReluModules,
    all_outputs,
    dense_weights,
    formulation,
    loop,
    several,
    stack,
)


@formulation
class LoopWithOneHotMask(OfModules):
    def forward(self, x: Tensor) -> Tensor:
        return loop(x, *self.route(x), self.experts)


@formulation
class LoopWithWhere(OfModules):
    """Mistral's own code."""

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, slot = torch.where(ids == number)
            y[token] += weights[token, slot, None] * expert(x[token])
        return y


@formulation
class LoopWithBooleanSelection(OfReluModules):
    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            hit = ids == number
            chosen = hit.any(dim=-1)
            weight = (weights * hit).sum(dim=-1)
            y[chosen] = y[chosen] + weight[chosen, None] * expert(x[chosen])
        return y


@formulation
class SortAndSplit(OfModules):
    """DeepSeek's moe_infer: pairs are sorted by expert, and split by how many each has."""

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        order = ids.view(-1).argsort()
        counts = functional.one_hot(ids.view(-1), E).sum(dim=0).tolist()
        parts = torch.split(x[order // K], counts)
        results = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        pairs = torch.empty_like(results)
        pairs[order] = results
        return (pairs.view(-1, K, D) * weights[..., None]).sum(dim=1)


class _Stacked(Mixture):
    def make(self) -> None:
        self.gate_up, self.down = stack(E, 2 * F, D), stack(E, D, F)

    def hidden(self, both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=-1)
        return functional.silu(gate) * up


@formulation
class SortedPairsWithGatheredWeights(_Stacked):
    """transformers 5, grouped: pairs in the order of their experts."""

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        pairs = ids.reshape(-1)
        order = torch.argsort(pairs)
        back = torch.argsort(order)
        sorted_ids = pairs[order]
        rows = x[order // K].unsqueeze(-1)
        both = torch.bmm(self.gate_up[sorted_ids], rows).squeeze(-1)
        results = torch.bmm(self.down[sorted_ids], self.hidden(both).unsqueeze(-1)).squeeze(-1)
        return (results[back].view(-1, K, D) * weights[..., None]).sum(dim=1)


@formulation
class GatheredWeightsInABatch(_Stacked):
    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        pairs = ids.reshape(-1)
        rows = x.repeat_interleave(K, dim=0).unsqueeze(-1)
        both = torch.bmm(self.gate_up[pairs], rows).squeeze(-1)
        results = torch.bmm(self.down[pairs], self.hidden(both).unsqueeze(-1)).squeeze(-1)
        return (results.view(-1, K, D) * weights[..., None]).sum(dim=1)


@formulation
class GatheredWeightsInEinsum(_Stacked):
    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        both = torch.einsum("td,tkfd->tkf", x, self.gate_up[ids])
        results = torch.einsum("tkf,tkdf->tkd", self.hidden(both), self.down[ids])
        return torch.einsum("tkd,tk->td", results, weights)


@formulation
class GatheredHalvesOfWeights(_Stacked):
    """Gate and up are split after the gather."""

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        gate, up = self.gate_up[ids].chunk(2, dim=2)
        hidden = functional.silu(torch.einsum("td,tkfd->tkf", x, gate)) * torch.einsum("td,tkfd->tkf", x, up)
        return torch.einsum("tkf,tkdf,tk->td", hidden, self.down[ids], weights)


@formulation
class SlotsInTurn(_Stacked):
    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        y = torch.zeros_like(x)
        for slot in range(K):
            chosen = ids[:, slot]
            both = torch.bmm(self.gate_up[chosen], x.unsqueeze(-1)).squeeze(-1)
            result = torch.bmm(self.down[chosen], self.hidden(both).unsqueeze(-1)).squeeze(-1)
            y = y + weights[:, slot : slot + 1] * result
        return y


@formulation
class WeightsInEmbeddings(Mixture):
    def make(self) -> None:
        self.up, self.down = nn.Embedding(E, F * D), nn.Embedding(E, D * F)

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        up, down = self.up(ids).view(-1, K, F, D), self.down(ids).view(-1, K, D, F)
        hidden = functional.gelu(torch.einsum("td,tkfd->tkf", x, up))
        return torch.einsum("tkf,tkdf,tk->td", hidden, down, weights)


@formulation
class DenseEinsum(_Stacked):
    def forward(self, x: Tensor) -> Tensor:
        both = torch.einsum("td,efd->tef", x, self.gate_up)
        results = torch.einsum("tef,edf->ted", self.hidden(both), self.down)
        return torch.einsum("ted,te->td", results, dense_weights(*self.route(x)))


@formulation
class DenseBatchedProducts(_Stacked):
    """transformers' gpt-oss: x is repeated for every expert."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.repeat(E, 1).view(E, -1, D)
        both = torch.bmm(rows, self.gate_up.transpose(1, 2))
        results = torch.bmm(self.hidden(both), self.down.transpose(1, 2))
        return (results * dense_weights(*self.route(x)).transpose(0, 1).unsqueeze(-1)).sum(dim=0)


@formulation
class DenseUnrolled(OfReluModules):
    def forward(self, x: Tensor) -> Tensor:
        mixture = dense_weights(*self.route(x))
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            y = y + mixture[:, number : number + 1] * expert(x)
        return y


@formulation
class DenseUnrolledWithMasks(OfModules):
    """ONNX-friendly loops: the weight is zero where an expert was not chosen."""

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            weight = torch.where(ids == number, weights, torch.zeros_like(weights)).sum(dim=-1, keepdim=True)
            y = y + torch.where(weight > 0, expert(x) * weight, torch.zeros_like(x))
        return y


@formulation
class OutputsOfAllExpertsGathered(OfModules):
    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        chosen = torch.gather(all_outputs(x, self.experts), 1, ids.unsqueeze(-1).expand(-1, -1, D))
        return (chosen * weights.unsqueeze(-1)).sum(dim=1)


@formulation
class OutputsOfAllExpertsUnderOneHot(OfModules):
    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        mask = functional.one_hot(ids, E).to(x.dtype)
        return torch.einsum("tk,tke,ted->td", weights, mask, all_outputs(x, self.experts))


@formulation
class TwoLargeLinears(Mixture):
    """All experts are one Linear(d, E*f) and one Linear(E*f, d), with a mask between them."""

    def make(self) -> None:
        self.up, self.down = nn.Linear(D, E * F), nn.Linear(E * F, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mixture = dense_weights(*self.route(x))
        hidden = functional.relu(self.up(x)).view(-1, E, F) * mixture.unsqueeze(-1)
        return self.down(hidden.reshape(-1, E * F))


@formulation
class GroupedConvolutions(Mixture):
    """An expert is a group of a convolution over one point."""

    def make(self) -> None:
        self.up = nn.Conv1d(E * D, E * F, 1, groups=E)
        self.down = nn.Conv1d(E * F, E * D, 1, groups=E)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.gelu(self.up(x.repeat(1, E).unsqueeze(-1)))
        results = self.down(hidden).view(-1, E, D)
        return (results * dense_weights(*self.route(x)).unsqueeze(-1)).sum(dim=1)


@formulation
class PointwiseConvolutions(Mixture):
    """Vision models: experts are Conv1d of one point on [1,d,T]."""

    def make(self) -> None:
        self.experts = several(lambda: nn.Sequential(nn.Conv1d(D, F, 1), nn.GELU(), nn.Conv1d(F, D, 1)))

    def forward(self, x: Tensor) -> Tensor:
        mixture = dense_weights(*self.route(x))
        image = x.transpose(0, 1).unsqueeze(0)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            y = y + mixture[:, number : number + 1] * expert(image).squeeze(0).transpose(0, 1)
        return y


@formulation
class MultipliedAndSummed(Mixture):
    """Products by broadcasting."""

    def make(self) -> None:
        self.up, self.down = stack(E, F, D), stack(E, D, F)

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        hidden = functional.relu((self.up[ids] * x[:, None, None, :]).sum(dim=-1))
        results = (self.down[ids] * hidden[:, :, None, :]).sum(dim=-1)
        return (results * weights.unsqueeze(-1)).sum(dim=1)

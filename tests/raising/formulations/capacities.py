"""Mixtures in which the result of a token depends on other tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .module import D, E, F, K, Mixture, formulation, stack


class _Slots(Mixture):
    """Experts compute the places that tokens were given: [E,C,d]."""

    def make(self) -> None:
        self.up, self.down = stack(E, D, F), stack(E, F, D)

    def compute(self, places: Tensor) -> Tensor:
        return torch.bmm(functional.relu(torch.bmm(places, self.up)), self.down)

    def dispatched(self, x: Tensor, weights: Tensor, ids: Tensor, capacity: int) -> Tensor:
        """GShard: first choices of all tokens before second ones, as long as experts have room."""
        used = torch.zeros(1, E)
        combine = torch.zeros(x.shape[0], E, capacity)
        for slot in range(ids.shape[1]):
            mask = functional.one_hot(ids[:, slot], E).to(x.dtype)
            place = (torch.cumsum(mask, dim=0) - 1 + used) * mask
            mask = mask * (place < capacity)
            used = used + mask.sum(dim=0, keepdim=True)
            where = functional.one_hot(place.sum(dim=-1).long().clamp(max=capacity - 1), capacity).to(x.dtype)
            combine = combine + (weights[:, slot : slot + 1] * mask).unsqueeze(-1) * where.unsqueeze(1)
        dispatch = (combine > 0).to(x.dtype)
        results = self.compute(torch.einsum("tec,td->ecd", dispatch, x))
        return torch.einsum("tec,ecd->td", combine, results)


@formulation
class GshardCapacityOfTwo(_Slots):
    def forward(self, x: Tensor) -> Tensor:
        return self.dispatched(x, *self.route(x), 2)


@formulation
class GshardCapacityNeverReached(_Slots):
    def forward(self, x: Tensor) -> Tensor:
        return self.dispatched(x, *self.route(x), 64)


@formulation
class SwitchCapacityOfThree(_Slots):
    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.router(x).softmax(dim=-1).max(dim=-1, keepdim=True)
        return self.dispatched(x, weights, ids, 3)


@formulation
class SwitchCapacityOfEachSequence(_Slots):
    """Mesh TensorFlow: places are counted in every sequence of [B,S,d]."""

    sequences = True

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.router(x).softmax(dim=-1).max(dim=-1)
        mask = functional.one_hot(ids, E).to(x.dtype)
        place = torch.cumsum(mask, dim=1) * mask
        where = place.unsqueeze(-1) == torch.arange(1, 4)
        combine = weights[..., None, None] * where.to(x.dtype)
        places = torch.einsum("bsec,bsd->becd", where.to(x.dtype), x)
        results = torch.einsum("becf,efd->becd", torch.einsum("becd,edf->becf", places, self.up).relu(), self.down)
        return torch.einsum("bsec,becd->bsd", combine, results)


@formulation
class SwitchDroppedTokensInADenseMixture(_Slots):
    """Tokens beyond the capacity get nothing; experts compute all tokens."""

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.router(x).softmax(dim=-1).max(dim=-1)
        mask = functional.one_hot(ids, E)
        kept = mask * (torch.cumsum(mask, dim=0) <= 3)
        results = self.compute(x.unsqueeze(0).expand(E, -1, -1))
        return torch.einsum("te,t,etd->td", kept.to(x.dtype), weights, results)


@formulation
class PrioritisedByWeight(_Slots):
    """V-MoE: the most certain tokens choose first."""

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.router(x).softmax(dim=-1).max(dim=-1)
        order = torch.argsort(weights, descending=True)
        mask = functional.one_hot(ids[order], E)
        sorted_kept = mask * (torch.cumsum(mask, dim=0) <= 2)
        kept = torch.zeros_like(sorted_kept).index_copy(0, order, sorted_kept)
        results = self.compute(x.unsqueeze(0).expand(E, -1, -1))
        return torch.einsum("te,t,etd->td", kept.to(x.dtype), weights, results)


@formulation
class ExpertChoice(_Slots):
    """Every expert takes the tokens that it scores highest."""

    minimum = 2

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x).softmax(dim=-1)
        weights, tokens = torch.topk(scores.T, 2, dim=-1)
        results = self.compute(x[tokens]) * weights.unsqueeze(-1)
        return torch.zeros_like(x).index_add(0, tokens.reshape(-1), results.reshape(-1, D))


@formulation
class SoftSlots(_Slots):
    """Soft-MoE: every slot is a mixture of all tokens."""

    fits = "no slots that mix tokens"

    def make(self) -> None:
        super().make()
        self.slots = nn.Parameter(torch.randn(D, E, 2))

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.einsum("td,dep->tep", x, self.slots)
        dispatch = logits.softmax(dim=0)
        combine = logits.flatten(1).softmax(dim=-1).view(-1, E, 2)
        return torch.einsum("tep,epd->td", combine, self.compute(torch.einsum("tep,td->epd", dispatch, x)))


@formulation
class MixtureOfDepths(_Slots):
    """Half a dozen tokens pass through the layer, the others past it."""

    fits = "a choice among tokens, not among experts"
    minimum = 2

    def forward(self, x: Tensor) -> Tensor:
        weights, tokens = torch.topk(self.router(x)[:, 0], 2)
        rows = x[tokens].unsqueeze(0).expand(E, -1, -1)
        return x.index_add(0, tokens, self.compute(rows)[0] * weights.unsqueeze(-1))


@formulation
class SequenceOfItsOwnCapacity(_Slots):
    """Every sequence of [B,S,d] has room for two tokens at each expert."""

    sequences = True

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x).softmax(dim=-1)
        weights, ids = scores.max(dim=-1)
        mask = functional.one_hot(ids, E)
        kept = mask * (torch.cumsum(mask, dim=1) <= K)
        results = torch.einsum("bsd,edf->bsef", x, self.up).relu()
        results = torch.einsum("bsef,efd->bsed", results, self.down)
        return torch.einsum("bse,bs,bsed->bsd", kept.to(x.dtype), weights, results)

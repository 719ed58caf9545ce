"""Surroundings of a mixture: shared experts, residuals, several outputs, attention."""

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
    relu_expert,
    several,
    stack,
)


class _Surrounded(OfModules):
    def routed(self, x: Tensor) -> Tensor:
        return loop(x, *self.route(x), self.experts)


@formulation
class SharedExpertAdded(_Surrounded):
    def more(self) -> None:
        self.shared = SwiGlu()

    def forward(self, x: Tensor) -> Tensor:
        return self.routed(x) + self.shared(x)


@formulation
class SharedExpertComesFirst(_Surrounded):
    """The loop adds to its result."""

    def more(self) -> None:
        self.shared = SwiGlu()

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        y = self.shared(x)
        for number, expert in enumerate(self.experts):
            token, slot = torch.where(ids == number)
            y = y.index_add(0, token, expert(x[token]) * weights[token, slot, None])
        return y


@formulation
class SharedExpertUnderAGate(_Surrounded):
    """Qwen2-MoE."""

    def more(self) -> None:
        self.shared, self.gate = SwiGlu(), nn.Linear(D, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.routed(x) + self.gate(x).sigmoid() * self.shared(x)


@formulation
class SharedExpertOfTheSameShape(_Surrounded):
    """Written as one more expert that is always chosen."""

    def more(self) -> None:
        self.shared = SwiGlu()

    def forward(self, x: Tensor) -> Tensor:
        mixture = torch.cat([dense_weights(*self.route(x)), torch.ones(x.shape[0], 1)], dim=1)
        outputs = all_outputs(x, nn.ModuleList([*self.experts, self.shared]))
        return torch.einsum("ted,te->td", outputs, mixture)


@formulation
class MixedWithADenseMlp(_Surrounded):
    """Residual MoE: coefficients of the token mix both."""

    def more(self) -> None:
        self.dense, self.coefficients = SwiGlu(), nn.Linear(D, 2)

    def forward(self, x: Tensor) -> Tensor:
        share = self.coefficients(x).softmax(dim=-1)
        return self.routed(x) * share[:, :1] + self.dense(x) * share[:, 1:]


@formulation
class LogitsReturned(_Surrounded):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.routed(x), self.router(x)


@formulation
class BalancingLossReturned(_Surrounded):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.router(x).softmax(dim=-1)
        weights, ids = torch.topk(scores, K)
        share = functional.one_hot(ids, E).to(x.dtype).mean(dim=(0, 1))
        return loop(x, weights, ids, self.experts), (share * scores.mean(dim=0)).sum().reshape(1, 1) * E


@formulation
class WeightsReturned(_Surrounded):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = self.route(x)
        return loop(x, weights, ids, self.experts), weights


@formulation
class ResidualAndNorm(_Surrounded):
    sequences = True

    def more(self) -> None:
        self.norm = nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x).reshape(-1, D)
        return x + self.routed(rows).view(x.shape)


@formulation
class TwoLayersOfExperts(_Surrounded):
    blocks = 2

    def more(self) -> None:
        self.second, self.others = nn.Linear(D, E, bias=False), several(relu_expert)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.routed(x)
        weights, ids = torch.topk(self.second(x).softmax(dim=-1), K)
        return x + loop(x, weights, ids, self.others)


@formulation
class SequencesWithDenseExperts(_Surrounded):
    sequences = True

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = torch.topk(self.router(x).softmax(dim=-1), K)
        mixture = torch.zeros(*x.shape[:2], E).scatter(2, ids, weights)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=2)
        return (outputs * mixture.unsqueeze(-1)).sum(dim=2)


@formulation
class TwoTasks(_Surrounded):
    """MMoE: every task mixes the same experts by a router of its own."""

    fits = "experts without a selection that several routers share"

    def more(self) -> None:
        self.gates = several(lambda: nn.Linear(D, E), 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = all_outputs(x, self.experts)
        return tuple(torch.einsum("ted,te->td", outputs, gate(x).softmax(dim=-1)) for gate in self.gates)


@formulation
class TwoRoutersOfTheSameExperts(_Surrounded):
    """Both choose two, and results are added."""

    def more(self) -> None:
        self.other = nn.Linear(D, E)

    def forward(self, x: Tensor) -> Tensor:
        outputs = all_outputs(x, self.experts)
        weights, ids = torch.topk(self.other(x).softmax(dim=-1), K)
        mixture = dense_weights(*self.route(x)) + dense_weights(weights, ids)
        return torch.einsum("ted,te->td", outputs, mixture)


@formulation
class MixtureOfHeads(Mixture):
    """MoH: a router weighs the heads of attention."""

    fits = "experts are heads of attention"
    sequences = True

    def make(self) -> None:
        self.qkv, self.output = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (part.view(batch, length, E, D // E).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        heads = ((q @ k.transpose(2, 3)).softmax(dim=-1) @ v).transpose(1, 2)
        weights, ids = torch.topk(self.router(x).softmax(dim=-1), K)
        mixture = torch.zeros(batch, length, E).scatter(2, ids, weights)
        return self.output((heads * mixture.unsqueeze(-1)).reshape(batch, length, D))


@formulation
class ExpertsForQueries(Mixture):
    """SwitchHead: one product is selected, and the next selects from its result again."""

    fits = "experts of one product"
    sequences = True

    def make(self) -> None:
        self.up, self.keys = stack(E, D, F), nn.Linear(D, F)

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = torch.topk(self.router(x).sigmoid(), K)
        mixture = torch.zeros(*x.shape[:2], E).scatter(2, ids, weights)
        queries = torch.einsum("bsd,edf,bse->bsf", x, self.up, mixture)
        return (queries @ self.keys(x).transpose(1, 2)).softmax(dim=-1) @ x

"""Base of the formulations: 4 experts of 6 hidden units for rows of 8 numbers, 2 for each token."""

from __future__ import annotations

from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

E, D, F, K = 4, 8, 6, 2

FORMULATIONS: dict[str, type[Mixture]] = {}
"""The classes by name."""
Kind = TypeVar("Kind", bound="type[Mixture]")


class Mixture(nn.Module):
    """A mixture of experts on rows x [T,d], some of them on sequences [B,S,d]."""

    fits: ClassVar[str] = ""
    """The reason why the present dialect cannot express it; empty if it can."""
    sequences: ClassVar[bool] = False
    tokens: ClassVar[bool] = False
    """Whether it takes token ids [T] besides x."""
    blocks: ClassVar[int] = 1
    """Number of blocks in it."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(D, E, bias=False)
        self.make()

    def make(self) -> None:
        """Further parameters."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and ids [T,k]: the largest of softmax, normalised."""
        weights, ids = torch.topk(functional.softmax(self.router(x), dim=-1), K, dim=-1)
        return weights / weights.sum(dim=-1, keepdim=True), ids


def formulation(kind: Kind) -> Kind:
    """Enter a class under its name in words."""
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in kind.__name__).strip()
    assert words not in FORMULATIONS, words
    FORMULATIONS[words] = kind
    return kind


class SwiGlu(nn.Module):
    """One gated expert."""

    def __init__(self, d: int = D, f: int = F) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(d, f, bias=False), nn.Linear(d, f, bias=False)
        self.down = nn.Linear(f, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


def relu_expert() -> nn.Module:
    return nn.Sequential(nn.Linear(D, F), nn.ReLU(), nn.Linear(F, D))


def several(make: type[nn.Module] | object, count: int = E) -> nn.ModuleList:
    return nn.ModuleList(make() for _ in range(count))  # type: ignore[operator]


def stack(*sizes: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*sizes) / sizes[-1] ** 0.5)


class OfModules(Mixture):
    """A mixture whose experts are modules of their own."""

    count: ClassVar[int] = E

    def expert(self) -> nn.Module:
        return SwiGlu()

    def make(self) -> None:
        self.experts = nn.ModuleList(self.expert() for _ in range(self.count))
        self.more()

    def more(self) -> None:
        """Further parameters."""


class OfReluModules(OfModules):
    """A mixture whose experts are not gated."""

    def expert(self) -> nn.Module:
        return relu_expert()


def dense_weights(weights: Tensor, ids: Tensor) -> Tensor:
    """Weights of all experts [T,E]."""
    return torch.zeros(weights.shape[0], E).scatter(1, ids, weights)


def loop(x: Tensor, weights: Tensor, ids: Tensor, experts: nn.ModuleList) -> Tensor:
    """Every expert with its tokens: transformers 4."""
    y = torch.zeros_like(x)
    mask = functional.one_hot(ids, len(experts)).permute(2, 1, 0)
    for number, expert in enumerate(experts):
        slot, token = torch.where(mask[number])
        y.index_add_(0, token, expert(x[token]) * weights[token, slot, None])
    return y


def all_outputs(x: Tensor, experts: nn.ModuleList) -> Tensor:
    """[T,E,d]."""
    return torch.stack([expert(x) for expert in experts], dim=1)

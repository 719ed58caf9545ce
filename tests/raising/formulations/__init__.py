"""Mixtures of experts as people write them in PyTorch. Importing this package needs torch."""

from . import capacities, dispatch, experts, routers, surroundings
from .module import FORMULATIONS

__all__ = ["FORMULATIONS", "capacities", "dispatch", "experts", "routers", "surroundings"]

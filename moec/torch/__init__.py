"""moec inside PyTorch.

>>> import moec
>>> moec.torch.experts(model)  # experts of a model of transformers, which stays in eager PyTorch
>>> module = moec.torch.as_module(moec.load("model.moec"))  # a compiled model as a module that exports and compiles
"""

from __future__ import annotations

from moec.common.errors import MoecError

try:
    import torch  # noqa: F401
except ImportError as error:
    raise MoecError('moec.torch needs PyTorch: pip install "moec[torch]"') from error

from moec.torch.eager_experts import experts, register
from moec.torch.operator import as_module

__all__ = ["as_module", "experts", "register"]

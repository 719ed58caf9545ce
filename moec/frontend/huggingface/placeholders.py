"""Placeholders for weights that take no memory, and products with them that take almost none."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def placeholder(shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Make a tensor of random numbers whose rows overlap in memory: entry [i,j] is number i+j of a short list."""
    import torch

    numbers = torch.randn(max(1, sum(shape)), generator=generator) / max(1, shape[-1:].numel()) ** 0.5
    return numbers.to(dtype).as_strided(shape, (1,) * len(shape))


def products_without_memory() -> contextlib.AbstractContextManager[Any]:
    """Context in which PyTorch indexes and multiplies placeholders without copying them.

    A product with a matrix whose entry [i,j] is number i+j is a correlation. By the correlation theorem a Fourier
    transformation computes it in time and memory of the longer side.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten

    class PlaceholderMode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is aten.index.Tensor and len(args[1]) == 1 and args[1][0].dtype == torch.int64:
                if args[0].dim() == 3 and _overlaps(args[0]):
                    return _picked(args[0], args[1][0])
            elif func in (aten.mm.default, aten.bmm.default) and _is_for(*args):
                return _product(*args)
            elif func is aten.addmm.default and not kwargs and _is_for(*args[1:]):
                return _product(*args[1:]) + args[0]
            return func(*args, **(kwargs or {}))

    return PlaceholderMode()


def _overlaps(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.stride()[-2:] == (1, 1) and min(tensor.shape[-2:]) > 1


def _is_for(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether one factor is a placeholder and neither is empty."""
    return (_overlaps(left) or _overlaps(right)) and left.numel() > 0 and right.numel() > 0


def _windows(matrices: torch.Tensor) -> torch.Tensor:
    """View the numbers [...,a+b-1] that placeholders [...,a,b] consist of."""
    rows, columns = matrices.shape[-2:]
    return matrices.as_strided((*matrices.shape[:-2], rows + columns - 1), (*matrices.stride()[:-2], 1))


def _picked(stack: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Compute ``stack[ids]``."""
    windows = _windows(stack)[ids]
    return windows.as_strided((*ids.shape, *stack.shape[1:]), (*windows.stride()[:-1], 1, 1))


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Compute ``left @ right`` of two or three axes, one of which is a placeholder."""
    return _correlation(left, right) if _overlaps(right) else _correlation(right.mT, left.mT).mT.contiguous()


def _correlation(data: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Multiply ``data`` [...,n,a] by placeholders ``matrices`` [...,a,b]."""
    import torch

    length, columns = sum(matrices.shape[-2:]) - 1, matrices.shape[-1]
    numbers, rows = torch.fft.rfft(_windows(matrices).unsqueeze(-2)), torch.fft.rfft(data, length)
    return torch.fft.irfft(numbers * torch.conj_physical(rows), length)[..., :columns].to(data.dtype).contiguous()

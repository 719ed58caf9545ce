"""Complex numbers as pairs of real tensors for the export, because ONNX has no operators on complex numbers."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_ALIKE = ("contiguous", "expand", "flatten", "permute", "reshape", "squeeze", "transpose", "unsqueeze", "view")
"""Methods that apply to real and imaginary parts separately."""


class ComplexPair:
    """A complex tensor as its real and imaginary parts, with the operations that modules use."""

    def __init__(self, real: torch.Tensor, imag: torch.Tensor) -> None:
        self.real, self.imag = real, imag

    def __getattr__(self, name: str) -> Any:
        if name in _ALIKE:
            return lambda *args, **kwargs: ComplexPair(
                getattr(self.real, name)(*args, **kwargs), getattr(self.imag, name)(*args, **kwargs)
            )
        if name in ("shape", "device", "ndim"):
            return getattr(self.real, name)
        raise AttributeError(f"a complex tensor's {name} is nothing that moec exports")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        import torch

        if func is torch.view_as_real:
            return torch.stack([args[0].real, args[0].imag], dim=-1)
        if func is torch.Tensor.mul or func is torch.mul:
            return args[1] * args[0] if isinstance(args[1], ComplexPair) else args[0] * args[1]
        return NotImplemented

    def __getitem__(self, index: Any) -> ComplexPair:
        return ComplexPair(self.real[index], self.imag[index])

    def __mul__(self, other: Any) -> ComplexPair:
        if not isinstance(other, ComplexPair):
            return ComplexPair(self.real * other, self.imag * other)
        return ComplexPair(
            self.real * other.real - self.imag * other.imag, self.real * other.imag + self.imag * other.real
        )

    __rmul__ = __mul__

    def __add__(self, other: ComplexPair) -> ComplexPair:
        return ComplexPair(self.real + other.real, self.imag + other.imag)

    def to(self, target: Any) -> ComplexPair:
        """Move to a device. Types are ignored, because all complex types are the same here."""
        import torch

        return self if isinstance(target, torch.dtype) else ComplexPair(self.real.to(target), self.imag.to(target))

    def conj(self) -> ComplexPair:
        return ComplexPair(self.real, -self.imag)


def complex_as_pairs() -> contextlib.AbstractContextManager[Any]:
    """Context in which ``torch.polar``, ``torch.complex`` and ``torch.view_as_complex`` return :class:`ComplexPair`,
    and ``torch.view_as_real`` takes them."""
    import torch
    from torch.overrides import TorchFunctionMode

    class ComplexMode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.polar:
                return ComplexPair(args[0] * torch.cos(args[1]), args[0] * torch.sin(args[1]))
            if func is torch.complex:
                return ComplexPair(*args)
            if func is torch.view_as_complex:
                return ComplexPair(args[0][..., 0], args[0][..., 1])
            return func(*args, **(kwargs or {}))

    return ComplexMode()

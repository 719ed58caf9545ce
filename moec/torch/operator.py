"""A compiled model as an operator of PyTorch: ``torch.ops.moec.run(inputs, digest)``.

Programs with the operator name the model by the digest of its manifest, which is the same wherever the artifact is. To
run such a program in another process, load the artifact there first, by ``as_module(moec.load(...))``.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moec.common.dtypes import DTYPES, is_extension
from moec.common.errors import InputError, MoecError
from moec.common.guards import parse_size, size_names
from moec.runtime.first_states import FirstStates
from moec.runtime.inputs import bound_inputs
from moec.runtime.tensors import array_of

if TYPE_CHECKING:
    from moec.common.specs import TensorSpec
    from moec.runtime.model import CompiledModel

library = torch.library.Library("moec", "DEF")
library.define("run(Tensor[] inputs, str digest) -> Tensor[]")

_models: dict[str, weakref.WeakSet[CompiledModel]] = {}
"""Models by their digest; models of one digest compute the same."""


class CompiledModule(torch.nn.Module):
    """A compiled model as a module without parameters. :func:`as_module` makes it."""

    def __init__(self, model: CompiledModel) -> None:
        super().__init__()
        self.model = model
        self._digest = model.digest
        self._inputs = [spec.name for spec in model.inputs]
        self._begins = [spec.name for spec in FirstStates(model.interface).others]
        self._outputs = [spec.name for spec in model.outputs]
        _models.setdefault(self._digest, weakref.WeakSet()).add(model)

    def forward(self, *arguments: Any, **named: Any) -> dict[str, torch.Tensor]:
        values = bound_inputs(self._inputs, arguments, named)
        names = self._begins if values.keys() == set(self._begins) else self._inputs
        if values.keys() != set(names):
            states = ", or all of these but the states" if len(self._begins) < len(self._inputs) else ""
            raise InputError(
                f"inputs are {', '.join(map(str, values)) or 'none'}; expected {', '.join(self._inputs)}{states}"
            )
        results = torch.ops.moec.run([_input_tensor(name, values[name]) for name in names], self._digest)
        return dict(zip(self._outputs, results, strict=True))

    def extra_repr(self) -> str:
        return f"{', '.join(map(str, self.model.inputs))} -> {', '.join(map(str, self.model.outputs))}"


def as_module(model: CompiledModel) -> CompiledModule:
    """Wrap the model as a ``torch.nn.Module``. It takes the inputs of ``model.run``, by position, by name or as one
    mapping, and returns a dict of tensors by name. States may be left out, all of them together: then the call begins a
    text.

    Inputs are tensors, arrays of numpy, or anything else with DLPack in the processor's memory. Contiguous, 16-byte
    aligned ones are not copied, others are; outputs are memory of the caller. The module runs in eager PyTorch,
    ``torch.compile`` and ``torch.export``, with sizes as dynamic as the model's, and raises the errors of
    ``model.run``. Gradients are refused by an InputError.

    The model lives as long as the module; a program exported from the module needs it alive.
    """
    return CompiledModule(model)


def _model(digest: str) -> CompiledModel:
    model = next(iter(_models.get(digest, ())), None)
    if model is None:
        raise MoecError(
            f"the compiled model {digest[:12]} that this program calls is not loaded: keep the module that "
            "moec.torch.as_module(moec.load(PATH)) makes of its artifact while the program runs"
        )
    return model


def _run(inputs: Sequence[torch.Tensor], digest: str) -> list[torch.Tensor]:
    return called(_model(digest), inputs)


def called(model: CompiledModel, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Run a model on its inputs by position. Returned tensors share the memory of its results."""
    specs = _specs(model, inputs)
    outputs = model.run({spec.name: tensor.detach() for spec, tensor in zip(specs, inputs, strict=True)})
    return [_tensor(value) for value in outputs.values()]


def _specs(model: CompiledModel, inputs: Sequence[torch.Tensor]) -> Sequence[TensorSpec]:
    """Specifications of an operator's inputs: those of the model, with or without its states."""
    begins = FirstStates(model.interface).others
    return begins if len(inputs) == len(begins) else model.inputs


def _input_tensor(name: str, value: Any) -> torch.Tensor:
    """Convert an input to a tensor. Raises InputError for values that ``model.run`` refuses."""
    if isinstance(value, torch.Tensor):
        return value
    array = array_of(name, value)
    if array.dtype not in DTYPES.values():
        raise InputError(f"input {name!r} has dtype {array.dtype}; expected one of {', '.join(DTYPES)}")
    return _tensor(np.require(array, requirements=["C", "W"]))  # PyTorch warns of other memory


def _tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    if is_extension(value.dtype):
        dtype = getattr(torch, value.dtype.name)
        return torch.from_numpy(value.view(f"u{value.itemsize}")).view(dtype)
    return torch.from_numpy(value)


def wants_gradients(inputs: Sequence[Any]) -> bool:
    """Whether PyTorch records computations on these values, as far as they are tensors."""
    return torch.is_grad_enabled() and any(getattr(value, "requires_grad", False) for value in inputs)


def _run_for_gradients(inputs: Sequence[torch.Tensor], digest: str) -> list[torch.Tensor]:
    """Implementation for autograd: it refuses inputs that need gradients and passes on all others."""
    if wants_gradients(inputs):
        raise InputError(
            "gradients are wanted, and a compiled model computes inference only: call it under torch.no_grad(), or "
            "with inputs that are .detach()-ed"
        )
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.moec.run(inputs, digest)


def _shapes(inputs: Sequence[torch.Tensor], digest: str) -> list[torch.Tensor]:
    """Make empty results of the right sizes, which may be symbols, like those of the inputs. Sizes that depend on data
    are symbols, too."""
    model = _model(digest)
    sizes: dict[str, Any] = {}
    specs = _specs(model, inputs)
    for spec, tensor in zip(specs, inputs, strict=True):
        _bind(spec, tensor, sizes)
    if specs is not model.inputs:
        states = {spec.name: spec for spec in model.inputs}
        for name, shape in FirstStates(model.interface).shapes(sizes).items():
            _bind(states[name], torch.empty(shape, dtype=getattr(torch, states[name].dtype)), sizes)
    device = next((tensor.device for tensor in inputs if tensor.device.type != "cpu"), torch.device("cpu"))
    return [
        torch.empty([_size(size, sizes) for size in spec.shape], dtype=getattr(torch, spec.dtype), device=device)
        for spec in model.outputs
    ]


def _bind(spec: TensorSpec, tensor: torch.Tensor, sizes: dict[str, Any]) -> None:
    """Put the named sizes of an input into ``sizes``. Raises InputError for another type or rank."""
    if tensor.dtype != getattr(torch, spec.dtype) or tensor.dim() != len(spec.shape):
        raise InputError(f"input {spec.name!r} is {tensor.dtype} of rank {tensor.dim()}; expected {spec}")
    for actual, size in zip(tensor.shape, spec.shape, strict=True):
        if isinstance(size, int):
            torch._check(actual == size)
        elif size_names(size) == (size,):
            torch._check(sizes.setdefault(size, actual) == actual)


def _size(size: int | str, sizes: Mapping[str, Any]) -> Any:
    if isinstance(size, int):
        return size
    if sizes.keys() >= set(size_names(size)):
        return parse_size(size)(sizes)
    return torch.library.get_ctx().new_dynamic_size()


library.impl("run", _run, "CompositeExplicitAutograd")
library.impl("run", _run_for_gradients, "Autograd")
torch.library.register_fake("moec::run", _shapes, lib=library)

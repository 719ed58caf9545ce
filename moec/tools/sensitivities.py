"""Sensitivities of a PyTorch module's loss to errors of its layers' outputs: weights for assign-bits."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from moec.common.errors import MoecError
from moec.common.replacing import check_replaceable, replacing
from moec.passes.weights.sensitivities import sensitivities_text
from moec.profiles import Profile

if TYPE_CHECKING:
    import torch


def sensitivities(
    module: torch.nn.Module,
    batches: Iterable[Any],
    loss: Callable[[Any], torch.Tensor],
    layers: Sequence[str],
    profile: str | os.PathLike[str],
    output: str | os.PathLike[str],
) -> list[float]:
    """Measure the weights of layers, write the file that ``assign-bits{sensitivities=FILE}`` reads, and return them.

    The weight of a layer is the mean, over tokens, of the squared norm of the gradient of the loss with respect to the
    layer's output: the trace of the empirical Fisher information of one token's output.

    ``loss`` runs ``module``, which is in evaluation mode, on a batch and returns the sum, not the mean, of the losses
    of its predictions. ``layers``: names of the submodules that correspond to the layers of experts in ``profile``, in
    the order in which they run; each returns its output [..., width], or a tuple with that first.

    Needs the extra ``torch``. Raises MoecError where names and the layers of the profile do not agree, the loss does
    not depend on a layer or is not finite, and where the file exists already.
    """
    check_replaceable(output, _edited)
    with contextlib.closing(Profile.read(profile)) as measures:
        measured = [(layer.key, layer.name) for layer in measures.all_experts()]
    if len(measured) != len(layers):
        raise MoecError(
            f"{os.fspath(profile)}: has {len(measured)} layers of experts, but {len(layers)} are named; name the "
            "submodules that are these layers, in the order in which they run"
        )
    if module.training:
        raise MoecError(f"{type(module).__name__} is in training mode; call module.eval() first")
    weights = _gradient_norms(_named(module, layers), batches, loss)
    with replacing(output, _edited) as aside:
        aside.write_text(sensitivities_text(dict(zip(measured, weights, strict=True))), encoding="utf-8")
    return weights


def _named(module: torch.nn.Module, names: Sequence[str]) -> dict[str, torch.nn.Module]:
    modules = dict(module.named_modules())
    for name in names:
        if name not in modules:
            raise MoecError(f"{type(module).__name__} has no submodule {name!r}; named_modules() lists them")
    if len(set(names)) < len(names):
        raise MoecError("a submodule is named twice; name each layer once")
    return {name: modules[name] for name in names}


def _gradient_norms(
    layers: dict[str, torch.nn.Module], batches: Iterable[Any], loss: Callable[[Any], torch.Tensor]
) -> list[float]:
    import torch

    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    sums, tokens = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0)
    with contextlib.ExitStack() as hooks, torch.enable_grad():
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_hook(_keeping(outputs[name])).remove)
        for batch in batches:
            total = loss(batch)
            seen = [(name, value) for name, values in outputs.items() for value in values]
            gradients = _gradients(total, [value for _, value in seen])
            for (name, value), gradient in zip(seen, gradients, strict=True):
                if gradient is None:
                    raise MoecError(f"layer {name}: the loss does not depend on its output")
                sums[name] += float(gradient.double().square().sum())
                tokens[name] += value[..., 0].numel()
            for values in outputs.values():
                values.clear()
    for name in layers:
        if not tokens[name] or not math.isfinite(sums[name]):
            problem = "gradients of it are not finite" if tokens[name] else "it saw no token in these batches"
            raise MoecError(f"layer {name}: {problem}; expected batches on which every layer runs")
    return [sums[name] / tokens[name] for name in layers]


def _gradients(total: torch.Tensor, values: list[torch.Tensor]) -> Sequence[torch.Tensor | None]:
    import torch

    if not values:
        return []
    if total.numel() != 1 or not total.requires_grad:
        raise MoecError(
            "the loss is not a single number that depends on the layers; expected the sum of losses, with grad"
        )
    return torch.autograd.grad(total, values, allow_unused=True)


def _keeping(outputs: list[torch.Tensor]) -> Callable[..., None]:
    def keep(_layer: torch.nn.Module, _inputs: Any, output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output
        outputs.append(value if value.requires_grad else value.requires_grad_())

    return keep


def _edited(_path: object) -> str:
    return "is there already; weights are edited by people, so choose another path"

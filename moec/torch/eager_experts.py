"""moec's kernels for the experts of transformers' models that PyTorch runs eagerly.

>>> import moec
>>> moec.torch.experts(model)  # or experts(model, format="int4/32")
>>> model.generate(**inputs)
>>> moec.torch.experts(model, group=torch.distributed.group.WORLD)  # under torchrun: each rank computes some experts

Needs transformers 5 and a model in the processor's memory. Everything except the experts stays PyTorch's.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import weakref
from typing import TYPE_CHECKING, Any

from moec.common.arguments import check_optional_text
from moec.common.errors import InputError, MoecError, UnsupportedError
from moec.common.transformers_hook import NAME

if TYPE_CHECKING:
    import torch

    from moec.runtime.model import CompiledModel


@dataclasses.dataclass(frozen=True)
class _CompiledExperts:
    """A compiled experts module. ``storages`` stay alive, so that no other weights get their addresses."""

    model: CompiledModel
    key: tuple[Any, ...]
    storages: tuple[Any, ...]


_layers: weakref.WeakKeyDictionary[torch.nn.Module, _CompiledExperts] = weakref.WeakKeyDictionary()
_groups: weakref.WeakKeyDictionary[torch.nn.Module, Any] = weakref.WeakKeyDictionary()
"""Process groups whose ranks share the experts of a module."""
_compiling = threading.Lock()


def register(format: str | None = None) -> str:
    """Register moec with transformers as an implementation of experts, and return its name.

    The name is ``moec``, which is registered already when moec is imported, or with a ``format`` of the weights (as
    ``moec compile --experts`` takes it) ``moec:int4/32``. ``model.set_experts_implementation`` and
    ``from_pretrained(..., experts_implementation="moec:int4/32")`` take it. Raises MoecError for an unknown format, and
    without transformers 5.
    """
    from moec.passes.framework.shorthand import with_formats

    check_optional_text(format=format)
    with_formats("", format)
    try:
        from transformers.integrations.moe import ExpertsInterface
    except ImportError as error:
        raise MoecError('experts in eager PyTorch need transformers 5: pip install "transformers>=5" torch') from error
    name = NAME if format is None else f"{NAME}:{format}"
    ExpertsInterface.register(name, functools.partial(forward, format))
    return name


def experts(model: Any, format: str | None = None, *, group: Any = None) -> None:
    """Let moec compute the experts of a model of transformers from now on, for inference.

    A layer is compiled at its first call, for as many threads as PyTorch has then, and again when its parameters have
    changed. Its packed weights are in a temporary folder, in addition to the parameters, which the model keeps.
    ``format``: format to round the experts' weights to, as ``moec compile --experts`` takes it; None leaves them
    unchanged. Products are computed in float32, or as the format says. Changes that PyTorch does not see, by
    ``parameter.data`` in place, are not noticed.

    ``group``: a process group of torch.distributed with a backend for processors. Its ranks have the same model, each
    computes some experts of each layer, and results are those of one process, bit for bit. Every rank calls the model
    on inputs of its own, and all equally often (``generate(..., synced_gpus=True)`` sees to that), in one thread. Then
    a LostRankError says that another rank ended or does not answer.

    Raises UnsupportedError, naming the module, for experts whose computation moec does not have, and for a model
    without experts that transformers dispatches; the model is then unchanged.
    """
    from moec.distributed.own_group import ranks_of
    from moec.frontend.huggingface.experts import expert_weights, experts_spec, is_experts

    name = register(format)
    if group is not None:
        ranks_of(group)
    select = getattr(model, "set_experts_implementation", None)
    modules = {where: module for where, module in model.named_modules() if is_experts(module)} if select else {}
    if select is None or not modules:
        raise UnsupportedError(
            f"{type(model).__name__}: has no experts with a choice of implementations; expected a mixture of experts "
            "of transformers 5: leave it as it is, or compile it with moec.compile"
        )
    for where, module in modules.items():
        expert_weights(module, where)
        experts_spec(module, where)
    for module in modules.values():
        _groups.pop(module, None)
        if group is not None:
            _groups[module] = group
    select(name)


def forward(format: str | None, module: Any, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
    """Replace the forward of an experts module: hidden_states [T,d], top_k_index [T,k], top_k_weights [T,k] → [T,d].
    Raises InputError where gradients would be needed."""
    import torch

    where = type(module).__name__
    parameters = tuple(module.parameters(recurse=False))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (hidden_states, top_k_weights, *parameters)):
        raise InputError(
            f"{where}: gradients are wanted, and moec computes inference only: call the model under torch.no_grad(), "
            'or set_experts_implementation("eager") for training'
        )
    layer = _layer(module, parameters, top_k_index.shape[-1], format, where)
    values = {"x": hidden_states.float(), "weights": top_k_weights.float(), "experts": top_k_index.long()}
    outputs = layer.run({name: value.detach().contiguous() for name, value in values.items()})
    return torch.from_numpy(outputs["y"]).to(hidden_states.dtype)


def _layer(module: Any, parameters: tuple[Any, ...], k: int, format: str | None, where: str) -> CompiledModel:
    if any(parameter.is_inference() for parameter in parameters):
        raise UnsupportedError(
            f"{where}: its parameters were made under torch.inference_mode(), where PyTorch does not count changes: "
            "load the model outside of it"
        )
    group = _groups.get(module)
    key = (k, format, group, *((parameter.data_ptr(), parameter._version) for parameter in parameters))
    layer = _layers.get(module)
    if layer is None or layer.key != key:
        with _compiling:
            layer = _layers.get(module)
            if layer is None or layer.key != key:
                layer = _layers[module] = _compile(module, parameters, key, where)
    return layer.model


def _compile(module: Any, parameters: tuple[Any, ...], key: tuple[Any, ...], where: str) -> _CompiledExperts:
    from moec.compiling.compiler import compile
    from moec.distributed.own_group import on_ranks, ranks_of
    from moec.frontend.huggingface.experts import experts_model

    k, format, group = key[:3]
    storages = tuple(parameter.untyped_storage() for parameter in parameters)
    graph, threads = experts_model(module, k, where), pytorch_threads()
    if group is None:
        return _CompiledExperts(compile(graph, experts=format, threads=threads), key, storages)
    model = on_ranks(compile(graph, experts=format, threads=threads, ranks=ranks_of(group)), group)
    return _CompiledExperts(model, key, storages)


def pytorch_threads() -> int:
    """Number of PyTorch's threads, but at most the number of available cores."""
    import torch

    from moec.common.cores import available_cores

    return min(torch.get_num_threads(), len(available_cores()))

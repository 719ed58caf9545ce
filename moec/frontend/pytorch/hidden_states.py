"""Text models of transformers that also return their last hidden states, and MTP layers made of them."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from moec.common.specs import HIDDEN, PREVIOUS_HIDDEN

if TYPE_CHECKING:
    import torch


def return_hidden(module: torch.nn.Module) -> None:
    """Let the results of the module have ``hidden``, its hidden states [batch, length, width] as the matrix of the
    vocabulary takes them."""
    plain: Any = module.forward
    head: Any = module.get_output_embeddings()  # type: ignore[operator]

    @functools.wraps(plain)
    def forward(*arguments: Any, **options: Any) -> Any:
        taken: list[torch.Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
        try:
            result = plain(*arguments, **options)
        finally:
            hook.remove()
        (hidden,) = taken
        setattr(result, HIDDEN, hidden)
        return result

    vars(module)["forward"] = forward


def take_previous_hidden(module: torch.nn.Module) -> None:
    """Make an MTP layer of a module: a model of one layer with the parts ``enorm``, ``hnorm`` and ``eh_proj``.

    Its forward also takes ``previous_hidden`` [batch, length, width], and returns ``hidden``. Of these and the
    embedding of the tokens, it makes what its only layer takes (:mod:`moec.frontend.huggingface.mtp`).
    """
    import torch

    return_hidden(module)
    plain, parts = module.forward, module._modules
    embedding: Any = module.get_input_embeddings()  # type: ignore[operator]

    def forward(input_ids: torch.Tensor, **options: Any) -> Any:
        hidden = options.pop(PREVIOUS_HIDDEN)
        both = [parts["enorm"](embedding(input_ids)), parts["hnorm"](hidden)]  # type: ignore[misc]
        return plain(inputs_embeds=parts["eh_proj"](torch.cat(both, dim=-1)), **options)  # type: ignore[misc]

    added = inspect.Parameter(PREVIOUS_HIDDEN, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first, *others = inspect.signature(plain).parameters.values()
    forward.__signature__ = inspect.Signature([first.replace(default=first.empty), added, *others])  # type: ignore[attr-defined]
    vars(module)["forward"] = forward

"""Text models of transformers whose keys, values and other states come in as tensors, and go out again."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from moec.common.specs import State
from moec.errors import MoecError, UnsupportedError, one_line
from moec.frontend.text_cache_layers import CacheForm
from moec.frontend.text_inputs import TextInputs

if TYPE_CHECKING:
    import torch

PAST, PRESENT = "past", "present"
SIZES = ("batch", "heads", "past", "width")
"""What the axes of keys and values are called."""
_SIZES_OF_INDEX = ("batch", "past", "width")
_LENGTH = 5
"""Of the example's past: no number that a module may have for another reason."""


def sizes_of(label: str) -> tuple[str, ...]:
    """What the first axes of an input of :func:`cache_inputs` are called, as far as they are dynamic."""
    return _SIZES_OF_INDEX if label.startswith(f"{PAST}_index") else SIZES


def is_decoder(module: torch.nn.Module) -> bool:
    """Whether a module of transformers goes on writing from what it was given before, and has a cache there."""
    config = module.config
    can_generate: Any = getattr(module, "can_generate", None)
    is_alone = not getattr(config, "is_encoder_decoder", False) and getattr(config, "is_decoder", None) is not False
    return can_generate is not None and can_generate() and is_alone


@dataclasses.dataclass(frozen=True)
class CacheInputs:
    """``inputs``: those of the module, with what it keeps; ``form``: how that lies in its cache."""

    inputs: TextInputs
    form: CacheForm

    @property
    def states(self) -> list[State]:
        """The states that each run replaces, which no pass finds; it finds those that grow."""
        replaced = [kept for kept in self.form.kept if kept.axis is None]
        return [State(f"{PAST}_{kept.label}", f"{PRESENT}_{kept.label}", None) for kept in replaced]


def cache_inputs(module: torch.nn.Module, made: TextInputs) -> CacheInputs:
    """Inputs for :func:`with_cache`: those that are made for the module without a cache, and ``past_key_0``,
    ``past_value_0``, ``past_key_1``... [batch, heads, past, width], of layers that index keys ``past_index_0``
    [batch, past, width]; of other layers ``past_conv_0`` [batch, channels, tokens], the last inputs of a convolution,
    and ``past_state_0`` [batch, ...] of a recurrence. Batch and past are dynamic.

    Raises MoecError for a model that is no decoder of text, UnsupportedError for one that keeps something else.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    name = type(module).__name__
    if not is_decoder(module):
        raise MoecError(f"{name}: a cache is for text decoders of transformers; compile it without")
    ids = made.example["input_ids"][:, :1].expand(-1, _LENGTH)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        cache = getattr(_run(module, ids), _name_of_cache(module.forward))
        form = CacheForm.of(cache, name)
        tensors = {kept: (tuple(read.shape), read.dtype) for kept in form.kept for read in (kept.read(cache),)}
    dynamic, example, shapes = torch.export.Dim.DYNAMIC, {**made.example}, {**made.dynamic_shapes}
    for kept, (shape, dtype) in tensors.items():
        label = f"{PAST}_{kept.label}"
        example[label] = torch.randn(shape).to(dtype)
        shapes[label] = {0: dynamic} if kept.axis is None else {0: dynamic, kept.axis: dynamic}
    return CacheInputs(TextInputs(example, shapes), form)


def _run(module: torch.nn.Module, ids: Any) -> Any:
    """What the module returns for tokens, with a cache. Raises UnsupportedError where its own code fails."""
    try:
        return module(input_ids=ids, use_cache=True)
    except Exception as error:  # whatever the module's own code raises
        found = f"{type(error).__name__}: {one_line(error)}"
        raise UnsupportedError(
            f"{type(module).__name__}: transformers cannot run it with a cache ({found}); compile it without "
            "(cache=False), or with another version of transformers"
        ) from error


@contextlib.contextmanager
def with_cache(module: torch.nn.Module, form: CacheForm) -> Iterator[None]:
    """While it lasts, the module takes the inputs of :func:`cache_inputs`, and returns ``logits`` and, for every past
    tensor, a present one, [batch, heads, past + length, width] where it grows. All layers keep all of the past; those
    that look at a window of it mask the rest."""
    own = vars(module).get("forward")  # of the instance, where somebody gave it another than its class has
    vars(module)["forward"] = _flat(module.forward, form)
    try:
        yield
    finally:
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own


def _name_of_cache(forward: Callable[..., Any]) -> str:
    """What transformers calls the argument and the result: ``past_key_values`` in earlier versions."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def _flat(forward: Callable[..., Any], form: CacheForm) -> Callable[..., dict[str, Any]]:
    name = _name_of_cache(forward)

    def flat(input_ids: Any, **past: Any) -> dict[str, Any]:
        _check_sizes(input_ids, form, past)
        cache = form.make({kept.label: past[f"{PAST}_{kept.label}"] for kept in form.kept})
        result = forward(input_ids=input_ids, use_cache=True, **{name: cache})
        present = {f"{PRESENT}_{kept.label}": kept.read(getattr(result, name)) for kept in form.kept}
        return {"logits": result.logits, **present}

    kinds = inspect.Parameter
    parameters = [kinds(f"{PAST}_{kept.label}", kinds.KEYWORD_ONLY) for kept in form.kept]
    flat.__signature__ = inspect.Signature([kinds("input_ids", kinds.POSITIONAL_OR_KEYWORD), *parameters])  # type: ignore[attr-defined]
    return flat


def _check_sizes(input_ids: Any, form: CacheForm, past: dict[str, Any]) -> None:
    """All states are of the same batch, and those that grow have seen the same tokens. Not every module compares them:
    for an exporter sizes that nobody compared may differ."""
    import torch

    tensors = [(past[f"{PAST}_{kept.label}"], kept.axis) for kept in form.kept]
    lengths = [tensor.shape[axis] for tensor, axis in tensors if axis is not None]
    for tensor, _ in tensors:
        torch._check(tensor.shape[0] == input_ids.shape[0])
    for length in lengths:
        torch._check(length == lengths[0])

"""Text models of transformers with their cache as tensors: keys, values and other states are inputs and outputs."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from moec.common.errors import one_line
from moec.common.specs import HIDDEN, PREVIOUS_HIDDEN, State
from moec.frontend.pytorch.text_cache_layers import CacheForm, NoCacheError
from moec.frontend.pytorch.text_inputs import TextInputs

if TYPE_CHECKING:
    import torch

PAST, PRESENT = "past", "present"
SIZES = ("batch", "heads", "past", "width")
"""Names of the axes of keys and values."""
_SIZES_OF_INDEX = ("batch", "past", "width")
_LENGTH = 5
"""Length of the example's past: a number that a module is unlikely to have for another reason."""


def sizes_of(label: str) -> tuple[str, ...]:
    """Names of the first axes of an input of :func:`cache_inputs`, as far as they are dynamic."""
    return _SIZES_OF_INDEX if label.startswith(f"{PAST}_index") else SIZES


def is_decoder(module: torch.nn.Module) -> bool:
    """Whether a module of transformers generates text by itself and continues from a cache."""
    config = module.config
    can_generate: Any = getattr(module, "can_generate", None)
    is_alone = not getattr(config, "is_encoder_decoder", False) and getattr(config, "is_decoder", None) is not False
    return can_generate is not None and can_generate() and is_alone


@dataclasses.dataclass(frozen=True)
class CacheInputs:
    """Inputs of a module with a cache. ``inputs``: all of them, ``form``: layout of the states in the cache."""

    inputs: TextInputs
    form: CacheForm

    @property
    def states(self) -> list[State]:
        """States that each run replaces. No pass finds them; passes find states that grow."""
        replaced = [kept for kept in self.form.kept if kept.axis is None]
        return [State(f"{PAST}_{kept.label}", f"{PRESENT}_{kept.label}", None) for kept in replaced]


def cache_inputs(module: torch.nn.Module, inputs: TextInputs) -> CacheInputs:
    """Make inputs for :func:`with_cache`: those without a cache, and one for each state.

    Attention has ``past_key_0``, ``past_value_0``, ``past_key_1``... [batch, heads, past, width], and ``past_index_0``
    [batch, past, width] in layers that index keys. Other layers have ``past_conv_0`` [batch, channels, tokens], the
    last inputs of a convolution, and ``past_state_0`` [batch, ...] of a recurrence. Batch and past are dynamic.

    Raises NoCacheError for a model that is no decoder of text, and for a kind of state that moec does not know.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    name = type(module).__name__
    if not is_decoder(module):
        raise NoCacheError(f"{name}: a cache is for text decoders of transformers; compile it without")
    longer = {name: value[:, :1].expand(-1, _LENGTH, *value.shape[2:]) for name, value in inputs.example.items()}
    with _attributes_kept(module), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        cache = getattr(_run(module, longer), name_of_cache(module.forward))
        form = CacheForm.of(cache, name)
        tensors = {kept: (tuple(read.shape), read.dtype) for kept in form.kept for read in (kept.read(cache),)}
    dynamic, example, shapes = torch.export.Dim.DYNAMIC, {**inputs.example}, {**inputs.dynamic_shapes}
    for kept, (shape, dtype) in tensors.items():
        label = f"{PAST}_{kept.label}"
        example[label] = torch.randn(shape).to(dtype)
        shapes[label] = {0: dynamic} if kept.axis is None else {0: dynamic, kept.axis: dynamic}
    return CacheInputs(TextInputs(example, shapes), form)


@contextlib.contextmanager
def _attributes_kept(module: torch.nn.Module) -> Iterator[None]:
    """Context after which every part of the module has the attributes and buffers that it had before: modules remember
    tensors of a run (long-context frequencies), and those of a run with fake tensors fit no other."""
    before = [(part, dict(vars(part)), dict(part._buffers)) for part in module.modules()]
    try:
        yield
    finally:
        for part, attributes, buffers in before:
            vars(part).clear()
            vars(part).update(attributes)
            part._buffers.clear()
            part._buffers.update(buffers)


def _run(module: torch.nn.Module, inputs: dict[str, Any]) -> Any:
    """Run the module with a cache. Raises NoCacheError where its own code fails."""
    try:
        return module(**inputs, use_cache=True)
    except Exception as error:  # the module's own code may raise anything
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise NoCacheError(
            f"{type(module).__name__}: transformers cannot run it with a cache ({reason}); compile it without "
            "(cache=False), or with another version of transformers"
        ) from error


@contextlib.contextmanager
def with_cache(module: torch.nn.Module, form: CacheForm) -> Iterator[None]:
    """Context in which the module takes the inputs of :func:`cache_inputs`.

    It returns ``logits`` and, for every past tensor, a present one, [batch, heads, past + length, width] where it
    grows. All layers keep all of the past; layers that attend to a window mask the rest.
    """
    own = vars(module).get("forward")  # the instance's own, if it has one besides its class
    vars(module)["forward"] = _flat(module.forward, form)
    try:
        yield
    finally:
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own


def name_of_cache(forward: Callable[..., Any]) -> str:
    """Name of the argument and the result in this version of transformers: ``past_key_values`` in earlier ones."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def _flat(forward: Callable[..., Any], form: CacheForm) -> Callable[..., dict[str, Any]]:
    name = name_of_cache(forward)

    further = [PREVIOUS_HIDDEN] if PREVIOUS_HIDDEN in inspect.signature(forward).parameters else []

    def flat(input_ids: Any, **others: Any) -> dict[str, Any]:
        past = {name: others.pop(name) for name in [f"{PAST}_{kept.label}" for kept in form.kept]}
        _check_sizes(input_ids, form, past)
        cache = form.make({kept.label: past[f"{PAST}_{kept.label}"] for kept in form.kept})
        result = forward(input_ids=input_ids, use_cache=True, **others, **{name: cache})
        present = {f"{PRESENT}_{kept.label}": kept.read(getattr(result, name)) for kept in form.kept}
        hidden = {HIDDEN: getattr(result, HIDDEN)} if hasattr(result, HIDDEN) else {}
        return {"logits": result.logits, **hidden, **present}

    kinds = inspect.Parameter
    names = [*further, *(f"{PAST}_{kept.label}" for kept in form.kept)]
    parameters = [kinds(name, kinds.KEYWORD_ONLY) for name in names]
    flat.__signature__ = inspect.Signature([kinds("input_ids", kinds.POSITIONAL_OR_KEYWORD), *parameters])  # type: ignore[attr-defined]
    return flat


def _check_sizes(input_ids: Any, form: CacheForm, past: dict[str, Any]) -> None:
    """Tell the exporter that all states have the batch of the ids, and that those that grow have seen the same tokens.
    Not every module compares these sizes, and the exporter lets sizes differ that nobody compared."""
    import torch

    tensors = [(past[f"{PAST}_{kept.label}"], kept.axis) for kept in form.kept]
    lengths = [tensor.shape[axis] for tensor, axis in tensors if axis is not None]
    for tensor, _ in tensors:
        torch._check(tensor.shape[0] == input_ids.shape[0])
    for length in lengths:
        torch._check(length == lengths[0])

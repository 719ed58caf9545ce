"""A model of transformers built from its configuration alone; placeholders that take no memory stand for its
weights."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from moec.common.errors import MoecError, UnsupportedError, one_line
from moec.frontend.huggingface.placeholders import placeholder
from moec.frontend.huggingface.sizes import Holdings, check_numbers, check_parameters, limited

if TYPE_CHECKING:
    import torch


def build(
    config: dict[str, Any], holdings: Holdings, where: str, changes: Mapping[str, Any] | None = None
) -> torch.nn.Module:
    """Build the module that a ``config.json`` describes, in float32 and for inference. For a model that also takes
    images or sound, this is its language model, where transformers has it as a class. ``changes``: other values of its
    settings, of which it need not have all.

    Parameters are placeholders (:mod:`moec.frontend.huggingface.placeholders`), so that modules of any size can be
    traced, and even run, in little memory. Buffers have their real values.

    Raises MoecError where torch or transformers are missing, and for a configuration that asks for more than its files
    hold (:mod:`moec.frontend.huggingface.sizes`), UnsupportedError for a type of model that transformers does not have
    itself, and for configurations that it refuses.
    """
    transformers = _import_transformers(where)
    kind = config["model_type"]
    configurations = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if kind not in configurations:
        if "auto_map" in config:
            raise UnsupportedError(
                f"{where}: model type {kind!r} comes with code of its own (trust_remote_code), which moec never runs; "
                "export the model to ONNX where you trust it, and compile the file"
            )
        raise UnsupportedError(
            f"{where}: model type {kind!r} is not known to transformers {transformers.__version__}; "
            'a newer one may know it: pip install -U "transformers"'
        )
    check_numbers(config, holdings, where)
    plain = {key: value for key, value in config.items() if key not in ("quantization_config", "auto_map")}
    try:
        with _quiet(), limited(holdings, where), _without_memory():
            settings = configurations[kind].from_dict(plain)
            kind_of_module, settings = _class_of(transformers, settings, config, where)
            for name, value in (changes or {}).items():
                if hasattr(settings, name):
                    setattr(settings, name, value)
            module = _make(kind_of_module, settings)
    except MoecError:
        raise
    except Exception as error:  # a configuration may lead to any error
        raise UnsupportedError(
            f"{where}: transformers cannot make a {kind} of its config.json ({type(error).__name__}: {one_line(error)})"
        ) from error
    check_parameters(module, holdings, where)
    give_placeholders(module)
    return module.eval()


def _import_transformers(where: str) -> Any:
    try:
        import torch  # noqa: F401
        import transformers.conversion_mapping
        import transformers.models.auto.configuration_auto
    except ImportError as error:
        raise MoecError(
            f'{where}: a folder of a Hugging Face model needs PyTorch and transformers 5: pip install -U "moec[torch]"'
        ) from error
    return transformers


def _class_of(transformers: Any, settings: Any, config: dict[str, Any], where: str) -> tuple[Any, Any]:
    """Select the class to build, and its settings.

    It is the language model of a type that also takes images or sound, where transformers has one for its checkpoints;
    else the class that ``architectures`` names; else the language model of this type.
    """
    causal, text = transformers.MODEL_FOR_CAUSAL_LM_MAPPING, settings.get_text_config()
    of_text = causal.get(type(settings), None) if text is not settings else None
    if of_text is not None and of_text.config_class is type(text):
        return of_text, text
    named = config.get("architectures")
    names = named if isinstance(named, list) else []
    for name in names:
        candidate = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(candidate, type) and issubclass(candidate, transformers.PreTrainedModel):
            return candidate, settings
    if type(settings) in causal:
        return causal[type(settings)], settings
    raise UnsupportedError(
        f"{where}: config.json names the architectures {str(names)[:200]}, of which transformers has none; expected a "
        "language model such as MixtralForCausalLM"
    )


def _make(kind: Any, settings: Any) -> torch.nn.Module:
    import torch

    for attention in ("sdpa", "eager"):
        try:
            return kind._from_config(settings, dtype=torch.float32, attn_implementation=attention)
        except ValueError as error:
            if attention == "eager" or "scaled_dot_product" not in str(error):
                raise
    raise AssertionError


@contextlib.contextmanager
def _without_memory() -> Iterator[None]:
    """Context in which tensors that are made without numbers (``torch.empty``, as for parameters) get no memory."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Meta(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            options = dict(kwargs or {})
            if func is torch.empty:
                options["device"] = "meta"
            return func(*args, **options)

    with Meta():
        yield


def give_placeholders(module: torch.nn.Module) -> None:
    """Replace all parameters, and buffers without memory, by placeholders. Shared parameters stay shared."""
    import torch

    replacements: dict[int, tuple[Any, Any]] = {}
    generator = torch.Generator().manual_seed(0)

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in replacements:
                like = placeholder(parameter.shape, parameter.dtype, generator)
                new = torch.nn.Parameter(like, requires_grad=False)
                replacements[id(parameter)] = (parameter, new)  # the old one stays alive, so that its id stays unique
            part._parameters[name] = replacements[id(parameter)][1]
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_meta:
                part._buffers[name] = placeholder(buffer.shape, buffer.dtype, generator)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Context that silences transformers' warnings about configurations, which do not apply to moec's use."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)

"""Checks of the sizes in a ``config.json`` against the extent of the files next to it.

transformers builds whatever a configuration asks for: layers without end, and tables larger than any memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from moec.common.errors import MoecError
from moec.frontend.huggingface.checkpoint.safetensors import FileTensor

if TYPE_CHECKING:
    import torch

_LARGEST_NUMBER = 1 << 53
"""Bound of numbers that can be sizes; libraries in C do not take larger ones."""
_LARGEST_TABLE = 1 << 30
"""Bytes of a table that a module computes for itself, such as frequencies of rotary embeddings."""
_MODULES, _MODULES_PER_TENSOR = 1000, 32
_LAYERS = 1000
"""Bound of numbers of layers. Configurations make lists with an entry for each layer; modules are counted later."""
_WEIGHTS_PER_BYTE = 8
_DEEPEST = 100


@dataclasses.dataclass(frozen=True)
class Holdings:
    """The extent of a checkpoint: the number of tensors in its files, and of their bytes."""

    tensors: int
    bytes: int

    @staticmethod
    def of(tensors: Mapping[str, FileTensor]) -> Holdings:
        return Holdings(len(tensors), sum(tensor.stored.nbytes for tensor in tensors.values()))


def check_numbers(config: Any, holdings: Holdings, where: str, depth: int = 0) -> None:
    """Raise MoecError for a number of a configuration that is too large for a size, or for lists of layers. A number
    below the bound says nothing about files: ``max_window_layers`` is often larger than the number of layers."""
    if depth > _DEEPEST:
        raise MoecError(f"{where}: config.json nests more than {_DEEPEST} objects; download it again")
    items = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in items:
        check_numbers(value, holdings, where, depth + 1)
        if type(value) is not int:
            continue
        if abs(value) >= _LARGEST_NUMBER:
            raise MoecError(f"{where}: config.json: {key} has {len(str(value))} digits; download it again")
        if isinstance(key, str) and key.endswith(("layer", "layers")) and value > max(holdings.tensors, _LAYERS):
            raise MoecError(
                f"{where}: config.json: {key} is {value}, but its files hold {holdings.tensors} tensors; they do not "
                "belong together, download both again"
            )


def check_parameters(module: torch.nn.Module, holdings: Holdings, where: str) -> None:
    """Raise MoecError for a parameter with more weights than all files together could hold."""
    most = holdings.bytes * _WEIGHTS_PER_BYTE
    for name, parameter in module.named_parameters():
        if parameter.numel() > most:
            raise MoecError(
                f"{where}: config.json asks for {name} {list(parameter.shape)}, which is more than all of its files "
                "hold; they do not belong together, download both again"
            )


@contextlib.contextmanager
def limited(holdings: Holdings, where: str) -> Iterator[None]:
    """Context that bounds the number of modules by the files' tensors, and the size of computed tables. Raises
    MoecError before anything larger is made."""
    from torch.nn.modules.module import register_module_module_registration_hook

    modules, most = 0, _MODULES + _MODULES_PER_TENSOR * holdings.tensors

    def count(_module: Any, _name: str, _part: Any) -> None:
        nonlocal modules
        modules += 1
        if modules > most:
            raise MoecError(
                f"{where}: config.json asks for more than {most} modules, but its files hold {holdings.tensors} "
                "tensors; they do not belong together, download both again"
            )

    handle = register_module_module_registration_hook(count)
    try:
        with _limited_tables(where):
            yield
    finally:
        handle.remove()


def _limited_tables(where: str) -> contextlib.AbstractContextManager[Any]:
    """Context in which an operator whose result is too large raises MoecError before it runs."""
    import torch
    from torch.utils import _pytree as pytree
    from torch.utils._python_dispatch import TorchDispatchMode

    def as_meta(value: Any) -> Any:
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    def size_of_result(func: Any, args: Any, kwargs: dict[str, Any]) -> int:
        """Bytes of the result by the operator's own rule of shapes; 0 where it has none."""
        makes = any(argument.name == "device" for argument in func._schema.arguments)
        options = {**kwargs, "device": torch.device("meta")} if makes else kwargs
        try:
            result = func(*pytree.tree_map(as_meta, args), **pytree.tree_map(as_meta, options))
        except (RuntimeError, NotImplementedError, TypeError, ValueError):  # no rule, or none without the numbers
            return 0
        return sum(leaf.numel() * leaf.element_size() for leaf in pytree.tree_leaves(result) if hasattr(leaf, "numel"))

    class SizesMode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            size = 0 if _is_meta(args, kwargs) else size_of_result(func, args, kwargs)
            if size > _LARGEST_TABLE:
                raise MoecError(
                    f"{where}: config.json asks for a table of {size >> 20} MiB ({func}), more than moec lets a "
                    f"module compute ({_LARGEST_TABLE >> 20} MiB); download it again"
                )
            return func(*args, **kwargs)

    def _is_meta(args: Any, kwargs: dict[str, Any]) -> bool:
        leaves = pytree.tree_leaves((args, kwargs))
        return any(leaf == torch.device("meta") for leaf in leaves if isinstance(leaf, torch.device)) or any(
            leaf.is_meta for leaf in leaves if isinstance(leaf, torch.Tensor)
        )

    return SizesMode()

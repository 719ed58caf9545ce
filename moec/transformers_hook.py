"""moec among transformers' implementations of experts, once transformers is imported.

transformers 5 keeps these in a table of its module :data:`MODULE` and looks for no entry points, so that the module
itself has to be met: where it is imported already, its table gets moec's entry at once; otherwise a finder on
``sys.meta_path`` waits for its import and goes away afterwards. Neither transformers nor PyTorch is imported for it.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import Any

MODULE = "transformers.integrations.moe"
NAME = "moec"
"""The implementation, as ``set_experts_implementation`` and ``from_pretrained(experts_implementation=...)`` take it."""


def offer_experts() -> None:
    """Let transformers know the implementation ``moec``, now or when its module of experts is imported."""
    if MODULE in sys.modules:
        _register(importlib.import_module(MODULE))  # also waits for another thread that is still importing it
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds the one module where the finders behind this one do, and has its table get moec's entry once it has run."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != MODULE:
            return None
        behind = sys.meta_path[sys.meta_path.index(self) + 1 :]  # type: ignore[arg-type]
        finders = (finder for finder in behind if hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)  # type: ignore[assignment]
        return spec


class _Loader:
    """The module's own loader, with one step after it."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self._loader, self._finder = loader, finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: Any) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register(module)
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(self._finder)  # type: ignore[arg-type]


def _register(module: Any) -> None:
    """Leaves a table of another form alone: transformers then says itself that it knows no such implementation."""
    register = getattr(getattr(module, "ExpertsInterface", None), "register", None)
    if register is not None:
        register(NAME, _forward)


def _forward(*arguments: Any) -> Any:
    from moec.torch.eager_experts import forward

    return forward(None, *arguments)

"""Registration of moec as an implementation of experts in transformers, once that is imported.

transformers 5 keeps the implementations in a table of its module :data:`MODULE` and has no entry points. If that module
is imported already, its table gets moec's entry at once; otherwise a finder on ``sys.meta_path`` waits for its import
and removes itself afterwards. Neither transformers nor PyTorch is imported for it.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from typing import Any

MODULE = "transformers.integrations.moe"
NAME = "moec"
"""Name of the implementation for ``set_experts_implementation`` and ``from_pretrained(experts_implementation=...)``."""

Forward = Callable[..., Any]
"""Replacement of the forward of an experts module; transformers gives it the module and the module's arguments."""


def offer_experts(forward: Forward) -> None:
    """Register ``forward`` with transformers under :data:`NAME`, now or when its module of experts is imported."""
    if MODULE in sys.modules:
        _register(importlib.import_module(MODULE), forward)  # also waits for a thread that is still importing it
    else:
        sys.meta_path.insert(0, _Finder(forward))


class _Finder:
    """Finder of that one module: it delegates to the other finders and registers moec after the module has run."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != MODULE:
            return None
        behind = sys.meta_path[sys.meta_path.index(self) + 1 :]  # type: ignore[arg-type]
        finders = (finder for finder in behind if hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _HookingLoader(spec.loader, self)  # type: ignore[assignment]
        return spec


class _HookingLoader:
    """The module's own loader, followed by the registration."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self._loader, self._finder = loader, finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: Any) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register(module, self._finder.forward)
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(self._finder)  # type: ignore[arg-type]


def _register(module: Any, forward: Forward) -> None:
    """Register moec. A table of another form is left alone: transformers then reports an unknown implementation."""
    register = getattr(getattr(module, "ExpertsInterface", None), "register", None)
    if register is not None:
        register(NAME, forward)

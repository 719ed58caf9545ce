"""moec: a compiler for Mixture-of-Experts graphs.

>>> import moec
>>> model = moec.compile("model.onnx")
>>> outputs = model.run({"input_ids": ids})
>>> model.save("model.moec")
>>> model = moec.load("model.moec")

Everything is imported when first used, so ``import moec`` costs nothing. It makes the name ``moec`` known to
transformers as an implementation of experts, whichever of the two is imported first.
"""

from __future__ import annotations

import importlib
import pathlib
from typing import TYPE_CHECKING, Any

from moec.common.transformers_hook import offer_experts
from moec.common.version import VERSION

if TYPE_CHECKING:
    from moec import torch as torch
    from moec.artifacts.loading import load
    from moec.common.errors import (
        ArtifactError,
        DefectError,
        InputError,
        MoecError,
        OptionError,
        UnsupportedError,
        VerificationError,
    )
    from moec.compiling.compiler import compile, import_model
    from moec.exploring.explore import explore
    from moec.exporting.driver import export
    from moec.runtime.batch import Batch
    from moec.runtime.generation import generate
    from moec.runtime.model import CompiledModel
    from moec.runtime.projects import CompiledProjects
    from moec.runtime.prompt_row import Generation
    from moec.runtime.session import Session
    from moec.tools.bench import bench
    from moec.tools.evaluate import evaluate
    from moec.tools.planning import plan
    from moec.tools.profiling.driver import profile
    from moec.tools.sweeping.driver import sweep
    from moec.tools.tune import tune
    from moec.tools.verify import verify

__version__ = VERSION
__all__ = [
    "ArtifactError",
    "Batch",
    "CompiledModel",
    "CompiledProjects",
    "DefectError",
    "Generation",
    "InputError",
    "MoecError",
    "OptionError",
    "Session",
    "UnsupportedError",
    "VerificationError",
    "bench",
    "compile",
    "evaluate",
    "explore",
    "export",
    "generate",
    "import_model",
    "load",
    "plan",
    "profile",
    "sweep",
    "tune",
    "verify",
]

_HOMES = {
    **dict.fromkeys(["compile", "import_model"], "moec.compiling.compiler"),
    "Batch": "moec.runtime.batch",
    "CompiledModel": "moec.runtime.model",
    "CompiledProjects": "moec.runtime.projects",
    "load": "moec.artifacts.loading",
    "Generation": "moec.runtime.prompt_row",
    "generate": "moec.runtime.generation",
    "Session": "moec.runtime.session",
    "bench": "moec.tools.bench",
    "evaluate": "moec.tools.evaluate",
    "explore": "moec.exploring.explore",
    "export": "moec.exporting.driver",
    "plan": "moec.tools.planning",
    "profile": "moec.tools.profiling.driver",
    "sweep": "moec.tools.sweeping.driver",
    "tune": "moec.tools.tune",
    "verify": "moec.tools.verify",
}
"""Modules of the names that are imported when first used; names of errors are in moec.common.errors."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(_HOMES.get(name, "moec.common.errors")), name)
    if name == "torch":
        return importlib.import_module("moec.torch")
    raise AttributeError(f"module 'moec' has no attribute {name!r}")


_CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
if (_CHECKOUT / "passes" / "raise_moe.py").is_file() and (_CHECKOUT / "pyproject.toml").is_file():
    # passes/, simulators/ and targets/ are next to moec/ in a checkout; an installed moec has them inside.
    __path__.append(str(_CHECKOUT))


def _forward_of_experts(*arguments: Any) -> Any:
    from moec.torch.eager_experts import forward

    return forward(None, *arguments)


offer_experts(_forward_of_experts)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

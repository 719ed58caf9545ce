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

from moec.transformers_hook import offer_experts

if TYPE_CHECKING:
    from moec import torch as torch
    from moec.compiler import compile, import_model
    from moec.errors import (
        ArtifactError,
        DefectError,
        InputError,
        MoecError,
        OptionError,
        UnsupportedError,
        VerificationError,
    )
    from moec.runtime.generation import Generation, generate
    from moec.runtime.model import CompiledModel, load
    from moec.runtime.session import Session

__version__ = "0.1.0"
__all__ = [
    "ArtifactError",
    "CompiledModel",
    "DefectError",
    "Generation",
    "InputError",
    "MoecError",
    "OptionError",
    "Session",
    "UnsupportedError",
    "VerificationError",
    "compile",
    "generate",
    "import_model",
    "load",
]

_HOMES = {
    "moec.compiler": ("compile", "import_model"),
    "moec.runtime.model": ("CompiledModel", "load"),
    "moec.runtime.generation": ("Generation", "generate"),
    "moec.runtime.session": ("Session",),
    "moec.errors": (
        "ArtifactError",
        "DefectError",
        "InputError",
        "MoecError",
        "OptionError",
        "UnsupportedError",
        "VerificationError",
    ),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    if name == "torch":
        return importlib.import_module("moec.torch")
    raise AttributeError(f"module 'moec' has no attribute {name!r}")


_CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
if (_CHECKOUT / "passes" / "raise_moe.py").is_file() and (_CHECKOUT / "pyproject.toml").is_file():
    # passes/, simulators/ and targets/ are next to moec/ in a checkout; an installed moec has them inside.
    __path__.append(str(_CHECKOUT))

offer_experts()


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

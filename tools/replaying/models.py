"""The models that are recorded: small ones of this repository, and files of the user's."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
SUFFIXES = (".onnx", ".gguf")


@dataclasses.dataclass(frozen=True)
class Model:
    """A model to record. ``file`` takes an empty folder, in which it may write the model, and returns the model's file.
    ``options``: fields of :class:`moec.compiling.compile_options.CompileOptions`."""

    file: Callable[[pathlib.Path], pathlib.Path]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def repository_models() -> dict[str, Model]:
    """Models of this repository by name: examples as they are and rounded, and small models of the tests, which go
    through each front end that needs no PyTorch and most operators."""
    char_lm, digits, vision_moe = (Existing(ROOT / "examples" / name / "model.onnx") for name in EXAMPLES)
    return {
        "char_lm": Model(char_lm),
        "char_lm-O3-int8": Model(char_lm, {"passes": "O3", "experts": "int8", "linears": "int8"}),
        "digits": Model(digits),
        "digits-int4": Model(digits, {"experts": "int4", "linears": "int8"}),
        "digits-fp8": Model(digits, {"experts": "fp8", "arithmetic": "fp8"}),
        "vision_moe": Model(vision_moe),
        "vision_block": Model(vision_block),
        **{f"gguf/{name}": Model(Gguf(name, kind)) for name, kind in GGUF.items()},
        **{f"seeds/{name}": Model(Seed(name)) for name in tests("mutants.seeds").own_seeds()},
        **{f"dispatched/{name}": Model(Dispatched(name)) for name in DISPATCHED},
    }


EXAMPLES = ("char_lm", "digits", "vision_moe")
GGUF = {"mixtral": "Q8_0", "gpt-oss": "MXFP4", "deepseek2": "F32"}
"""Names of the tests' tiny models, with the format of their matrices."""
DISPATCHED = ("shared base with low rank", "zero, copy and constant")


def chosen_models(asked: Sequence[str]) -> dict[str, Model]:
    """The models that are asked for, by names of :func:`repository_models` and paths; all of the repository where
    nothing is asked for. A folder stands for all files in it. Raises ValueError for what is neither, for folders
    without models, and for two models of one name."""
    of_repository = repository_models()
    chosen: dict[str, Model] = {} if asked else of_repository
    for text in asked:
        path = pathlib.Path(text)
        if text in of_repository:
            named = {text: of_repository[text]}
        elif path.is_dir():
            named = {name_of(file, path): Model(Existing(file)) for file in files_in(path)}
        elif path.is_file():
            named = {name_of(path, path.parent.parent): Model(Existing(path.resolve()))}
        else:
            raise ValueError(
                f"model {text!r} is not there; expected a file, a folder, or one of: {', '.join(of_repository)}"
            )
        if not named:
            raise ValueError(f"folder {text!r} has no model; expected files named *{' or *'.join(SUFFIXES)} in it")
        if twice := chosen.keys() & named.keys():
            raise ValueError(f"two models are called {min(twice)!r}; record them into separate folders")
        chosen |= named
    return chosen


def files_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of models at any depth."""
    return sorted(file.resolve() for file in folder.rglob("*") if file.suffix in SUFFIXES and file.is_file())


def name_of(file: pathlib.Path, folder: pathlib.Path) -> str:
    """The path from a folder to a model, without its suffix: ``gpt_oss`` for ``gpt_oss/model.onnx``."""
    path = file.resolve().relative_to(folder.resolve()).with_suffix("")
    return (path.parent if path.name == "model" and path.parent.name else path).as_posix()


@dataclasses.dataclass(frozen=True)
class Existing:
    """A model that is a file already."""

    path: pathlib.Path

    def __call__(self, folder: pathlib.Path) -> pathlib.Path:
        return self.path


@dataclasses.dataclass(frozen=True)
class Gguf:
    """A tiny GGUF file of the tests, whose matrices are in the format ``kind``."""

    name: str
    kind: str

    def __call__(self, folder: pathlib.Path) -> pathlib.Path:
        return tests("frontend.gguf.tiny_models").write_model(self.name, folder / "model.gguf", self.kind)


@dataclasses.dataclass(frozen=True)
class Seed:
    """A model of one group of operators, of those that mutants are made of."""

    name: str

    def __call__(self, folder: pathlib.Path) -> pathlib.Path:
        seeds = tests("mutants.seeds")
        for name, content in seeds.own_seeds()[self.name].items():
            (folder / name).write_bytes(content)
        return folder / seeds.MODEL


@dataclasses.dataclass(frozen=True)
class Dispatched:
    """Experts that are a graph over dispatched rows."""

    name: str

    def __call__(self, folder: pathlib.Path) -> pathlib.Path:
        import onnx_ir

        cases = tests("targets.dispatched_cases")
        onnx_ir.save(cases.model_of(cases.FORMS[self.name]), folder / "model.onnx")
        return folder / "model.onnx"


def vision_block(folder: pathlib.Path) -> pathlib.Path:
    """The example's block in small sizes, with its calibration data."""
    import numpy as np
    import onnx

    spec = importlib.util.spec_from_file_location("vision_block_export", ROOT / "examples/vision_block/export.py")
    assert spec is not None and spec.loader is not None
    export = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(export)
    sizes = export.Sizes(tokens=17, width=32, heads=2, hidden=48, experts=4, slots=2)
    onnx.save(export.build(sizes), folder / "model.onnx")
    np.savez(folder / "calibration.npz", x=export.sample(sizes))
    return folder / "model.onnx"


def tests(module: str) -> ModuleType:
    """A module of this checkout's tests."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(f"tests.{module}")

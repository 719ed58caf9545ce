"""The kinds of files that the command line reads: intact ones, their damage, and the commands that read them."""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import random
from collections.abc import Callable

Commands = list[list[str]]

MODULES = {
    "onnx": "onnx_files",
    "external": "onnx_files",
    "gguf": "gguf_files",
    "config": "folders",
    "safetensors": "folders",
    "tokenizer": "texts",
    "template": "texts",
    "text": "texts",
    "npz": "measured",
    "moeprof": "measured",
    "plan": "measured",
    "artifact": "archives",
}
"""By the name of a kind: the module beside this one that has it, in ``KINDS``."""


@dataclasses.dataclass(frozen=True)
class InputKind:
    """``prepare`` writes intact files into an empty folder, once. ``damage`` changes a copy of the folder and says how.
    ``commands`` are the command lines that read it, without ``moec``."""

    prepare: Callable[[pathlib.Path], None]
    damage: Callable[[pathlib.Path, random.Random], str]
    commands: Callable[[pathlib.Path, random.Random], Commands]


def kind_named(name: str) -> InputKind:
    module = importlib.import_module(f"{__package__}.{MODULES[name]}")
    return module.KINDS[name]

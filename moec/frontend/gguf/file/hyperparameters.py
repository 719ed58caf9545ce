"""Hyperparameters of an architecture in a file's metadata; those that no builder asks for are refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from moec.common.errors import MoecError, UnsupportedError
from moec.frontend.gguf.file.reader import GgufFile

_HARMLESS = ("context_length", "vocab_size", "rope.scaling.finetuned", "tensor_data_layout")
"""Hyperparameters that do not affect what is computed, unless a builder asks for them."""
_LARGEST = 1 << 31
_MOST_LAYERS = 1024


class Hyperparameters:
    """Hyperparameters of the file's architecture ``name``: metadata keys ``name.key``, called ``key`` here."""

    def __init__(self, file: GgufFile) -> None:
        """Raises MoecError for a file that names no architecture."""
        self.where = str(file.path)
        name = file.metadata.get("general.architecture")
        if not isinstance(name, str):
            raise MoecError(f"{self.where}: has no general.architecture; expected the metadata of a model")
        self.architecture = name
        self._values = {
            key.removeprefix(f"{name}."): value for key, value in file.metadata.items() if key.startswith(f"{name}.")
        }
        self._unasked = set(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def whole(self, key: str, default: int | None = None, least: int = 1) -> int:
        """Read a whole number. Raises MoecError where it is missing or below ``least``."""
        value = self._get(key, default)
        if type(value) is not int or not least <= value < _LARGEST:
            raise self._wrong(key, value, f"a whole number from {least} on")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Read a finite number, which files hold as a float32. Raises MoecError where it is missing."""
        value = self._get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self._wrong(key, value, "a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if type(value) is not bool:
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        value = self._get(key, default)
        if type(value) is not str:
            raise self._wrong(key, value, "text")
        return value

    def by_layer(self, key: str, layers: int, default: int | None = None, least: int = 1) -> list[int]:
        """Read a whole number for each layer; a file may hold one for all."""
        value = self._get(key, default)
        if not isinstance(value, np.ndarray):
            return [self.whole(key, default, least)] * layers
        if value.dtype.kind not in "iub" or len(value) < layers or (value < least).any():
            raise self._wrong(key, value.tolist(), f"{layers} whole numbers from {least} on")
        return [int(number) for number in value[:layers]]

    def listed(self, key: str) -> np.ndarray | None:
        """Read an array of numbers. Returns None where the value is something else, or missing."""
        value = self._get(key, None)
        return value if isinstance(value, np.ndarray) else None

    def layers(self) -> int:
        """Count the layers: ``block_count`` without those that predict further tokens, which logits do not need."""
        count, further = self.whole("block_count"), self.whole("nextn_predict_layers", 0, least=0)
        if not further < count <= _MOST_LAYERS:
            raise self._wrong("block_count", count, f"{further + 1} to {_MOST_LAYERS}")
        return count - further

    def check_all_asked(self) -> None:
        """Raise UnsupportedError for a hyperparameter that no builder asked for."""
        left = sorted(self._unasked - set(_HARMLESS))
        if left:
            value = str(self._values[left[0]])[:60]
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            raise UnsupportedError(
                f"{self.where}: {self.architecture}.{left[0]} = {value}: moec does not know what this hyperparameter "
                f"does to a model of {self.architecture}{more}"
            )

    def refuse(self, key: str, *harmless: Any) -> None:
        """Raise UnsupportedError where the key has a value that is not one of ``harmless``."""
        value = self._get(key, harmless[0])
        if isinstance(value, np.ndarray) or value not in harmless:
            raise UnsupportedError(f"{self.where}: {self.architecture}.{key} = {str(value)[:60]} is not supported")

    def _get(self, key: str, default: Any) -> Any:
        self._unasked.discard(key)
        return self._values.get(key, default)

    def _wrong(self, key: str, value: Any, expected: str) -> MoecError:
        actual = "missing" if value is None else str(value)[:60]
        return MoecError(f"{self.where}: {self.architecture}.{key} is {actual}; expected {expected}")

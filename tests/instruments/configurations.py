"""Random configurations: a value for each choice, drawn, and made simpler as long as they fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Choices = Mapping[str, Sequence[Any]]
"""What each choice may be, the simplest first."""
Configuration = dict[str, Any]


def drawn(choices: Choices, generator: np.random.Generator) -> Configuration:
    """Every choice is its simplest half of the time: few things at once are what models ask for."""
    return {
        name: values[0] if len(values) == 1 or generator.random() < 0.5 else values[generator.integers(1, len(values))]
        for name, values in choices.items()
    }


def shrunk(configuration: Configuration, choices: Choices, fails: Callable[[Configuration], bool]) -> Configuration:
    """A configuration that fails too, none of whose choices can be simpler."""
    for simpler in _simpler(configuration, choices):
        if fails(simpler):
            return shrunk(simpler, choices, fails)
    return configuration


def _simpler(configuration: Configuration, choices: Choices) -> Iterator[Configuration]:
    for name, values in choices.items():
        for value in values[: values.index(configuration[name])]:
            yield configuration | {name: value}

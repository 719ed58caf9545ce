"""Settings of the emulator's tests: they need a C++ compiler."""

from __future__ import annotations

import pathlib
import shutil

import pytest


def skip_without_compiler(items: list[pytest.Item], folder: pathlib.Path) -> None:
    if shutil.which("g++") is None:
        for item in items:
            if folder in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="g++ is not installed"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_without_compiler(items, pathlib.Path(__file__).parent)

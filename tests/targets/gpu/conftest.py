"""Kernels for GPUs run in the emulator, which needs a C++ compiler."""

from __future__ import annotations

import pathlib

import pytest

from ...simulators.cuda.conftest import skip_without_compiler


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_without_compiler(items, pathlib.Path(__file__).parent / "kernels")

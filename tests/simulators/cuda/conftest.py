"""Settings of the emulator's tests: they need a C++ compiler, and compute little."""

from __future__ import annotations

import functools
import pathlib
import shutil

import pytest

from moec.simulators.cuda import device, emulated_library


def skip_without_compiler(items: list[pytest.Item], folder: pathlib.Path) -> None:
    if shutil.which("g++") is None:
        for item in items:
            if folder in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="g++ is not installed"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_without_compiler(items, pathlib.Path(__file__).parent)


@pytest.fixture(autouse=True)
def soon_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile kernels quickly instead of to fast code, since compiling takes longer than running."""
    monkeypatch.setattr(device, "emulated_library", functools.partial(emulated_library, soon_ready=True))

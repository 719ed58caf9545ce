from __future__ import annotations

import pytest

import moec

from .served import compiled


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> moec.CompiledModel:
    return compiled(tmp_path_factory.mktemp("letters"))

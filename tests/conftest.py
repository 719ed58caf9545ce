"""``golden``: compare a text with a file under tests/golden; ``--update-golden`` writes the files anew."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

GOLDEN = pathlib.Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the files under tests/golden anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden(name, text)``: the text must equal the file ``tests/golden/<name>``."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.write_text(text)
        assert path.exists(), f"{path.name} is missing; run pytest --update-golden and review it"
        assert text == path.read_text(), f"{path.name} differs; run pytest --update-golden and review the change"

    return check

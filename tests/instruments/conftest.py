"""``worker``: a process in which instruments run what may crash, one for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..isolated import Worker
from .outcomes import started_worker


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    worker = started_worker()
    yield worker
    worker.close()

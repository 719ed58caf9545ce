"""Sixteen threads that call a model at once, for a while, nightly; tests/runtime/test_workers.py has a second of it."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import moec
from tests.instruments.artifacts import make_base

CALLERS, SECONDS = 16, 8


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.mark.nightly
@pytest.mark.parametrize("shared", [True, False], ids=["one model", "a model each"])
@pytest.mark.parametrize("threads", [1, 2, None])
def test_all_are_right_and_served_alike(base, threads, shared):
    """Callers of a few and of many rows by turns, so that calls go both ways."""
    one, alone = moec.load(base, threads=threads), moec.load(base, threads=1)
    models = [one if shared else moec.load(base, threads=threads) for _ in range(CALLERS)]
    generator, runs, wrong = np.random.default_rng(0), [0] * CALLERS, [0] * CALLERS
    sizes = [1 + caller if caller % 2 else 3000 for caller in range(CALLERS)]
    values = [
        {"ids": generator.integers(0, 11, (n, 2)), "x": generator.standard_normal((n, 2, 8)).astype(np.float32)}
        for n in sizes
    ]
    expected = [alone.run(value)["y"] for value in values]
    end, before = time.monotonic() + SECONDS, threading.active_count()

    def call(caller: int) -> None:
        while time.monotonic() < end:
            wrong[caller] += not np.array_equal(models[caller].run(values[caller])["y"], expected[caller])
            runs[caller] += 1

    callers = [threading.Thread(target=call, args=(caller,)) for caller in range(CALLERS)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    assert sum(wrong) == 0
    assert threading.active_count() <= before + 1  # the pool
    if shared:
        assert min(runs) >= sum(runs) / CALLERS / 3, runs

"""Workers without work sleep soon, so that other programs can have the cores."""

from __future__ import annotations

import time

import numpy as np
import pytest

from moec.common.cores import available_cores

TEXT = "agraph (float[R,1024] x) => (float[R,1024] y) { y = Exp (x) }"


@pytest.mark.skipif(len(available_cores()) < 2, reason="one core: no workers")
def test_workers_sleep_soon_after_a_run(program_of, runner_of):
    run = runner_of(program_of(TEXT))
    for _ in range(3):
        run({"x": np.ones((1024, 1024), np.float32)})
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.08

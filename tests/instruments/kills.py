"""Processes that are killed while they compile or save: the old artifact stays whole, and what they leave is swept.

python -m tests.instruments.kills 40 --seed 3
"""

from __future__ import annotations

import argparse
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

import moec
from moec.runtime.artifact import open_artifact
from tests.instruments.artifacts import make_base

SAVE = """
import sys, moec
model = moec.load(sys.argv[1])
print("ready", flush=True)
while True:
    model.save(sys.argv[2])
"""
COMPILE = """
import sys, moec
from tests.instruments.artifacts import make_model
model = make_model()
moec.compile(model, output=sys.argv[2])
print("ready", flush=True)
while True:
    moec.compile(model, output=sys.argv[2])
"""


def kill_once(program: str, source: pathlib.Path, path: pathlib.Path, seconds: float) -> str | None:
    """Let a program write to ``path`` again and again, kill it some time after the first, and say what is wrong."""
    with subprocess.Popen([sys.executable, "-c", program, str(source), str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
    if process.returncode != -signal.SIGKILL:
        return f"it ended by itself: {process.returncode}"
    left = [name for name in os.listdir(path.parent) if name.startswith(".moec-unfinished")]
    if len(left) > 1:
        return f"it left {left}"
    open_artifact(path)  # raises where it is not whole
    values = {"ids": np.zeros((2, 2), np.int64), "x": np.ones((2, 2, 8), np.float32)}
    if not np.array_equal(moec.load(path).run(values)["y"], moec.load(source).run(values)["y"]):
        return "the artifact computes something else"
    moec.load(source).save(path)
    after = sorted(os.listdir(path.parent))
    return None if after == [path.name] else f"the next write left {after}"


def sweep(count: int, seed: int, folder: pathlib.Path) -> list[str]:
    """Describe the failures after ``count`` kills."""
    source, generator = make_base(folder), random.Random(seed)
    failures = []
    for index in range(count):
        program = COMPILE if index % 4 == 3 else SAVE
        place = folder / "out" / ("a.zip" if generator.random() < 0.3 else "a.moec")
        place.parent.mkdir()
        moec.load(source).save(place)
        seconds = generator.random() * (4 if program is COMPILE else 0.3)
        wrong = kill_once(program, source, place, seconds)
        if wrong:
            failures.append(f"kill {index} of seed {seed}, after {seconds:.3f} s, {place.name}: {wrong}")
        shutil.rmtree(place.parent)
    return failures


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        failures = sweep(arguments.count, arguments.seed, pathlib.Path(name))
    print(*failures, f"kills {arguments.count}, pass {arguments.count - len(failures)}", sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

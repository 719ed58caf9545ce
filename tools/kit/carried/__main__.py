"""The runner of the kit: takes the steps of a call that have no result yet, and writes the report after each.

    ./run.sh 1                  # then 2 and 3; again to go on where a call was cut
    ./run.sh 1 --emulate        # without a GPU: what the emulator can do
    ./run.sh 1 --again          # also the steps that failed or took too long
    ./run.sh 1 --only "layer"   # the steps whose names begin so

Leaves ``report.json`` and ``report.txt`` (``emulated`` with --emulate). Ends with 0 where no
step failed, with 1 where one did, with 2 where it cannot run.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import json
import os
import pathlib
import sys
import threading
import time
from typing import Any

from .contents import unpacked
from .present import absent_reason
from .steps import ABSENT, FAILED, PASSED, TIMED_OUT, FirstLightReport, FirstLightStep, take
from .texts import write_text

MINUTES = 8.0
_LEAST = 15.0
"""Seconds that have to be left for a step to begin."""
_MARK = "moec_kit"
_SIDE_BY_SIDE = 8
_SLOWER = 4
"""Times as long as on a GPU that a step may take in the emulator."""
HERE = pathlib.Path(__file__).resolve().parent.parent


class Call:
    """One call: its steps under the time that is left."""

    def __init__(self, asked: argparse.Namespace, report: FirstLightReport, folder: pathlib.Path) -> None:
        self._asked, self._report, self._folder = asked, report, folder
        self._plan: list[dict[str, Any]] = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        self._end = time.monotonic() + 60 * asked.minutes
        self._lock = threading.Lock()
        self.left = 0

    def take_all(self) -> None:
        """Take the steps in their order; those of a group side by side."""
        steps_of_call = [step for step in self._plan if step["call"] == self._asked.call and self._is_wanted(step)]
        for together, steps in itertools.groupby(steps_of_call, key=lambda step: step["together"]):
            workers = _SIDE_BY_SIDE if together else 1
            with concurrent.futures.ThreadPoolExecutor(min(workers, os.cpu_count() or 1)) as pool:
                list(pool.map(self._take, steps))

    def _is_wanted(self, step: dict[str, Any]) -> bool:
        outcome = self._report.results.get(step["name"], {}).get("outcome")
        final = (PASSED,) if self._asked.again else (PASSED, FAILED, TIMED_OUT)
        return step["name"].startswith(self._asked.only) and outcome not in final

    def _take(self, step: dict[str, Any]) -> None:
        own = step["seconds"] * (_SLOWER if self._asked.emulate else 1)
        seconds = min(own, self._end - time.monotonic())
        if seconds < min(_LEAST, own):
            with self._lock:
                self.left += 1
            return
        result = take(self._process(step, seconds))
        with self._lock:
            if result["outcome"] == TIMED_OUT and seconds < own:
                self.left += 1  # the call ended, not the step's own time
                return
            self._report.add(step["name"], result)
            write_text(self._asked.report.with_suffix(".txt"), self._report.results, self._plan)
            outcome = result["outcome"] + (f": {result['output']}" if result["outcome"] == ABSENT else "")
            print(f"{outcome:14} {result['seconds']:7.1f} s  {step['name']}", flush=True)

    def _process(self, step: dict[str, Any], seconds: float) -> FirstLightStep:
        emulated = ["--emulate"] if self._asked.emulate and step["emulated"] else []
        command = [sys.executable, "-m", f"carried.{step['module']}", "--folder", str(self._folder), *emulated]
        command += step["arguments"]
        paths = os.pathsep.join([str(HERE), str(self._folder / "python")])
        absent = None if emulated else absent_reason(step["needs"])
        return FirstLightStep(step["name"], command, seconds, HERE, absent, {"PYTHONPATH": paths})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("call", type=int, choices=(1, 2, 3))
    parser.add_argument("--emulate", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--only", default="", metavar="BEGINNING")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--report", type=pathlib.Path)
    asked = parser.parse_args()
    asked.report = asked.report or HERE / ("emulated.json" if asked.emulate else "report.json")
    try:
        folder = unpacked(HERE)
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        report = FirstLightReport(asked.report, _MARK, {**about, "emulated": asked.emulate})
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    call = Call(asked, report, folder)
    call.take_all()
    outcomes = [result["outcome"] for result in report.results.values()]
    counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in (PASSED, FAILED, TIMED_OUT, ABSENT))
    left = f"; {call.left} steps are left: repeat ./run.sh {asked.call}" if call.left else ""
    print(f"{counts}{left}; the report: {asked.report.with_suffix('.txt')}")
    return 1 if FAILED in outcomes or TIMED_OUT in outcomes else 0


if __name__ == "__main__":
    sys.exit(main())

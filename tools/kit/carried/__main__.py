"""The runner of the kit: takes the steps of a call that have no result yet, and writes the report after each.

    ./run.sh 1                  # then 2 and 3; again to go on where a call was cut
    ./run.sh 1 --emulate        # without a GPU: what the emulator can do
    ./run.sh 1 --again          # also the steps that failed or took too long
    ./run.sh 1 --only "layer"   # the steps whose names begin so
    ./run.sh 1 --work DIR       # writes there instead of into the kit's own folder

Leaves ``report.json`` and for each call a text, ``report.1.txt`` (``emulated`` with --emulate). Ends with 0 where no
step of the call failed, with 1 where one did, with 2 where it cannot run or write, and with 128 and the signal's number
where one stopped it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import fcntl
import itertools
import json
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from .contents import unpacked
from .places import RUNNER
from .present import absent_reason
from .steps import ABSENT, FAILED, PASSED, TIMED_OUT, FirstLightReport, FirstLightStep, stop_all, take
from .texts import counts_text, write_text

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

    def __init__(self, asked: argparse.Namespace, report: FirstLightReport, folder: pathlib.Path, end: float) -> None:
        """``end``: when the call has to have ended, on the monotonic clock."""
        self._asked, self._report, self._folder = asked, report, folder
        plan: list[dict[str, Any]] = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        self._plan = [step for step in plan if step["call"] == asked.call]
        self._end = end
        self._lock = threading.Lock()
        self._left = 0
        self._error: OSError | None = None
        """Why the report could not be written."""
        self._signal = 0
        self._text = asked.report.with_suffix(f".{asked.call}.txt")

    def take_all(self) -> int:
        """Take the steps in their order; those of a group side by side. Returns the exit code."""
        steps_of_call = [step for step in self._plan if self._is_wanted(step)]
        for together, steps in itertools.groupby(steps_of_call, key=lambda step: step["together"]):
            workers = _SIDE_BY_SIDE if together else 1
            with concurrent.futures.ThreadPoolExecutor(min(workers, os.cpu_count() or 1)) as pool:
                list(pool.map(self._take, steps))
        left = f"; {self._left} steps are left: repeat ./run.sh {self._asked.call}" if self._left else ""
        _say(f"{counts_text(self._report.results, self._plan)}{left}; the report: {self._text}")
        failed = [
            step["name"] for step in self._plan if not step["apart"] and self._outcome(step) in (FAILED, TIMED_OUT)
        ]
        if self._error is not None:
            print(f"error: the report was not written: {self._error}", file=sys.stderr)
        return 128 + self._signal if self._signal else 2 if self._error else 1 if failed else 0

    def stop(self, number: int, _frame: Any) -> None:
        """End what runs: a handler of signals."""
        self._signal = number
        stop_all()

    def _outcome(self, step: dict[str, Any]) -> str | None:
        return self._report.results.get(step["name"], {}).get("outcome")

    def _is_wanted(self, step: dict[str, Any]) -> bool:
        final = (PASSED,) if self._asked.again else (PASSED, FAILED, TIMED_OUT)
        return step["name"].startswith(self._asked.only) and self._outcome(step) not in final

    def _take(self, step: dict[str, Any]) -> None:
        own = step["seconds"] * (_SLOWER if self._asked.emulate else 1)
        seconds = min(own, self._end - time.monotonic())
        if self._signal or seconds < min(_LEAST, own):
            with self._lock:
                self._left += 1
            return
        result = take(self._process(step, seconds))
        with self._lock:
            if self._signal or (result["outcome"] == TIMED_OUT and seconds < own):
                self._left += 1  # the call ended, not the step's own time
                return
            self._note(step["name"], result)
            outcome = result["outcome"] + (f": {result['output']}" if result["outcome"] == ABSENT else "")
            _say(f"{outcome:14} {result['seconds']:7.1f} s  {step['name']}")

    def _note(self, name: str, result: dict[str, Any]) -> None:
        """Write the report. Where that fails, the steps go on: what they print is then all that is left of them."""
        try:
            self._report.add(name, result)
            write_text(self._text, self._report.results, self._plan, self._report.about)
            self._error = None
        except OSError as error:
            self._error = error
            print(result["output"], file=sys.stderr, flush=True)

    def _process(self, step: dict[str, Any], seconds: float) -> FirstLightStep:
        emulated = ["--emulate"] if self._asked.emulate and step["emulated"] else []
        command = [sys.executable, "-m", f"carried.{step['module']}", "--folder", str(self._folder), *emulated]
        command += step["arguments"]
        paths = [str(HERE), str(self._folder / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
        absent = None if emulated else absent_reason(step["needs"])
        environment = {"PYTHONPATH": os.pathsep.join(paths), RUNNER: str(os.getpid())}
        return FirstLightStep(step["name"], command, seconds, HERE, absent, environment)


def _say(text: str) -> None:
    """Print a line, or none where nobody reads them any more: the report has what they say."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _alone(work: pathlib.Path) -> Iterator[None]:
    """Context of the only call in a folder. Raises ValueError while another one runs, OSError where nothing can be
    written."""
    with open(work / "lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{work}: another call runs there; wait for its end, or choose another --work") from error
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("call", type=int, choices=(1, 2, 3))
    parser.add_argument("--emulate", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--only", default="", metavar="BEGINNING")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--work", type=pathlib.Path, default=HERE, metavar="DIR")
    parser.add_argument("--report", type=pathlib.Path, help="by default in the folder of --work")
    asked = parser.parse_args()
    end = time.monotonic() + 60 * asked.minutes
    asked.work = asked.work.resolve()
    asked.report = (asked.report or asked.work / ("emulated.json" if asked.emulate else "report.json")).resolve()
    try:
        asked.work.mkdir(parents=True, exist_ok=True)
        with _alone(asked.work):
            folder = unpacked(HERE, asked.work)
            about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
            report = FirstLightReport(asked.report, _MARK, {**about, "emulated": asked.emulate})
            call = Call(asked, report, folder, end)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores one
                    signal.signal(number, call.stop)
            return call.take_all()
    except (OSError, ValueError) as error:
        is_room = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        hint = "; choose another folder by --work DIR" if is_room else ""
        print(f"error: {error}{hint}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the call's own handler of signals
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())

"""Map of the tests that execute each line of moec's code, with their times: one run of the tests under coverage.py.

python -m tests.instruments.executed                       # a map of all tests
python -m tests.instruments.executed tests/ir tests/cli    # adds these tests to the map

The map is in .mutation/, which git ignores; :mod:`tests.instruments.mutations` reads it. A test's lines are those of
its fixtures, and of the processes that it starts, too. Code that runs once for several tests (module bodies,
cached functions, fixtures of a wider scope) counts for the first one.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("moec", "passes", "simulators", "targets")
MAP = ROOT / ".mutation"
LINES, SECONDS, SOURCES = MAP / "lines", MAP / "seconds.json", MAP / "sources.json"
QUICK = "not nightly and not slow"
"""The tests that a map is made of, and that mutants have to pass."""

_SETTINGS = f"""[run]
source = {",".join(str(ROOT / folder) for folder in FOLDERS)}
data_file = ${{MOEC_LINES}}
parallel = true
context = ${{MOEC_TEST-}}
disable_warnings = no-data-collected, module-not-imported
"""


class Executed:
    """Contents of a map. ``seconds``: the time of each test that passed."""

    def __init__(self) -> None:
        from coverage import CoverageData

        if not SECONDS.exists():
            raise SystemExit("no map of what tests execute: python -m tests.instruments.executed [FOLDER ...] makes it")
        self._data = CoverageData(basename=str(LINES))
        self._data.read()
        self.seconds: Mapping[str, float] = json.loads(SECONDS.read_text())
        self._sources = json.loads(SOURCES.read_text())

    @functools.lru_cache(maxsize=16)  # noqa: B019 - one map per process
    def of(self, path: pathlib.Path) -> Mapping[int, set[str]]:
        """The tests by the lines of a file that they execute; a line that runs on import alone has none."""
        result = self._data.contexts_by_lineno(str(path))
        return {line: {test for test in tests if test in self.seconds} for line, tests in result.items()}

    def is_of(self, path: pathlib.Path) -> bool:
        """Whether the file is still the one that the tests executed, so that its lines are those of the map."""
        return self._sources.get(str(path.relative_to(ROOT))) == _digest(path)


def _digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _PerTest:
    """A pytest plugin: coverage's context is the test that runs, here and in the processes that it starts."""

    def __init__(self) -> None:
        from coverage import Coverage

        self._coverage = Coverage.current()
        self._failed: set[str] = set()
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        assert self._coverage is not None
        self._coverage.switch_context(item.nodeid)
        os.environ["MOEC_TEST"] = item.nodeid
        started = time.monotonic()
        yield
        self._coverage.switch_context("")
        if item.nodeid not in self._failed:
            self.seconds[item.nodeid] = time.monotonic() - started

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self._failed.add(report.nodeid)


def _run(tests: list[str]) -> int:
    """The tests under coverage, in this process."""
    plugin = _PerTest()
    os.environ["COVERAGE_PROCESS_START"] = os.environ["MOEC_SETTINGS"]
    result = pytest.main(["-q", "-p", "no:cacheprovider", "-m", QUICK, *tests], plugins=[plugin])
    known = json.loads(SECONDS.read_text()) if SECONDS.exists() else {}
    SECONDS.write_text(json.dumps(known | plugin.seconds, indent=0))
    return int(result)


def main() -> int:
    """Run the tests of the command line in a process under coverage, and add what they execute to the map."""
    MAP.mkdir(exist_ok=True)
    now = {str(p.relative_to(ROOT)): _digest(p) for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))}
    before = json.loads(SOURCES.read_text()) if SOURCES.exists() else now
    SOURCES.write_text(json.dumps({path: it if before.get(path) == it else "changed" for path, it in now.items()}))
    coverage = [sys.executable, "-m", "coverage"]
    with tempfile.TemporaryDirectory() as folder:
        settings, lines = pathlib.Path(folder, "coveragerc"), pathlib.Path(folder, "lines")
        settings.write_text(_SETTINGS)
        environment = os.environ | {"MOEC_SETTINGS": str(settings), "MOEC_LINES": str(lines)}
        run = [*coverage, "run", f"--rcfile={settings}", "-m", "tests.instruments.executed", "--here", *sys.argv[1:]]
        result = subprocess.run(run, cwd=ROOT, env=environment, check=False).returncode
        subprocess.run([*coverage, "combine", "-q", "--append", f"--data-file={LINES}", folder], cwd=ROOT, check=True)
    return result


if __name__ == "__main__":
    sys.exit(_run(sys.argv[2:]) if sys.argv[1:2] == ["--here"] else main())

"""``golden``: compare a text with a file under tests/golden; ``--update-golden`` writes the files anew.
``in_pool``: run something with a given number of threads. ``in_python_threads``: run something in several at once.
``char_lm``: the example model, compiled once. ``chromium``: one browser for all tests of a process."""

from __future__ import annotations

import functools
import gc
import inspect
import os
import pathlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from moec.common.child import Limits, RefusedError
from moec.common.garbage import collect_less_often
from moec.frontend.onnx import onnx_program

from .exploring.browser import browser
from .parsed_scripts import frames_of_files, read_macros_once, read_translations_once

if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker has one core. A thread per core in each of them spins while it waits for the others: a third of the time
    # of tests that call PyTorch. Libraries read this when they are imported, here and in processes of tests.
    os.environ.setdefault("MKL_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

inspect.stack = frames_of_files

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "char_lm"
GOLDEN = pathlib.Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the files under tests/golden anew")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Modules and tests stay to the end, so Python's collector need not look at them, nor as often at what is new: that
    took a fifth of the time of tests that trace or raise models."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
        collect_less_often()


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


@pytest.fixture(scope="session", autouse=True)
def in_a_hurry() -> None:
    """Have this process compile emulated kernels in less time to slower code, time models in few runs without pauses,
    and measure memory by 8 MiB of it: tests compute little, and look at no figures. Do not wait until the disk has each
    artifact."""
    from moec.simulators.cuda import device
    from moec.targets.cpu import roofline
    from moec.tools import bench

    vars(device)["emulated_library"] = functools.partial(device.emulated_library, soon_ready=True)
    read_macros_once()
    read_translations_once()
    vars(os)["fsync"] = lambda _file: None
    vars(roofline)["MEMORY_BYTES"] = 1 << 23
    vars(bench).update(_PAUSE=0.0, _ROUNDS_AT_MOST=vars(bench)["_ROUNDS_AT_LEAST"])


IN_A_PROCESS = {"cli", "common", "frontend", "instruments", "mutants", "onnx_nodes"}
"""Folders of tests of importing and of commands, and of instruments that damage models."""


@pytest.fixture(scope="module", autouse=True)
def onnx_in_this_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """Except in the folders IN_A_PROCESS, convert and check models by ONNX in this process; a process for each was a
    thirtieth of all time."""
    from moec.frontend.onnx import onnx_process

    with pytest.MonkeyPatch.context() as patch:
        if request.path.relative_to(pathlib.Path(__file__).parent).parts[0] not in IN_A_PROCESS:
            patch.setattr(onnx_process, "run_child", _converted_here)
        yield


def _converted_here(_program: pathlib.Path, message: bytes, _limits: Limits, *arguments: str) -> bytes:
    """The result of ONNX's program of :mod:`moec.frontend.onnx.onnx_process`, whose arguments these are."""
    from onnx import onnx_cpp2py_export

    _extension, version, target = arguments
    try:
        return onnx_program.converted(onnx_cpp2py_export, message, version, target)
    except Exception as error:
        raise RefusedError(type(error).__name__, str(error)) from error


@pytest.fixture(scope="session")
def in_pool() -> Callable[[int, Callable[[], Any]], Any]:
    """``in_pool(count, work)``: the result of ``work()`` with exactly ``count`` threads, on however few cores."""
    from moec.runtime.library import load_ffi
    from moec.runtime.workers import run_with

    def run(count: int, work: Callable[[], Any]) -> Any:
        def checked() -> Any:
            assert load_ffi().get_global_func("runtime.NumThreads")() == count
            return work()

        return run_with(count, checked)

    return run


@pytest.fixture(scope="session")
def in_python_threads() -> Callable[[int, Callable[[int], Any]], list[Any]]:
    """``in_python_threads(count, work)``: the results of ``work(0)`` to ``work(count - 1)``, run side by side."""

    def run(count: int, work: Callable[[int], Any]) -> list[Any]:
        with ThreadPoolExecutor(count) as workers:
            return list(workers.map(work, range(count)))

    return run


@pytest.fixture(scope="session")
def char_lm(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The artifact of the model in examples/char_lm."""
    import moec

    path = tmp_path_factory.mktemp("char_lm") / "char_lm.moec"
    moec.compile(EXAMPLE / "model.onnx", output=path)
    return path


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser; the test is skipped where there is none. Playwright allows a process only one."""
    with browser() as started:
        yield started

"""The command line in a process of its own, by ``moec(...)``.

The process is a fork of a server that has already imported the modules of all commands: imports would be most of the
cost of a small command, and tests run hundreds of them. Run as a program, this module is that server. Tests that depend
on the imports start a new process (``START``)."""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import pathlib
import pkgutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

_NEW = os.O_WRONLY | os.O_CREAT
START = [sys.executable, "-c", "from moec.__main__ import main; main()"]
"""Command line of a new process, for tests of signals, closed outputs and the time until help is printed."""


def moec(*arguments: object, input: str = "") -> subprocess.CompletedProcess[str]:
    """Run ``moec`` with these arguments and ``input``. Returns its output and exit code."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: os.path.join(folder, name) for name in ("stdin", "stdout", "stderr")}
        pathlib.Path(files["stdin"]).write_text(input)
        request = {
            "arguments": [str(argument) for argument in arguments],
            "files": files,
            "cwd": os.getcwd(),
            "env": dict(os.environ),
        }
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        printed, said = (pathlib.Path(files[name]).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(request["arguments"], code, printed, said)


@functools.cache
def _server() -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    atexit.register(process.stdin.close)
    return process


def hurry() -> None:
    """Have this process compile emulated kernels in less time to slower code, and time models in few runs without
    pauses: tests compute little, and look at no figures."""
    from moec.simulators.cuda import device
    from moec.tools import bench

    vars(device)["emulated_library"] = functools.partial(device.emulated_library, soon_ready=True)
    vars(bench).update(_PAUSE=0.0, _ROUNDS_AT_MOST=vars(bench)["_ROUNDS_AT_LEAST"])


def _serve() -> None:
    """Answer each request of :func:`moec`, a line of standard input, with the exit code of a fork that runs it."""
    import onnxruntime  # noqa: F401
    import tvm  # noqa: F401

    import moec.cli.main
    import moec.compiler
    import moec.frontend.gguf.model
    import moec.ir
    import moec.passes
    import moec.runtime.model
    import moec.targets.cpu
    import moec.targets.tvm

    for package in (moec.ir, moec.passes, moec.targets.cpu, moec.targets.tvm):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    hurry()
    gc.freeze()  # the collector of a fork need not scan these objects
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(json.loads(line))
            _end(moec.cli.main.main)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=replies, flush=True)


def _become(request: Mapping[str, Any]) -> None:
    """Take on the folder, environment, arguments and files of a request."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = ["moec", *request["arguments"]]
    for number, (name, flags) in enumerate([("stdin", os.O_RDONLY), ("stdout", _NEW), ("stderr", _NEW)]):
        os.dup2(os.open(request["files"][name], flags, 0o600), number)


def _end(main: Callable[[], None]) -> NoReturn:
    """End the process with the exit code of ``main``, without tearing down imports, which takes most of a second."""
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()

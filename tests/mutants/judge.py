"""What moec makes of one model: run in a process of its own, for models that hang, crash or fill the memory.

``python -m tests.mutants.judge FD`` answers requests on a connection. A request is the files of a model. Answers are
("stage", name) as work goes on, so that a death says what it died of, and at last ("verdict", status, message).
"""

from __future__ import annotations

import os
import pathlib
import resource
import sys
import tempfile
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from .seeds import MODEL, Files

MEMORY_BYTES = 4 << 30
Verdict = tuple[str, str]


def judge(files: Files, stage: Any = lambda _name: None) -> Verdict:
    """(status, message). Statuses: ``match``, ``refused``, ``unchecked`` (onnxruntime has no answer to compare with),
    and the failures ``wrong``, ``internal``, ``memory``, ``message`` (not one line that names the file)."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (pathlib.Path(folder) / name).write_bytes(data)
        return _judge_file(pathlib.Path(folder) / MODEL, stage)


def _judge_file(path: pathlib.Path, stage: Any) -> Verdict:
    import moec
    from moec.errors import MoecError

    stage("compile")
    try:
        compiled = moec.compile(path, threads=1)
    except MoecError as error:
        return _refusal(error, str(path))
    except Exception as error:
        return "internal", f"raw {type(error).__name__}: {error}"
    stage("run")
    cases = []
    for feeds in _feeds(compiled):
        try:
            cases.append((feeds, compiled.run(feeds)))
        except MoecError as error:
            verdict = _refusal(error, "")
            if verdict[0] != "refused":
                return verdict
        except Exception as error:
            return "internal", f"run: raw {type(error).__name__}: {error}"
    if not cases:
        return "refused", "on every input that was tried"
    stage("reference")
    return _compare(path, cases)


def _refusal(error: Exception, where: str) -> Verdict:
    from moec.errors import DefectError

    message = str(error)
    if isinstance(error, DefectError):
        return "internal", message
    if "there is not enough memory" in message:
        return "memory", message
    if "\n" in message or len(message) > 1500 or not message.startswith(where):
        return "message", message
    return "refused", message.removeprefix(where)


def _feeds(compiled: Any) -> list[dict[str, np.ndarray]]:
    """Inputs of two sizes, of at most a million elements."""
    from moec.sampling import random_inputs, size_cases

    feeds = []
    for number, sizes in enumerate(size_cases(compiled.inputs, (1, 3, 2), (1, 2, 3), compiled.input_sizes)[:2]):
        counts = [
            np.prod([sizes.get(s, s) if isinstance(s, str) else s for s in one.shape], dtype=object)
            for one in compiled.inputs
        ]
        if all(isinstance(count, int) and count < 1 << 20 for count in counts):
            feeds.append(random_inputs(compiled.inputs, sizes, compiled.input_limits, number))
    return feeds


def _compare(path: pathlib.Path, cases: list[tuple[dict[str, np.ndarray], dict[str, Any]]]) -> Verdict:
    from moec.errors import MoecError
    from moec.verify import compare, open_session, run_session

    try:
        session = open_session(path, threads=1)
    except MoecError as error:
        return "unchecked", str(error)
    compared = 0
    for feeds, found in cases:
        try:
            expected, again = run_session(session, feeds), run_session(session, feeds)
        except MoecError as error:
            reason = str(error)
            continue
        for name, value in expected.items():
            if not isinstance(value, np.ndarray) or not np.array_equal(
                value, again[name], equal_nan=value.dtype.kind in "fc"
            ):
                return "unchecked", f"{name} is not deterministic"
            difference = compare(name, np.asarray(found[name]), value, 1e-3)
            compared += 1
            if not difference.matches:
                return (
                    "wrong",
                    f"{name}: {difference.note or difference.absolute} for {[v.shape for v in feeds.values()]}",
                )
    return ("match", "") if compared else ("unchecked", reason)


def serve(connection: Connection) -> None:
    """Answer requests until the other side closes the connection."""
    import onnxruntime
    import tvm  # noqa: F401

    del onnxruntime
    used = sum(
        int(line.split()[1]) << 10
        for line in pathlib.Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmData")
    )
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection.send(("stage", "ready"))
    while True:
        try:
            files = connection.recv()
        except EOFError:
            return
        connection.send(("verdict", *judge(files, lambda name: connection.send(("stage", name)))))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    serve(Connection(int(sys.argv[1])))

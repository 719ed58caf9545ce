"""Work in separate processes that stay: each message has its answer, whatever others did to the process."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import pathlib
import signal
import time

import pytest

from moec.common.child import Limits, LostError, RefusedError
from moec.common.resident_child import ResidentChild

AMPLE = Limits(seconds=20, memory=1 << 28)
PROGRAM = """
import os, sys, time
def main(message):
    word, _, rest = message.partition(b" ")
    if word == b"pid":
        time.sleep(float(rest or 0))
        return str(os.getpid()).encode()
    if word == b"raise":
        raise KeyError("why")
    if word == b"fill":
        return b"a" * 10**9
    if word == b"spin":
        until = time.process_time() + float(rest)
        while time.process_time() < until:
            pass
    if word == b"exit":
        os._exit(9)
    print("not the answer")
    return rest
"""


@pytest.fixture
def program(tmp_path) -> pathlib.Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_messages_have_one_process(program):
    child = ResidentChild(program, AMPLE)
    first = child.run(b"pid")
    content = bytes(range(256)) * 2**13
    assert child.run(b"echo " + content) == content
    with pytest.raises(RefusedError, match="why"):
        child.run(b"raise")
    assert child.run(b"pid") == first != str(os.getpid()).encode()


def test_messages_at_once_have_processes_of_their_own(program):
    child = ResidentChild(program, AMPLE)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        first = set(threads.map(child.run, [b"pid 0.5"] * 2))
        assert len(first) == 2 and set(threads.map(child.run, [b"pid 0.5"] * 2)) == first


@pytest.mark.parametrize(
    ("message", "limits", "reason"),
    [
        (b"fill", AMPLE, "needs more than 256 MB of memory"),
        (b"exit", AMPLE, "ends its process with exit code 9"),
        (b"spin 9", Limits(1, 1 << 28), "does not end within 1 s"),
        (b"pid 9", Limits(0.1, 1 << 28), r"does not end within 0\.1 s"),
    ],
)
def test_what_ends_a_process_is_told_and_others_are_answered(program, message, limits, reason):
    child = ResidentChild(program, limits)
    for _ in range(2):
        assert child.run(b"echo a") == b"a"
        with pytest.raises(LostError, match=f"^{reason}$"):
            child.run(message)


def test_a_process_that_ended_meanwhile_is_replaced(program):
    child = ResidentChild(program, AMPLE)
    first = int(child.run(b"pid"))
    os.kill(first, signal.SIGKILL)
    assert child.run(b"echo a") == b"a" and int(child.run(b"pid")) != first


def test_many_messages_do_not_use_up_the_time_of_one(program):
    child = ResidentChild(program, Limits(1, 1 << 28))
    processes = []
    for _ in range(4):
        child.run(b"spin 0.3")
        processes.append(child.run(b"pid"))
    assert 1 < len(set(processes)) <= 4


def test_processes_end_with_their_runner(program):
    child = ResidentChild(program, AMPLE)
    process = int(child.run(b"pid"))
    assert is_running(process)
    del child
    gc.collect()
    assert not is_running(process)


def test_a_fork_leaves_the_process_to_the_one_that_started_it(program):
    child = ResidentChild(program, AMPLE)
    before = child.run(b"pid")
    forked = os.fork()
    if not forked:
        status = 1
        try:
            status = int(child.run(b"pid") == before)
        finally:
            os._exit(status)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(forked, os.WNOHANG)) == (0, 0):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended[1]) == 0 and child.run(b"pid") == before

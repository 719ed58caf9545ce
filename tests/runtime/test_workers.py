"""Threads that kernels run in: launching, turns, forks, and limits of the system."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from moec.artifacts.loading import load
from moec.common.cores import available_cores
from moec.common.errors import MoecError
from moec.runtime import workers
from moec.runtime.library import load_ffi
from moec.runtime.workers import FairLock, Launcher, run_with

several_cores = pytest.mark.skipif(len(available_cores()) < 2, reason="one core: no pool")


def in_a_thread(work) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def threads_of_this_process() -> int:
    return len(os.listdir("/proc/self/task"))


def test_a_pool_serves_all_callers_with_one_thread():
    names: list[str] = []
    for _ in range(3):
        in_a_thread(lambda: names.append(run_with(3, lambda: threading.current_thread().name)))
    assert names == ["moec-3"] * 3
    assert run_with(3, lambda: run_with(3, threading.current_thread)) is run_with(3, threading.current_thread)
    assert run_with(1, threading.current_thread) is threading.current_thread()


def test_errors_of_work_come_back():
    for count in (1, 2):
        with pytest.raises(ZeroDivisionError):
            run_with(count, lambda: 1 // 0)
        assert run_with(count, lambda: "fine") == "fine"


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("threads", [1, None])
def test_threads_that_called_a_model_leave_none_behind(pristine_artifact, inputs, threads):
    model = load(pristine_artifact, threads=threads)
    many = {**inputs, "x": np.ones((20_000, 4), np.float32), "ids": np.zeros((20_000, 0), np.int64)}
    model.run(many)
    before = threads_of_this_process()
    for _ in range(4):
        callers = [threading.Thread(target=lambda: model.run(many)) for _ in range(16)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    end = time.monotonic() + 5  # the system's thread ends shortly after Python's
    while threads_of_this_process() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threads_of_this_process() <= before


def test_turns_come_in_the_order_of_those_who_wait():
    turns, order = FairLock(), []
    turns.take()

    def wait(number: int) -> None:
        with turns:
            order.append(number)

    callers = []
    for number in range(5):
        callers.append(threading.Thread(target=wait, args=(number,)))
        callers[-1].start()
        while len(turns._waiting) <= number:
            time.sleep(0.001)
    turns.give()
    for caller in callers:
        caller.join()
    assert order == list(range(5))


@pytest.mark.parametrize("passed_on", [False, True])
def test_an_interrupted_waiter_keeps_nobody_waiting(monkeypatch, passed_on):
    """The turn may or may not have come when it was interrupted."""
    turns = FairLock()
    turns.take()

    class Interrupted:
        acquired = 0

        def acquire(self):
            self.acquired += 1
            if self.acquired == 2:
                if passed_on:
                    turns.give()
                raise KeyboardInterrupt

        def release(self):
            pass

    lock = threading.Lock
    monkeypatch.setattr(workers.threading, "Lock", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        turns.take()
    monkeypatch.setattr(workers.threading, "Lock", lock)
    if not passed_on:
        turns.give()
    in_a_thread(lambda: turns.take())


@pytest.mark.parametrize("threads", [1, None])
def test_sixteen_threads_at_once_are_right_and_each_gets_its_share(pristine_artifact, inputs, threads):
    model, end = load(pristine_artifact, threads=threads), time.monotonic() + 1
    runs, wrong = [0] * 16, [0] * 16
    start = threading.Barrier(16)

    def call(caller: int) -> None:
        values = {**inputs, "x": np.full((3 + caller, 4), caller, np.float32), "ids": np.zeros((3 + caller, 1), int)}
        expected = (values["x"] + np.arange(4, dtype=np.float32)) * inputs["scale"].astype(np.float32)
        start.wait()
        while time.monotonic() < end:
            wrong[caller] += not np.array_equal(model.run(values)["y"], expected)
            runs[caller] += 1

    callers = [threading.Thread(target=call, args=(caller,)) for caller in range(16)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert sum(wrong) == 0
    assert min(runs) >= sum(runs) / 16 / 3, runs


@several_cores
def test_callers_of_the_pool_and_others_are_served_alike():
    """A caller of the pool waits for its turn itself, so that all callers of the pool do not count as one."""
    launcher, runs, end = Launcher(2, has_team=False), [0] * 8, time.monotonic() + 0.5

    def call(caller: int) -> None:
        while time.monotonic() < end:
            if caller % 2:
                with launcher.turns:
                    time.sleep(0.001)
            else:
                launcher.run(lambda: time.sleep(0.001))
            runs[caller] += 1

    callers = [threading.Thread(target=call, args=(caller,)) for caller in range(8)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert min(runs) > max(runs) / 2, runs


@pytest.mark.parametrize(("count", "has_team"), [(1, True), (2, True), (2, False)])
def test_the_calling_thread_launches_what_follows_a_short_run_where_there_is_a_team(count, has_team, monkeypatch):
    launcher, seen, clock = Launcher(count, has_team=has_team), [], [0.0]
    monkeypatch.setattr(workers.time, "perf_counter", lambda: clock[0])

    def work(seconds: float) -> None:
        clock[0] += seconds
        seen.append(threading.current_thread() is threading.main_thread())

    for seconds in (0, 0, 0.11, 0, 0):
        launcher.run(lambda seconds=seconds: work(seconds))
    here = has_team and count > 1
    assert seen == [count == 1, count == 1 or here, count == 1 or here, count == 1, count == 1 or here]


@pytest.mark.parametrize("count", [1, 2])
def test_an_interruption_after_the_turn_has_come_gives_it_back(count, monkeypatch):
    launcher = Launcher(count, has_team=True)
    launcher.run(lambda: None)
    take = FairLock.take

    def interrupted(turns: FairLock) -> None:
        take(turns)
        raise KeyboardInterrupt

    monkeypatch.setattr(FairLock, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        launcher.run(lambda: None)
    monkeypatch.undo()
    in_a_thread(lambda: launcher.run(lambda: None))


def test_a_run_that_is_handed_over_when_an_interruption_comes_is_done_once_or_not_at_all(monkeypatch):
    """In both cases the next caller gets its turn afterwards."""
    launcher, done = Launcher(2, has_team=False), []
    submit = workers._Pool.submit

    def interrupted(pool, job) -> None:
        submit(pool, job)
        raise KeyboardInterrupt

    monkeypatch.setattr(workers._Pool, "submit", interrupted)
    for number in range(20):
        with pytest.raises(KeyboardInterrupt):
            launcher.run(lambda number=number: done.append(number))
    monkeypatch.undo()
    in_a_thread(lambda: launcher.run(lambda: done.append(20)))
    assert done == sorted(set(done)) and done[-1] == 20


def test_a_run_in_a_run_keeps_its_threads():
    single, three = Launcher(1, has_team=False), Launcher(3, has_team=False)
    seen = []

    def outer() -> None:
        three.run(lambda: seen.append(workers._state.count))
        single.run(lambda: single.run(lambda: None))
        seen.append(workers._state.count)

    run_with(2, outer)
    assert seen == [3, 2]
    assert run_with(2, load_ffi().get_global_func("runtime.NumThreads")) == 2


def test_runs_with_as_many_threads_take_turns_and_those_inside_a_run_are_a_part_of_it():
    first, other, order = Launcher(2, has_team=True), Launcher(2, has_team=True), []
    in_turn = threading.Event()

    def outer() -> None:
        in_turn.set()
        time.sleep(0.02)
        other.run(lambda: order.append("inner"))
        order.append("outer")

    for _ in range(2):  # by the pool, and by the calling thread
        caller = threading.Thread(target=lambda: first.run(outer))
        caller.start()
        assert in_turn.wait(10)
        in_a_thread(lambda: other.run(lambda: order.append("next")))
        caller.join()
        in_turn.clear()
    assert order == ["inner", "outer", "next"] * 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("threads", [1, None])
def test_a_forked_child_calls_the_model(pristine_artifact, threads):
    program = """
import os, sys, threading, time
import ml_dtypes, numpy as np
import moec
model = moec.load(sys.argv[1], threads=eval(sys.argv[2]))
values = {"x": np.ones((20_000, 4), np.float32), "scale": np.ones(4, ml_dtypes.bfloat16)}
values["ids"] = np.zeros((20_000, 1), int)
expected = model.run(values)["y"]
stop = threading.Event()
def call():
    while not stop.is_set():
        model.run(values)
callers = [threading.Thread(target=call, daemon=True) for _ in range(3)]
for one in callers:
    one.start()
statuses = []
for _ in range(5):
    child = os.fork()
    if child == 0:  # where the other callers, and whoever waits for a turn, are missing
        sys.exit(0 if np.array_equal(model.run(values)["y"], expected) else 1)
    statuses.append(os.waitpid(child, 0)[1])
    assert np.array_equal(model.run(values)["y"], expected)
stop.set()
print(statuses)
"""
    command = [sys.executable, "-c", program, str(pristine_artifact), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[0, 0, 0, 0, 0]\n", done.stderr


def test_too_few_threads_are_one_line(monkeypatch):
    class Refused(threading.Thread):
        def start(self):
            if threading.active_count() > most:
                raise RuntimeError("can't start new thread")
            super().start()

    most = threading.active_count() + 3
    monkeypatch.setattr(workers.threading, "Thread", Refused)
    with pytest.raises(MoecError, match=r"9 threads cannot be started: .*\(ulimit -u.*use threads=1"):
        run_with(9, lambda: None)
    assert threading.active_count() <= most  # those that did start have ended
    monkeypatch.undo()
    assert run_with(9, lambda: 9) == 9


INTERRUPTED = """
import os, signal, threading, time
from moec.runtime.workers import run_with

def interrupt():
    time.sleep(0.2)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background is born ignoring it
threading.Thread(target=interrupt).start()
done = []
try:
    run_with(2, lambda: (time.sleep(20), done.append("work")))
except KeyboardInterrupt:
    print("interrupted before the end" if not done else "interrupted after the end", flush=True)
os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="signals a process that computes")
def test_waiting_for_the_pool_is_interrupted_at_once():
    """It runs in a process of its own, because libraries of other tests change the handling of signals."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60)
    assert done.stdout == "interrupted before the end\n", done.stderr

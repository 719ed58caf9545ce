"""First calls of several threads: one of them computes the result, and a fork waits for it."""

from __future__ import annotations

import os
import threading
import time

import pytest

from moec.common.once import once, one_at_a_time


def at_once(work, count=8):
    """Run ``work`` in threads at the same time and return the results."""
    results, barrier = [], threading.Barrier(count)

    def call():
        barrier.wait()
        results.append(work())

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_threads_that_call_first_get_one_result():
    @once
    def make(name, *, size=0):
        time.sleep(0.02)
        return object()

    assert len(set(at_once(lambda: make("a")))) == 1
    assert make("a") is make("a")
    assert len({make("a"), make("b"), make("a", size=1)}) == 3


def test_first_calls_may_call_each_other():
    @once
    def inner():
        return object()

    @once
    def outer():
        return inner()

    assert at_once(outer)[0] is inner()


def test_a_call_that_raises_is_made_again():
    calls = []

    @once
    def make():
        calls.append(1)
        if len(calls) == 1:
            raise ValueError
        return "made"

    with pytest.raises(ValueError):
        make()
    assert (make(), make(), len(calls)) == ("made", "made", 2)


def test_one_thread_is_in_such_functions_at_a_time():
    inside, most = [], []

    @one_at_a_time
    def inner():
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()

    @one_at_a_time
    def outer():
        inner()

    at_once(lambda: (inner(), outer()), count=4)
    assert most == [1] * 8


@pytest.mark.parametrize("guard", [once, one_at_a_time])
def test_a_fork_waits_and_its_child_can_go_on(guard):
    begun, ended = threading.Event(), []

    def slow():
        begun.set()
        time.sleep(0.1)
        ended.append(1)

    thread = threading.Thread(target=guard(slow))
    thread.start()
    begun.wait()
    child = os.fork()
    if child == 0:
        os._exit(len(ended) + guard(lambda: 4)())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    thread.join()

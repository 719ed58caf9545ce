"""Jobs in this process, in workers and on executors: results in their order, and what becomes of one whose process
ends."""

from __future__ import annotations

import concurrent.futures
import operator
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import Future

import pytest

from moec.common.arguments import check_path
from moec.common.errors import MoecError
from moec.common.jobs import MOST_SUBMITTED, Job, JobRunner, job_runner

from ..command import hear_interrupts


def job(expression: str, name: str = "a job") -> Job:
    """A job that evaluates an expression, in whose place a crash may stand."""
    return Job(name, eval, (expression,))


KILLED = "__import__('signal').raise_signal(9)"
REFUSED = "(_ for _ in ()).throw(__import__('moec.common.child').common.child.RefusedError('kind', 'no reason'))"
"""Raises an exception that pickle writes and cannot read."""


@pytest.fixture(scope="module")
def workers():
    """Two processes that all tests share."""
    with job_runner(workers=2) as runner:
        yield runner


class EveryOther(concurrent.futures.Executor):
    """An executor that is nothing but PEP 3148, and loses a job, without running it, as often as is said."""

    def __init__(self, lost: int = 0) -> None:
        self.lost, self.submitted, self.cancelled = lost, 0, 0

    def submit(self, function, /, *arguments, **options):
        assert not options
        self.submitted += 1
        future: Future = Future()
        if self.lost:
            self.lost -= 1
            future.set_exception(OSError("the machine is gone"))
        else:
            future.set_result(function(*arguments))
        return future


def test_a_job_here_runs_when_its_result_is_asked_for():
    seen: list[int] = []
    with job_runner() as runner:
        assert runner.is_here
        results = runner.results(Job("append", seen.append, (number,)) for number in range(3))
        assert seen == []
        next(results)
        assert seen == [0]


def test_results_come_in_the_order_of_the_jobs(workers: JobRunner):
    slow_first = [job(f"(__import__('time').sleep({0.05 * (number < 1)}), {number})[1]") for number in range(5)]
    assert list(workers.results(slow_first)) == [0, 1, 2, 3, 4]


def test_outcomes_come_as_they_are_ready(workers: JobRunner):
    slow_first = [job(f"__import__('time').sleep({seconds})") for seconds in (0.4, 0, 0)]
    assert [number for number, _ in workers.outcomes(slow_first)][-1] == 0


def test_jobs_run_in_processes_of_their_own(workers: JobRunner):
    assert os.getpid() not in set(workers.results(Job("pid", os.getpid) for _ in range(3)))


def test_threads_call_jobs_at_the_same_time(workers: JobRunner):
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(lambda n: workers.call(Job("product", operator.mul, (n, 2))), range(9))) == 72


@pytest.mark.parametrize("where", ["here", "workers", "executor"])
def test_the_error_of_the_first_job_in_order_is_raised(where: str, workers: JobRunner):
    runner = {"here": JobRunner(None, 0), "workers": workers, "executor": JobRunner(EveryOther(), 2)}[where]
    failing = [job("__import__('time').sleep(0.05)"), Job("check", check_path, ("first", 3)), job("1/0")]
    results = runner.results(failing)
    next(results)
    with pytest.raises(MoecError, match=r"^first is 3 of type int; expected"):
        next(results)


def test_an_error_shows_where_it_was_raised(workers: JobRunner):
    with pytest.raises(ZeroDivisionError) as caught:
        workers.call(job("1/0"))
    assert "in _outcome_of" in str(caught.value.__cause__)


def test_an_error_that_cannot_be_pickled_is_told_in_words(workers: JobRunner):
    with pytest.raises(RuntimeError, match=r"^RefusedError: no reason$"):
        workers.call(job(REFUSED))


def test_a_process_that_ends_costs_its_job_alone(workers: JobRunner):
    jobs = [job("11"), job(KILLED, "variant 2"), job("33"), job("44")]
    outcomes = dict(workers.outcomes(jobs))
    assert [outcomes[number].value for number in (0, 2, 3)] == [11, 33, 44]
    with pytest.raises(
        MoecError, match=r"^variant 2: the process that ran it ended twice \(exit code -9\); if memory ran out"
    ):
        outcomes[1].result()
    assert workers.call(job("55")) == 55


def test_a_job_whose_process_ends_once_runs_again(workers: JobRunner, tmp_path):
    mark = tmp_path / "ended"
    ends_once = f"__import__('os').path.exists({str(mark)!r}) or (open({str(mark)!r}, 'x'), {KILLED})"
    assert workers.call(job(ends_once)) is True


def test_an_executor_gets_a_lost_job_once_more():
    executor = EveryOther(lost=1)
    assert list(JobRunner(executor, 1).results([job("1"), job("2")])) == [1, 2]
    assert executor.submitted == 3


def test_an_executor_that_loses_a_job_twice_is_refused_by_the_name_of_the_job():
    with pytest.raises(MoecError, match=r"^layer 3: the process that ran it ended twice \(the machine is gone\)"):
        JobRunner(EveryOther(lost=2), 1).call(job("1", "layer 3"))


def test_an_executor_that_is_closed_is_refused_by_the_name_of_the_job():
    executor = concurrent.futures.ThreadPoolExecutor(1)
    executor.shutdown()
    with pytest.raises(MoecError, match=r"^layer 3: the executor takes no job \(cannot schedule new futures"):
        JobRunner(executor, 1).call(job("1", "layer 3"))


def test_jobs_that_have_not_begun_are_forgotten_after_an_error():
    begin, seen = threading.Event(), []
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        jobs = [job("1/0"), Job("wait", begin.wait, (20,)), Job("never", seen.append, (1,))]
        with pytest.raises(ZeroDivisionError):
            list(JobRunner(executor, 5).results(jobs))
        begin.set()
    assert seen == []


def test_at_most_so_many_results_wait():
    executor = EveryOther()
    results = JobRunner(executor, 2).results(job("1") for _ in range(9))
    next(results)
    assert executor.submitted == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, "workers is -1; expected a number of processes from 0"),
        ({"workers": True}, "workers is True"),
        ({"workers": 1.5}, "workers is 1.5"),
        ({"executor": map}, "executor is .+map.+; expected one with submit"),
        ({"workers": 2, "executor": EveryOther()}, "workers=2 and an executor were given; expected one"),
    ],
)
def test_other_values_are_refused(options: dict, message: str):
    with pytest.raises(MoecError, match=message), job_runner(**options):
        pass


def test_an_executor_stays_open():
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        with job_runner(executor=executor) as runner:
            assert runner.at_once == MOST_SUBMITTED and not runner.is_here
            assert runner.call(job("1")) == 1
        assert executor.submit(int).result() == 0


PARENT = """
import os, sys, threading, time
from moec.common.jobs import Job, job_runner

def main():
    with job_runner(workers=1) as runner:
        print(runner.call(Job("pid", os.getpid)), flush=True)
        if sys.argv[1] == "interrupt":
            threading.Timer(0.1, lambda: os.kill(os.getpid(), 2)).start()
        runner.call(Job("sleep", time.sleep, (60,)))

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("ending", ["interrupt", "kill"])
def test_no_process_stays_behind(ending: str, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PARENT))
    with subprocess.Popen(
        [sys.executable, program, ending], preexec_fn=hear_interrupts, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as parent:
        worker = int(parent.stdout.readline())
        if ending == "kill":
            parent.kill()
        _, said = parent.communicate(timeout=60)
    assert parent.returncode == (-signal.SIGINT if ending == "interrupt" else -signal.SIGKILL)
    assert (b"KeyboardInterrupt" in said) == (ending == "interrupt")
    assert b"resource_tracker" not in said
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and os.path.exists(f"/proc/{worker}"):
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{worker}")

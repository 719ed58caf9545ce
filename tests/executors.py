"""Executors for jobs: one that pickles in this process, and those of other libraries."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from moec.common.jobs import JobExecutor


class Pickling(concurrent.futures.ThreadPoolExecutor):
    """Two threads that get jobs and give results as other processes do: pickled. ``submitted`` counts jobs."""

    def __init__(self) -> None:
        super().__init__(2)
        self.submitted = 0

    def submit(self, function, /, *arguments):
        self.submitted += 1
        return super().submit(self._run, pickle.dumps((function, arguments)))

    def _run(self, job: bytes) -> Any:
        function, arguments = pickle.loads(job)
        return pickle.loads(pickle.dumps(function(*arguments)))


class _Ray:
    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def submit(self, function, /, *arguments):
        return self._ray.remote(max_retries=0)(function).remote(*arguments).future()


@contextlib.contextmanager
def executor_of(library: str) -> Iterator[JobExecutor]:
    """Context with an executor of two processes. Skips the test where the library is not installed."""
    if library == "concurrent.futures":
        with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
            yield executor
    elif library == "dask":
        distributed = pytest.importorskip("distributed", reason='needs the extra "dask": pip install "moec[dask]"')
        options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
        with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
            yield client.get_executor(retries=0)
    else:
        ray = pytest.importorskip("ray", reason='needs the extra "ray": pip install "moec[ray]"')
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            yield _Ray(ray)
        finally:
            ray.shutdown()

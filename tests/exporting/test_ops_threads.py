"""Parallel loops of custom operators: as many parts as the session's threads need."""

from __future__ import annotations

import pathlib
import subprocess

import pytest

from moec.artifacts.c_form.form import library_files
from moec.common.errors import MoecError
from moec.exporting.custom_ops import ops_library

PROGRAM = r"""
#include "moec_ops.h"

#include <stdio.h>
#include <stdlib.h>

/* A session of some threads, which deal out the parts of a loop. */
static int thread_count, parts_run;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

typedef struct {
    void (*run)(void *, size_t);
    size_t first, total;
    void *data;
} share;

static void *work(void *argument) {
    share *own = argument;
    for (size_t part = own->first; part < own->total; part += (size_t)thread_count) own->run(own->data, part);
    return NULL;
}

static OrtStatus *parallel_for(const OrtKernelContext *context, void (*run)(void *, size_t), size_t total, size_t batch,
                               void *data) {
    pthread_t threads[8];
    share shares[8];
    (void)context, (void)batch;
    for (int at = 0; at < thread_count; at++) {
        shares[at] = (share){run, (size_t)at, total, data};
        pthread_create(threads + at, NULL, work, shares + at);
    }
    for (int at = 0; at < thread_count; at++) pthread_join(threads[at], NULL);
    return NULL;
}

static const OrtApi api = {.KernelContext_ParallelFor = parallel_for};
const OrtApi *moec_ops_api = &api;

moec_error moec_fail(moec_error error, const char *format, ...) {
    (void)format;
    return error;
}

static int body(int32_t part, void *group, void *closure) {
    (void)part, (void)group;
    pthread_mutex_lock(&mutex);
    parts_run += closure == &mutex;
    pthread_mutex_unlock(&mutex);
    return 0;
}

int main(int count, char **arguments) {
    int32_t seen = 1;
    thread_count = count > 1 ? atoi(arguments[1]) : 1;
    for (int turn = 0; turn < 5; turn++) {
        moec_ops_use_threads(NULL, &seen);
        parts_run = 0;
        if (moec_launch(body, &mutex, 0) != 0) return 1;
        printf("%d ", parts_run);
    }
    return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> pathlib.Path:
    try:
        tools = ops_library.find_tools()
    except MoecError as error:
        pytest.skip(str(error))
    place, library = tmp_path_factory.mktemp("ops"), pathlib.Path(ops_library.__file__).with_name("library")
    for name, content in library_files().items():
        (place / name).write_bytes(content)
    (place / "main.c").write_text(PROGRAM)
    sources = [place / "main.c", library / "moec_ops_threads.c"]
    options = [*tools.include, f"-I{place}", f"-I{library}", "-lpthread", "-o", place / "main"]
    subprocess.run([*tools.compilers.compiler, *sources, *options], check=True)
    return place / "main"


@pytest.mark.parametrize(("threads", "parts"), [(1, "4 4 4 4 4"), (3, "4 12 12 12 12"), (7, "4 16 28 28 28")])
def test_loops_have_four_parts_for_each_thread_once_it_was_seen(program, threads, parts):
    said = subprocess.run([program, str(threads)], capture_output=True, text=True, check=True).stdout
    assert said.strip() == parts

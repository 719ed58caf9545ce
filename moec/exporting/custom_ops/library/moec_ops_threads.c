/* Parallel loops on the threads of an ONNX Runtime session. This file takes the place of moec_team.c: a second team beside
 * the session's own, which spins between two operators, would compete with it for the cores.
 *
 * A session does not tell how many threads it has. A loop has several parts for each core, which threads take one by
 * one; what a part computes does not depend on who computes it. */

#define _GNU_SOURCE /* CPU_COUNT */

#include "moec_ops.h"

#include <sched.h>
#include <unistd.h>

enum { PARTS_PER_CORE = 4 };

typedef struct {
    void *sync;
    int32_t parts;
} moec_group;

typedef int moec_body(int32_t part, void *group, void *closure);

typedef struct {
    moec_body *body;
    void *closure;
    moec_group group;
} moec_parallel_loop;

static _Thread_local const OrtKernelContext *current;

void moec_ops_use_threads(const OrtKernelContext *context) { current = context; }

static void run_part(void *data, size_t part) {
    moec_parallel_loop *loop = data;
    loop->body((int32_t)part, &loop->group, loop->closure);
}

int moec_launch(moec_body *body, void *closure, int32_t asked) {
    (void)asked; /* checks are made before loops, so no part fails */
    int32_t parts = PARTS_PER_CORE * moec_core_count();
    moec_parallel_loop loop = {body, closure, {NULL, parts}};
    OrtStatus *status = moec_ops_api->KernelContext_ParallelFor(current, run_part, (size_t)parts, 0, &loop);
    if (status == NULL) return 0;
    moec_fail(MOEC_ERROR_DEFECT, "ONNX Runtime runs no loop: %s", moec_ops_api->GetErrorMessage(status));
    moec_ops_api->ReleaseStatus(status);
    return -1;
}

void moec_enter(moec_call *call) { (void)call; }

moec_error moec_leave(moec_call *call) { return call->error; }

int32_t moec_core_count(void) {
    static int32_t known; /* threads that come here together write the same number */
    int32_t count = __atomic_load_n(&known, __ATOMIC_RELAXED);
    cpu_set_t cores;
    if (count > 0) return count;
    count = sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
    count = count > 0 ? count : 1;
    __atomic_store_n(&known, count, __ATOMIC_RELAXED);
    return count;
}

moec_team *moec_team_new(int32_t count) {
    (void)count;
    return NULL; /* models are loaded with one thread */
}

void moec_team_free(moec_team *team) { (void)team; }

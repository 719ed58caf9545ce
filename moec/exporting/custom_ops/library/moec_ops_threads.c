/* Parallel loops on the threads of an ONNX Runtime session. This file takes the place of moec_team.c: a second team beside
 * the session's own, which spins between two operators, would compete with it for the cores.
 *
 * A session does not tell how many threads it has. A loop has several parts for each thread that a loop of the node was
 * seen to run on, which threads take one by one: so many that more threads find parts, and no more, for each takes some
 * 20 ns to hand out. What a part computes does not depend on who computes it, or on their number. */

#include "moec_ops.h"

#include <stdatomic.h>

enum { PARTS_PER_THREAD = 4 };

typedef struct {
    void *sync;
    int32_t parts;
} moec_group;

typedef int moec_body(int32_t part, void *group, void *closure);

typedef struct {
    moec_body *body;
    void *closure;
    moec_group group;
    uint64_t number;
    _Atomic int32_t threads; /* that have run a part */
} moec_parallel_loop;

static _Atomic uint64_t loops;
static _Thread_local uint64_t last; /* the number of the loop that this thread ran a part of */
static _Thread_local const OrtKernelContext *current;
static _Thread_local int32_t *seen;

void moec_ops_use_threads(const OrtKernelContext *context, int32_t *threads) { current = context, seen = threads; }

static void run_part(void *data, size_t part) {
    moec_parallel_loop *loop = data;
    if (last != loop->number) last = loop->number, atomic_fetch_add(&loop->threads, 1);
    loop->body((int32_t)part, &loop->group, loop->closure);
}

int moec_launch(moec_body *body, void *closure, int32_t asked) {
    (void)asked; /* checks are made before loops, so no part fails */
    int32_t parts = PARTS_PER_THREAD * *seen;
    moec_parallel_loop loop = {body, closure, {NULL, parts}, atomic_fetch_add(&loops, 1) + 1, 0};
    OrtStatus *status = moec_ops_api->KernelContext_ParallelFor(current, run_part, (size_t)parts, 0, &loop);
    if (status == NULL) {
        if (loop.threads > *seen) *seen = loop.threads;
        return 0;
    }
    moec_fail(MOEC_ERROR_DEFECT, "ONNX Runtime runs no loop: %s", moec_ops_api->GetErrorMessage(status));
    moec_ops_api->ReleaseStatus(status);
    return -1;
}

void moec_enter(moec_call *call) { (void)call; }

moec_error moec_leave(moec_call *call) { return call->error; }

int32_t moec_core_count(void) { return 1; } /* models are loaded with one thread */

moec_team *moec_team_new(int32_t count) {
    (void)count;
    return NULL;
}

void moec_team_free(moec_team *team) { (void)team; }

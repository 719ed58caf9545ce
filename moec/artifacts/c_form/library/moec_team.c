/* The threads of a model: a team that shares the parallel loops of kernels with the thread that runs the model.
 *
 * A kernel starts a loop by moec_launch(body, closure), which calls body(part, group, closure) for every part. Parts are
 * not dealt out beforehand: whoever runs takes the next one. What a part computes does not depend on who computes it.
 * A job is published as one number, the ticket: its count, its parts and the next part. To take a part is to add one to
 * the ticket; the fields of a job are read only by those who took a part of it, and are not replaced before all parts
 * are done. Workers spin while a program runs, and sleep in between. */

#define _GNU_SOURCE /* CPU_COUNT */

#include "moec_internal.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

enum {
    PARTS_PER_THREAD = 4, /* so that all threads end at the same time even if one begins late */
    LOOKS = 20000         /* times to look for work before sleeping: half a millisecond, the time between two steps */
};

typedef struct {
    void *sync;
    int32_t parts;
} moec_group;

typedef int moec_body(int32_t part, void *group, void *closure);

struct moec_team {
    _Alignas(MOEC_LINE) _Atomic uint64_t ticket; /* count << 32 | parts << 16 | next part */
    _Alignas(MOEC_LINE) _Atomic uint32_t done;   /* parts of the job that are done */
    _Alignas(MOEC_LINE) moec_body *body;
    void *closure;
    moec_group group;
    _Alignas(MOEC_LINE) _Atomic int32_t sleepers; /* workers that sleep, or are about to */
    _Atomic bool is_waiting;                      /* whether the launching thread sleeps */
    _Atomic bool stop;
    pthread_mutex_t mutex;
    pthread_cond_t work, finished;
    int32_t count, parts;
    pthread_t *workers;
};

static _Thread_local moec_team *current;

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static bool is_open(uint64_t ticket) { return (ticket & 0xffff) < (ticket >> 16 & 0xffff); }

static void take_parts(moec_team *team) {
    while (is_open(atomic_load(&team->ticket))) {
        uint64_t ticket = atomic_fetch_add(&team->ticket, 1);
        if (!is_open(ticket)) return;
        team->body((int32_t)(ticket & 0xffff), &team->group, team->closure);
        uint32_t done = atomic_fetch_add(&team->done, 1) + 1;
        if (done != (ticket >> 16 & 0xffff) || !atomic_load(&team->is_waiting)) continue;
        pthread_mutex_lock(&team->mutex);
        pthread_cond_signal(&team->finished);
        pthread_mutex_unlock(&team->mutex);
    }
}

static void sleep_until_there_is_work(moec_team *team) {
    pthread_mutex_lock(&team->mutex);
    atomic_fetch_add(&team->sleepers, 1);
    while (!is_open(atomic_load(&team->ticket)) && !atomic_load(&team->stop))
        pthread_cond_wait(&team->work, &team->mutex);
    atomic_fetch_sub(&team->sleepers, 1);
    pthread_mutex_unlock(&team->mutex);
}

static void *work(void *argument) {
    moec_team *team = argument;
    while (!atomic_load(&team->stop)) {
        take_parts(team);
        int looks = 0;
        while (looks < LOOKS && !is_open(atomic_load(&team->ticket)) && !atomic_load(&team->stop)) looks++, relax();
        if (looks == LOOKS) sleep_until_there_is_work(team);
    }
    return NULL;
}

static void wait_for(moec_team *team, uint32_t parts) {
    for (int looks = 0; looks < LOOKS; looks++, relax())
        if (atomic_load(&team->done) == parts) return;
    pthread_mutex_lock(&team->mutex);
    atomic_store(&team->is_waiting, true);
    while (atomic_load(&team->done) != parts) pthread_cond_wait(&team->finished, &team->mutex);
    atomic_store(&team->is_waiting, false);
    pthread_mutex_unlock(&team->mutex);
}

int moec_launch(moec_body *body, void *closure, int32_t asked) {
    (void)asked; /* checks are made before loops, so no part fails */
    moec_team *team = current;
    if (team == NULL) return body(0, &(moec_group){NULL, 1}, closure);
    team->body = body, team->closure = closure, team->group = (moec_group){NULL, team->parts};
    atomic_store(&team->done, 0);
    uint64_t count = (atomic_load(&team->ticket) >> 32) + 1;
    atomic_store(&team->ticket, count << 32 | (uint64_t)team->parts << 16);
    if (atomic_load(&team->sleepers)) {
        pthread_mutex_lock(&team->mutex);
        pthread_cond_broadcast(&team->work);
        pthread_mutex_unlock(&team->mutex);
    }
    take_parts(team);
    wait_for(team, (uint32_t)team->parts);
    return 0;
}

void moec_enter(moec_call *call) { current = call->team; }

moec_error moec_leave(moec_call *call) {
    current = NULL;
    return call->error;
}

int32_t moec_core_count(void) {
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof cores, &cores) == 0) return CPU_COUNT(&cores);
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count > 0 ? (int32_t)count : 1;
}

moec_team *moec_team_new(int32_t count) {
    moec_team *team = aligned_alloc(MOEC_LINE, sizeof *team);
    if (team == NULL) return NULL;
    *team = (moec_team){.count = 1, .parts = count * PARTS_PER_THREAD};
    pthread_mutex_init(&team->mutex, NULL);
    pthread_cond_init(&team->work, NULL);
    pthread_cond_init(&team->finished, NULL);
    team->workers = calloc((size_t)count, sizeof *team->workers);
    while (team->workers != NULL && team->count < count) {
        if (pthread_create(team->workers + team->count, NULL, work, team) != 0) break;
        team->count++;
    }
    if (team->workers != NULL && team->count == count) return team;
    moec_team_free(team);
    return NULL;
}

void moec_team_free(moec_team *team) {
    if (team == NULL) return;
    atomic_store(&team->stop, true);
    pthread_mutex_lock(&team->mutex);
    pthread_cond_broadcast(&team->work);
    pthread_mutex_unlock(&team->mutex);
    for (int32_t at = 1; at < team->count; at++) pthread_join(team->workers[at], NULL);
    pthread_mutex_destroy(&team->mutex);
    pthread_cond_destroy(&team->work);
    pthread_cond_destroy(&team->finished);
    free(team->workers);
    free(team);
}

/* Memory of runs: each that is under way has an arena, whatever node it is of. A model has as many nodes as layers, which
 * run one after the other and would each keep the memory of its largest run. */

#include "moec_ops.h"

enum { MOST = 64 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static moec_arena *arenas[MOST]; /* those that no run uses */
static int count;

moec_arena *moec_ops_take_arena(void) {
    pthread_mutex_lock(&mutex);
    moec_arena *arena = count > 0 ? arenas[--count] : NULL;
    pthread_mutex_unlock(&mutex);
    return arena != NULL ? arena : moec_arena_new();
}

void moec_ops_give_arena(moec_arena *arena) {
    pthread_mutex_lock(&mutex);
    if (count < MOST && arena != NULL) arenas[count++] = arena, arena = NULL;
    pthread_mutex_unlock(&mutex);
    moec_arena_free(arena);
}

void moec_ops_free_arenas(void) {
    while (count > 0) moec_arena_free(arenas[--count]);
}

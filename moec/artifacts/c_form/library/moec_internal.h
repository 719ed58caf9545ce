/* Structures and helpers of the library that generated programs do not see. */

#ifndef MOEC_INTERNAL_H
#define MOEC_INTERNAL_H

#include "moec_program.h"

#include <pthread.h>
#include <string.h>

enum { MOEC_ALIGNMENT = 16, MOEC_LINE = 64, MOEC_PAGE = 256 };

#define MOEC_MOST_BYTES ((double)((uint64_t)1 << 46))
#define MOEC_MOST_SIZE ((int64_t)1 << 40)

typedef struct moec_arena moec_arena;
typedef struct moec_team moec_team;

struct moec_model {
    const moec_program *program;
    pthread_mutex_t turn; /* held during a run */
    int file;             /* weights.bin, to notice that it was cut; -1: there are no weights */
    void *mapped;
    moec_view *weight_views;
    moec_value *weights;
    moec_arena *arena;
    moec_team *team; /* NULL: one thread */
    int32_t threads;
};

/* Errors: set the calling thread's text and return the error. */
moec_error moec_fail(moec_error error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Memory. Nothing at all may be at NULL, which memcpy does not take. */
static inline void moec_copy(void *to, const void *from, size_t bytes) {
    if (bytes > 0) memcpy(to, from, bytes);
}

void *moec_allocate(size_t bytes); /* begins at a cache line; NULL if there is none; freed by free */
moec_arena *moec_arena_new(void);
void moec_arena_end_run(moec_arena *arena);
void moec_arena_free(moec_arena *arena);

/* A step of a loop: what it takes is given back behind it. */
void moec_arena_enter(moec_arena *arena);
void moec_arena_leave(moec_arena *arena);

/* Forget the loops of a call that has ended. */
void moec_loops_free(moec_call *call);

/* Threads: a team of `count`, the launching thread included. NULL where the system allows no more. */
moec_team *moec_team_new(int32_t count);
void moec_team_free(moec_team *team);
int32_t moec_core_count(void);

/* Tensors. */
moec_view moec_view_of(moec_type type, void *data, int32_t rank, const int64_t *shape);
double moec_elements(int32_t rank, const int64_t *shape); /* cannot overflow */
size_t moec_bytes_of(const moec_tensor *tensor);

/* Element types. Numbers are rounded to the nearest, ties to even. */
void moec_convert(moec_type to_type, void *to, moec_type from_type, const void *from, size_t count);
void moec_fill(moec_type type, void *data, size_t count, int64_t first, int64_t step);

/* Sizes: set those of the inputs' axes, solve for others, and check guards. `sizes` has one place for each. */
moec_error moec_bind_sizes(const moec_program *program, const moec_tensor *inputs, int64_t *sizes);

/* Pages of a held state: [count, ...] with MOEC_PAGE entries of the growing axis in each. */
typedef struct moec_pages {
    moec_view view;
    int64_t shape[MOEC_MAX_RANK + 1];
} moec_pages;

/* Describe pages at `data`. `shape`: of the state that a page holds. */
void moec_describe_pages(moec_pages *pages, const moec_held *held, void *data, int64_t count, const int64_t *shape,
                         int32_t rank);
size_t moec_page_bytes(const moec_held *held, const int64_t *shape, int32_t rank);

/* For a run that is given states and returns them: write a state into one page, and read it back. */
bool moec_store_state(moec_call *call, const moec_held *held, const moec_view *past, const int64_t *sizes,
                      moec_pages *pages);
bool moec_restore_state(moec_call *call, const moec_held *held, const moec_spec *spec, moec_result *result);

/* Runs. `pages`: of held states, in place of their inputs and outputs, or NULL for states that are inputs and outputs
 * like any others. The inputs are checked and `sizes` bound. Outputs without data are allocated, also where the run
 * fails. */
moec_error moec_check_input(const moec_spec *spec, const moec_tensor *tensor);
moec_error moec_run_bound(moec_model *model, const moec_tensor *inputs, const int64_t *sizes, const moec_pages *pages,
                          int64_t wanted, moec_tensor *outputs);

#endif

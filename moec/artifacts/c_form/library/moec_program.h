/* What a generated program and the library that runs it know of each other. Private: callers include moec.h alone. */

#ifndef MOEC_PROGRAM_H
#define MOEC_PROGRAM_H

#include "moec.h"

#include <stdbool.h>
#include <stdint.h>

#define MOEC_ABI 2 /* changes with any structure below: two libraries in one process may be of different versions */

/* A tensor as kernels take it: DLPack's DLTensor. */
typedef struct moec_view {
    void *data;
    int32_t device_kind; /* 1: the host */
    int32_t device;
    int32_t rank;
    uint8_t type_code;
    uint8_t type_bits;
    uint16_t type_lanes;
    const int64_t *shape;
    const int64_t *strides; /* NULL: row by row without gaps */
    uint64_t byte_offset;
} moec_view;

/* An argument of a kernel: TVMFFIAny with an integer, or with a pointer to a DLTensor. */
typedef struct moec_value {
    int32_t kind;
    int32_t zero;
    union {
        int64_t number;
        const moec_view *view;
    };
} moec_value;

enum { MOEC_NUMBER = 1, MOEC_VIEW = 7 };

/* A kernel in TVM's calling convention. Returns 0, or another number after it has raised an error. */
typedef int moec_kernel(void *self, const moec_value *arguments, int32_t count, moec_value *result);

typedef struct moec_call moec_call;

/* A named size. `evaluate` computes those that are made of others, given by `operands`, and is NULL for the rest. It
 * sets `by_zero` where it divides by 0. */
typedef struct moec_size {
    const char *text;
    int64_t (*evaluate)(const int64_t *sizes, bool *by_zero);
    int32_t operand_count;
    const int32_t *operands;
} moec_size;

/* A condition on named sizes, outside of which the program would compute something else than the model. */
typedef struct moec_guard {
    const char *text;
    bool (*holds)(const int64_t *sizes, bool *by_zero);
} moec_guard;

typedef struct moec_weight {
    const char *name;
    moec_view view; /* without data */
    uint64_t offset;
    uint64_t bytes;
} moec_weight;

/* A state that the program holds in pages: moec.common.specs.HeldState. */
typedef struct moec_held {
    int32_t input, output, axis;
    moec_type type; /* of elements in pages; int8 rows have a scale of 2 bytes each, after all rows */
    int64_t (*growth)(const int64_t *sizes, bool *by_zero);
    moec_kernel *store, *restore; /* NULL: elements are converted one by one */
    bool at_places; /* entries that were not written are zero */
    bool has_room;  /* of a constant size, of which the model knows the part in use */
} moec_held;

/* A state of a session: an input that becomes an output of the run before. Axis -1: replaced as a whole. */
typedef struct moec_state {
    int32_t input, output, axis;
    int32_t held; /* its place among the held states, or -1 */
    bool has_room;
} moec_state;

typedef enum moec_role { MOEC_MASK = 1, MOEC_POSITIONS, MOEC_PAST, MOEC_TOTAL } moec_role;

/* An input that follows from the number of tokens. */
typedef struct moec_filled {
    int32_t input;
    moec_role role;
} moec_filled;

/* What a session needs to know. `obstacle`: why there can be none, or NULL. `limit`: bound of token ids, or 0.
 * `counts_mask`: the model counts the ones of its attention mask. `batch_sizes`: named sizes that equal the batch. */
typedef struct moec_session_spec {
    const char *obstacle;
    int32_t ids, logits;
    int64_t limit;
    bool counts_mask;
    int32_t filled_count;
    const moec_filled *filled;
    int32_t state_count;
    const moec_state *states;
    int32_t batch_size_count;
    const int32_t *batch_sizes;
} moec_session_spec;

struct moec_program {
    uint32_t abi;
    int32_t threads; /* as compiled; 0: one for each core */
    const char *name, *version;
    int32_t input_count, output_count, size_count, guard_count, weight_count, held_count, length_count, feature_count;
    const moec_spec *inputs, *outputs;
    const int32_t *const *input_sizes; /* for each axis of each input its named size, or -1 */
    const moec_size *sizes;            /* those that are made of others come last */
    const moec_guard *guards;
    const moec_weight *weights;
    const moec_held *held;
    const int32_t (*lengths)[2]; /* (input, axis) of the lengths of held states, as the program takes them */
    int32_t last_input;          /* the input [batch, length] whose last positions are computed, or -1 */
    uint64_t weight_bytes;       /* size of weights.bin */
    uint64_t weight_stamp;       /* FNV-1a of the first and the last 64 bytes of each weight */
    const char *const *features; /* of the processor, as Linux calls them, without punctuation */
    const moec_session_spec *session;
    moec_error (*run)(moec_call *call);
};

/* One result of a run. */
typedef struct moec_result {
    moec_view view;
    int64_t shape[MOEC_MAX_RANK + 1];
    void *place; /* memory of the caller that the program may compute it in, or NULL */
    size_t room; /* its bytes */
} moec_result;

/* One run. The runtime fills in everything; the program computes `results`. */
struct moec_call {
    const moec_value *inputs;
    const int64_t *lengths; /* of held states */
    int64_t wanted;         /* number of last positions */
    const moec_value *weights;
    moec_result *results;
    struct moec_arena *arena;
    struct moec_team *team;
    struct moec_loops *loops; /* those that have ended, or NULL */
    moec_error error;
    char text[512];
};

/* A loop whose number of steps is known only when it runs. `body` computes one step: from its number, whether there is
 * a first step, the states and what all steps read, which are its inputs and then its weights, to `result_count` results:
 * whether to go on, where it `asks`; the states; slices, which the loop keeps. `places`: pairs of a result, not counting
 * the first one that is asked for, and an axis of it, whose sizes the program needs to know. */
typedef struct moec_loop {
    moec_error (*body)(moec_call *call);
    int32_t input_count, result_count, state_count;
    bool asks;
    int32_t place_count;
    const int32_t (*places)[2];
} moec_loop;

/* Everything below is called by generated programs. */

void moec_enter(moec_call *call);
moec_error moec_leave(moec_call *call);
bool moec_call_kernel(moec_call *call, moec_kernel *kernel, const moec_value *arguments, int32_t count);
void *moec_take(moec_call *call, double bytes);
void *moec_take_result(moec_call *call, int32_t at, double bytes);
void moec_give(moec_call *call, void *memory);
void moec_set_result(moec_call *call, int32_t at, const moec_view *view);
bool moec_check(moec_call *call, bool holds, const char *what);
bool moec_check_equal(moec_call *call, int64_t actual, int64_t expected, const char *what);

/* Take the steps of a loop. `arguments`: the most steps, whether there is a first one, the states, and what all steps
 * read. `report` becomes the number of the loop, that of its steps, and the sizes at the places. */
bool moec_take_loop(moec_call *call, const moec_loop *loop, const moec_value *arguments, int64_t *report);

/* Write a state behind the last step to y, or the slices of all steps side by side along an axis. */
bool moec_loop_result(moec_call *call, const int64_t *report, int32_t result, int32_t axis, bool is_backward,
                      const moec_view *y);

/* Hooks of kernels, by the names that TVM gives them. */
int moec_launch(int (*body)(int32_t part, void *group, void *closure), void *closure, int32_t asked);
void *moec_allocate_workspace(int device_kind, int device, uint64_t bytes, int type_code, int type_bits);
int moec_free_workspace(int device_kind, int device, void *memory);
void moec_raise(const char *kind, const char **parts, int32_t count);

static inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

/* Division that rounds down, as sizes of models mean it. */
static inline int64_t floor_div(int64_t a, int64_t b) {
    if (b == 0 || b == -1) return -a * (b != 0); /* no processor divides the least number by -1 */
    return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

static inline int64_t floor_mod(int64_t a, int64_t b) { return a - floor_div(a, b) * b; }

/* The same, which notice a division by 0. */
static inline int64_t floor_div_of(int64_t a, int64_t b, bool *by_zero) {
    *by_zero |= b == 0;
    return floor_div(a, b);
}

static inline int64_t floor_mod_of(int64_t a, int64_t b, bool *by_zero) { return a - floor_div_of(a, b, by_zero) * b; }

/* Words of generated programs. */

#define MOEC_TYPE_bool 6, 8, 1
#define MOEC_TYPE__Bool 6, 8, 1 /* bool is a macro */
#define MOEC_TYPE_int8 0, 8, 1
#define MOEC_TYPE_int16 0, 16, 1
#define MOEC_TYPE_int32 0, 32, 1
#define MOEC_TYPE_int64 0, 64, 1
#define MOEC_TYPE_uint8 1, 8, 1
#define MOEC_TYPE_uint16 1, 16, 1
#define MOEC_TYPE_uint32 1, 32, 1
#define MOEC_TYPE_uint64 1, 64, 1
#define MOEC_TYPE_float16 2, 16, 1
#define MOEC_TYPE_float32 2, 32, 1
#define MOEC_TYPE_float64 2, 64, 1
#define MOEC_TYPE_bfloat16 4, 16, 1
#define MOEC_TYPE_float8_e4m3fn 10, 8, 1
#define MOEC_TYPE_float8_e5m2 12, 8, 1

#define MOEC_SIZES(...) ((const int64_t[]){__VA_ARGS__})
#define MOEC_VIEW_OF(type, address, rank, sizes) {(void *)(address), 1, 0, rank, MOEC_TYPE_##type, sizes, NULL, 0}

/* TENSOR(float32, rows, batch * seq, 64): memory as a tensor; SCALAR(float32, x): one of rank 0. */
#define TENSOR(type, address, ...)                                                                                  \
    (&(const moec_view)MOEC_VIEW_OF(type, address, sizeof MOEC_SIZES(__VA_ARGS__) / sizeof(int64_t),                 \
                                    MOEC_SIZES(__VA_ARGS__)))
#define SCALAR(type, address) (&(const moec_view)MOEC_VIEW_OF(type, address, 0, NULL))

static inline moec_value moec_of_view(const moec_view *view) { return (moec_value){MOEC_VIEW, 0, {.view = view}}; }
static inline moec_value moec_of_number(int64_t number) { return (moec_value){MOEC_NUMBER, 0, {.number = number}}; }

/* T and N make arguments of RUN: tensors and numbers. */
#define T(...) moec_of_view(TENSOR(__VA_ARGS__))
#define S(type, address) moec_of_view(SCALAR(type, address))
#define N(size) moec_of_number(size)

/* TAKE(rows, 256.0 * batch * seq): memory until GIVE(rows), or until the run ends. */
#define TAKE(memory, bytes)                                                                                         \
    char *const memory = moec_take(call, bytes);                                                                    \
    if (memory == NULL) return moec_leave(call)
#define TAKE_RESULT(memory, at, bytes)                                                                              \
    char *const memory = moec_take_result(call, at, bytes);                                                         \
    if (memory == NULL) return moec_leave(call)
#define GIVE(memory) moec_give(call, memory)

/* RUN(kernel, arguments, results): call a kernel. */
#define RUN(kernel, ...)                                                                                            \
    do {                                                                                                            \
        const moec_value arguments[] = {__VA_ARGS__};                                                               \
        if (!moec_call_kernel(call, __tvm_ffi_##kernel, arguments, sizeof arguments / sizeof *arguments))           \
            return moec_leave(call);                                                                                \
    } while (0)

/* LOOP(loop_0, report, trips, going, values): call a function step by step. */
#define LOOP(loop, report, ...)                                                                                     \
    do {                                                                                                            \
        const moec_value arguments[] = {__VA_ARGS__};                                                               \
        if (!moec_take_loop(call, &loop##_loop, arguments, (int64_t *)(report))) return moec_leave(call);           \
    } while (0)
#define LOOP_RESULT(report, result, axis, is_backward, y)                                                           \
    if (!moec_loop_result(call, (const int64_t *)(report), result, axis, is_backward, y)) return moec_leave(call)

#define CHECK_EQUAL(actual, expected, what)                                                                         \
    if (!moec_check_equal(call, actual, expected, what)) return moec_leave(call)

#define RESULT(at, view) moec_set_result(call, at, view)

#endif

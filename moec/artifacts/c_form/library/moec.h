/* moec.h: run a model that `moec compile --form c` made, from C, without Python.
 *
 *     #include "char_lm.h"                                    // extern const moec_program char_lm_program;
 *
 *     moec_model *model;
 *     if (moec_load(&char_lm_program, "weights.bin", NULL, &model) != MOEC_OK) {
 *         fprintf(stderr, "%s\n", moec_last_error());
 *         return 1;
 *     }
 *
 * Errors. A function that can fail returns a moec_error, and moec_last_error() says in one line what was found and
 * what was expected. After an error outputs have no meaning, models and sessions are as they were before the call.
 *
 * Lifetimes. A model must outlive its sessions, and a program (a constant of the library) its models. The library
 * copies nothing that callers give: inputs, outputs and the path need to live until the call returns, the file of
 * weights as long as the model. A file of weights that is cut while a run reads it ends the process (SIGBUS).
 *
 * Threads. Any thread may use any model: runs of one model take turns, runs of two models go side by side, each with
 * the threads of its model. A session is for one thread at a time; another gets MOEC_ERROR_BUSY. After fork(), the child
 * must load models of its own. Results do not depend on the number of threads, and equal Python's model.run bit for
 * bit. A run takes some 3 KiB of the calling thread's stack for each layer of the model.
 */

#ifndef MOEC_H
#define MOEC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

#define MOEC_MAX_RANK 12

typedef enum moec_error {
    MOEC_OK = 0,
    MOEC_ERROR_ARGUMENT = 1,    /* a call that is never right: a null pointer, a wrong number of tensors */
    MOEC_ERROR_INPUT = 2,       /* inputs that the model does not take: types, sizes, token ids */
    MOEC_ERROR_FILE = 3,        /* the file of weights: missing, of another size, unreadable */
    MOEC_ERROR_MEMORY = 4,      /* memory or threads are not enough */
    MOEC_ERROR_MACHINE = 5,     /* this processor lacks instructions that the model was compiled for */
    MOEC_ERROR_BUSY = 6,        /* another thread is using the session */
    MOEC_ERROR_UNSUPPORTED = 7, /* the model cannot do this: sessions of a model without token ids, for example */
    MOEC_ERROR_DEFECT = 8       /* a defect of moec or of the build: report it */
} moec_error;

/* The name of an error, such as "MOEC_ERROR_INPUT". */
const char *moec_error_name(moec_error error);

/* The text of the calling thread's last error; "" before the first. Valid until the thread's next call that fails. */
const char *moec_last_error(void);

/* Element types. float16, bfloat16 and the two forms of float8 are passed as the bits of integers of their width. */
typedef enum moec_type {
    MOEC_BOOL = 1,
    MOEC_INT8, MOEC_INT16, MOEC_INT32, MOEC_INT64,
    MOEC_UINT8, MOEC_UINT16, MOEC_UINT32, MOEC_UINT64,
    MOEC_FLOAT16, MOEC_BFLOAT16, MOEC_FLOAT32, MOEC_FLOAT64,
    MOEC_FLOAT8_E4M3FN, MOEC_FLOAT8_E5M2
} moec_type;

const char *moec_type_name(moec_type type); /* "float32"; "unknown" for any other number */
size_t moec_type_size(moec_type type);      /* bytes of an element; 0 for any other number */

/* An input or output of a model. A size is a number, or -1 for one that each run may choose; size_names has its name
 * ("batch", "past + new"), or NULL for a number. Equal names stand for equal sizes. */
typedef struct moec_spec {
    const char *name;
    moec_type type;
    int32_t rank;
    const int64_t *sizes;
    const char *const *size_names;
} moec_spec;

/* A tensor in memory of the caller, its elements row by row without gaps.
 *
 * As an output: with data NULL, moec allocates it, and moec_release frees it; otherwise data has room for `bytes`
 * bytes, and too little room is an error. moec sets the other fields. Outputs must not overlap inputs or one another.
 * Data that does not begin at a multiple of 16 bytes is copied. */
typedef struct moec_tensor {
    void *data;
    size_t bytes; /* of an input: 0, or the size of data, which is then checked */
    moec_type type;
    int32_t rank;
    int64_t shape[MOEC_MAX_RANK];
} moec_tensor;

/* Free data that moec allocated, and set it to NULL. Does nothing where it is NULL. */
void moec_release(moec_tensor *tensor);

typedef struct moec_program moec_program; /* a compiled model: a constant of the library that contains it */
typedef struct moec_model moec_model;     /* a program with weights, memory and threads */
typedef struct moec_session moec_session; /* a text, or several side by side, of a language model */

/* Descriptions, in the order in which moec_run takes tensors. They live as long as the library. NULL and 0 for a program
 * that is NULL. */
const char *moec_name(const moec_program *program);
const moec_spec *moec_inputs(const moec_program *program, size_t *count);
const moec_spec *moec_outputs(const moec_program *program, size_t *count);

/* Options of loading. All fields 0 stand for the defaults, as NULL in place of the options does. */
typedef struct moec_options {
    int32_t threads;  /* threads of a run, the calling one included, at most the cores that the process may use; 0: as
                         compiled, else all of these cores */
    int32_t reserved; /* 0 */
} moec_options;

/* Load a program. `weights` is the path of its weights.bin, which is mapped into memory and read when it is used. */
moec_error moec_load(const moec_program *program, const char *weights, const moec_options *options, moec_model **model);

/* Free a model, which no thread may be using and which has no sessions any more. Does nothing for NULL. */
void moec_free(moec_model *model);

int32_t moec_threads(const moec_model *model); /* 0 for NULL */

/* Compute all outputs. States (caches of earlier tokens) are inputs and outputs like any others. */
moec_error moec_run(moec_model *model, const moec_tensor *inputs, size_t input_count, moec_tensor *outputs,
                    size_t output_count);

/* Begin a text, or `batch` of them together. max_tokens: the most that it will hold, 0 for no limit.
 * Its memory grows as needed. MOEC_ERROR_UNSUPPORTED for a model without token ids, logits or inputs that follow from
 * them. */
moec_error moec_session_begin(moec_model *model, int64_t max_tokens, int64_t batch, moec_session **session);

/* Run on the next tokens: ids[batch][count]. `logits` becomes float32 [batch, min(last, count), vocabulary], of the last
 * tokens; last 0 stands for all of them. */
moec_error moec_session_run(moec_session *session, const int64_t *ids, int64_t count, int64_t last,
                            moec_tensor *logits);

/* The same for rows of different lengths: mask[batch][count] is 0 for padding, NULL where there is none. Rows are padded
 * on the left; masks of earlier runs are kept, and positions count the tokens that remain. A model that counts a mask's
 * ones needs padding on the right, in the first run alone, where the last tokens' logits are those of padding.
 * MOEC_ERROR_UNSUPPORTED for a model without an attention mask. */
moec_error moec_session_run_padded(moec_session *session, const int64_t *ids, const uint8_t *mask, int64_t count,
                                   int64_t last, moec_tensor *logits);

int64_t moec_session_length(const moec_session *session); /* tokens so far, with padding; 0 for NULL */

/* Forget all except the first `length` tokens. */
moec_error moec_session_truncate(moec_session *session, int64_t length);

/* Copy a session, so that both can continue from here. */
moec_error moec_session_fork(moec_session *session, moec_session **copy);

/* Free a session. Does nothing for NULL. */
void moec_session_end(moec_session *session);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif

#endif

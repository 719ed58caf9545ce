/* Structures that the operators and their threads share. */

#ifndef MOEC_OPS_H
#define MOEC_OPS_H

#include "moec_internal.h"

#include <onnxruntime_c_api.h>

#define MOEC_OPS_API 21 /* newer runtimes serve this version, too */

#if ORT_API_VERSION < MOEC_OPS_API
#error "onnxruntime_c_api.h is older than ONNX Runtime 1.21"
#endif

/* The programs of the library, each an operator of its name; NULL behind the last. Generated. */
extern const moec_program *const moec_ops_programs[];

extern const OrtApi *moec_ops_api;

/* Let the parallel loops of the calling thread run on the threads of a session, of which `context` is a call. `threads`:
 * the most that were seen, 1 or more, which may grow. NULL ends that. */
void moec_ops_use_threads(const OrtKernelContext *context, int32_t *threads);

/* Memory for one run; NULL if there is none. */
moec_arena *moec_ops_take_arena(void);
void moec_ops_give_arena(moec_arena *arena);
void moec_ops_free_arenas(void);

#endif

/* Definitions of what kernels import from TVM's runtime. Each generated program has its own, so that programs of several
 * libraries, and TVM itself, can be in one process. */

#ifndef MOEC_HOOKS_H
#define MOEC_HOOKS_H

#include "moec_program.h"

int (*const __TVMBackendParallelLaunch)(int (*)(int32_t, void *, void *), void *, int32_t) = moec_launch;
void *(*const __TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = moec_allocate_workspace;
int (*const __TVMBackendFreeWorkspace)(int, int, void *) = moec_free_workspace;

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
    moec_raise(kind, parts, count);
}

void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) { moec_raise(kind, &message, 1); }

#endif

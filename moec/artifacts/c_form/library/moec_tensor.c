/* Errors and element types. */

#include "moec_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local char last_error[1024];

moec_error moec_fail(moec_error error, const char *format, ...) {
    char text[sizeof last_error];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    memcpy(last_error, text, sizeof text); /* an argument may be the text before */
    return error;
}

const char *moec_last_error(void) { return last_error; }

const char *moec_error_name(moec_error error) {
    static const char *const names[] = {
        "MOEC_OK",           "MOEC_ERROR_ARGUMENT", "MOEC_ERROR_INPUT",       "MOEC_ERROR_FILE",   "MOEC_ERROR_MEMORY",
        "MOEC_ERROR_MACHINE", "MOEC_ERROR_BUSY",     "MOEC_ERROR_UNSUPPORTED", "MOEC_ERROR_DEFECT",
    };
    size_t at = (size_t)error;
    return at < sizeof names / sizeof *names ? names[at] : "unknown";
}

static const struct {
    const char *name;
    uint8_t code, bits;
} types[] = {
    [MOEC_BOOL] = {"bool", 6, 8},           [MOEC_INT8] = {"int8", 0, 8},
    [MOEC_INT16] = {"int16", 0, 16},        [MOEC_INT32] = {"int32", 0, 32},
    [MOEC_INT64] = {"int64", 0, 64},        [MOEC_UINT8] = {"uint8", 1, 8},
    [MOEC_UINT16] = {"uint16", 1, 16},      [MOEC_UINT32] = {"uint32", 1, 32},
    [MOEC_UINT64] = {"uint64", 1, 64},      [MOEC_FLOAT16] = {"float16", 2, 16},
    [MOEC_BFLOAT16] = {"bfloat16", 4, 16},  [MOEC_FLOAT32] = {"float32", 2, 32},
    [MOEC_FLOAT64] = {"float64", 2, 64},    [MOEC_FLOAT8_E4M3FN] = {"float8_e4m3fn", 10, 8},
    [MOEC_FLOAT8_E5M2] = {"float8_e5m2", 12, 8},
};

static bool is_known(moec_type type) { return type >= MOEC_BOOL && type <= MOEC_FLOAT8_E5M2; }

const char *moec_type_name(moec_type type) { return is_known(type) ? types[type].name : "unknown"; }

size_t moec_type_size(moec_type type) { return is_known(type) ? types[type].bits / 8u : 0; }

moec_view moec_view_of(moec_type type, void *data, int32_t rank, const int64_t *shape) {
    return (moec_view){data, 1, 0, rank, types[type].code, types[type].bits, 1, shape, NULL, 0};
}

double moec_elements(int32_t rank, const int64_t *shape) {
    double count = 1;
    for (int32_t axis = 0; axis < rank; axis++) count *= (double)shape[axis];
    return count;
}

size_t moec_bytes_of(const moec_tensor *tensor) {
    return (size_t)(moec_elements(tensor->rank, tensor->shape) * (double)moec_type_size(tensor->type));
}

void moec_release(moec_tensor *tensor) {
    if (tensor == NULL) return;
    free(tensor->data);
    tensor->data = NULL, tensor->bytes = 0;
}

/* States that a program holds in pages, in runs that are given states and return them. */

#include "moec_internal.h"

#include <string.h>

enum { ROW_SCALE_BYTES = 2 }; /* a row of int8 has a scale in bfloat16, after all rows */

/* The shape of a page from that of the state in it. Returns its rank. */
static int32_t stored_shape(const moec_held *held, const int64_t *shape, int32_t rank, int64_t *stored) {
    memcpy(stored, shape, (size_t)rank * sizeof *shape);
    if (held->type != MOEC_INT8) return rank;
    stored[rank - 2] = shape[rank - 2] * (shape[rank - 1] + ROW_SCALE_BYTES);
    return rank - 1;
}

size_t moec_page_bytes(const moec_held *held, const int64_t *shape, int32_t rank) {
    int64_t stored[MOEC_MAX_RANK];
    int32_t stored_rank = stored_shape(held, shape, rank, stored);
    return (size_t)(moec_elements(stored_rank, stored) * (double)moec_type_size(held->type));
}

void moec_describe_pages(moec_pages *pages, const moec_held *held, void *data, int64_t count, const int64_t *shape,
                         int32_t rank) {
    pages->shape[0] = count;
    int32_t stored_rank = stored_shape(held, shape, rank, pages->shape + 1);
    pages->view = moec_view_of(held->type, data, stored_rank + 1, pages->shape);
}

/* Copy a state into a page that is longer along the axis. */
static void spread(const moec_held *held, const moec_view *past, moec_type type, void *page, int64_t length) {
    int64_t before = (int64_t)moec_elements(held->axis, past->shape);
    int64_t inner = (int64_t)moec_elements(past->rank - held->axis - 1, past->shape + held->axis + 1);
    size_t from = (size_t)(past->shape[held->axis] * inner), to = (size_t)(length * inner);
    for (int64_t at = 0; at < before; at++)
        moec_convert(held->type, (char *)page + (size_t)at * to * moec_type_size(held->type), type,
                     (const char *)past->data + (size_t)at * from * moec_type_size(type), from);
}

static moec_type type_of(const moec_view *view) {
    if (view->type_code == 4) return MOEC_BFLOAT16;
    return view->type_bits == 16 ? MOEC_FLOAT16 : view->type_bits == 64 ? MOEC_FLOAT64 : MOEC_FLOAT32;
}

bool moec_store_state(moec_call *call, const moec_held *held, const moec_view *past, const int64_t *sizes,
                      moec_pages *pages) {
    bool by_zero = false;
    int64_t shape[MOEC_MAX_RANK];
    memcpy(shape, past->shape, (size_t)past->rank * sizeof *shape);
    int64_t growth = held->growth(sizes, &by_zero);
    if (!moec_check(call, growth >= 0 && growth <= MOEC_MOST_SIZE, "the growth of a state is negative")) return false;
    shape[held->axis] += growth;
    size_t bytes = moec_page_bytes(held, shape, past->rank);
    void *page = moec_take(call, (double)bytes);
    if (page == NULL) return false;
    if (held->at_places) memset(page, 0, bytes);
    moec_describe_pages(pages, held, page, 1, shape, past->rank);
    if (held->store == NULL) {
        spread(held, past, type_of(past), page, shape[held->axis]);
        return true;
    }
    const moec_value arguments[] = {moec_of_number(0), moec_of_view(past), moec_of_view(&pages->view)};
    return moec_call_kernel(call, held->store, arguments, 3);
}

/* The result is the only page, [1, ...]; it becomes the state in its own type. */
bool moec_restore_state(moec_call *call, const moec_held *held, const moec_spec *spec, moec_result *result) {
    moec_view pages = result->view;
    int64_t page_shape[MOEC_MAX_RANK + 1];
    memcpy(page_shape, result->shape, sizeof page_shape);
    pages.shape = page_shape;
    memmove(result->shape, page_shape + 1, (size_t)(pages.rank - 1) * sizeof *page_shape);
    if (held->type == MOEC_INT8) {
        int64_t row = spec->sizes[spec->rank - 1];
        result->shape[spec->rank - 2] /= row + ROW_SCALE_BYTES;
        result->shape[spec->rank - 1] = row;
    }
    void *data = pages.data;
    if (held->restore != NULL || held->type != spec->type) {
        double count = moec_elements(spec->rank, result->shape);
        data = moec_take(call, count * (double)moec_type_size(spec->type));
        if (data == NULL) return false;
        if (held->restore == NULL) moec_convert(spec->type, data, held->type, pages.data, (size_t)count);
    }
    result->view = moec_view_of(spec->type, data, spec->rank, result->shape);
    if (held->restore == NULL) return true;
    const moec_value arguments[] = {moec_of_view(&pages), moec_of_view(&result->view)};
    return moec_call_kernel(call, held->restore, arguments, 2);
}

/* The states of a session: in pages that grow, where the program holds them, else fed back from run to run. */

#include "moec_session.h"

#include <stdlib.h>
#include <string.h>

enum { FIRST_PAGES = 16 };

static moec_error no_memory(void) {
    return moec_fail(MOEC_ERROR_MEMORY, "there is not enough memory for the states of a session");
}

/* The size of a state along an axis before the first token. `sizes`: known ones, others -1. */
static int64_t first_size(const moec_session *session, const moec_state *state, int32_t axis, int64_t room,
                          const int64_t *sizes) {
    const moec_program *program = session->model->program;
    int64_t fixed = program->inputs[state->input].sizes[axis];
    int32_t named = program->input_sizes[state->input][axis];
    bool by_zero = false;
    if (axis == state->axis) return state->has_room ? room : fixed >= 0 ? fixed : 0;
    if (fixed >= 0) return fixed;
    if (sizes[named] >= 0) return sizes[named];
    const moec_size *size = program->sizes + named;
    return size->evaluate == NULL ? session->batch : size->evaluate(sizes, &by_zero);
}

/* Tokens that fit into a state with room: its size, or as many as the session is told. -1: nothing tells. */
static int64_t room_of(const moec_program *program, const moec_state *state, int64_t max_tokens) {
    int64_t fixed = program->inputs[state->input].sizes[state->axis];
    return fixed >= 0 ? fixed : max_tokens > 0 ? max_tokens : -1;
}

static int64_t *shape_of(const moec_session *session, int32_t held) {
    const moec_session_spec *spec = session->model->program->session;
    for (int32_t at = 0; at < spec->state_count; at++)
        if (spec->states[at].held == held) return session->states[at].shape;
    return NULL;
}

static size_t page_bytes(const moec_session *session, int32_t held) {
    const moec_held *spec = session->model->program->held + held;
    int32_t rank = session->model->program->inputs[spec->input].rank;
    int64_t shape[MOEC_MAX_RANK];
    memcpy(shape, shape_of(session, held), (size_t)rank * sizeof *shape);
    shape[spec->axis] = MOEC_PAGE;
    return moec_page_bytes(spec, shape, rank);
}

static int64_t pages_for(int64_t length) { return (length + MOEC_PAGE - 1) / MOEC_PAGE; }

/* Move the pages in use into `count` new ones. */
static bool move_pages(const moec_session *session, int32_t held, const moec_held_memory *from, moec_held_memory *to,
                       int64_t count) {
    size_t bytes = page_bytes(session, held), used = (size_t)pages_for(from->length) * bytes;
    if ((double)bytes * (double)count >= MOEC_MOST_BYTES) return false;
    bool has_zeros = session->model->program->held[held].at_places; /* memory is only touched when it is written */
    void *pages = has_zeros ? calloc((size_t)count, bytes) : moec_allocate(bytes * (size_t)count);
    if (pages == NULL) return false;
    if (from->pages != NULL) memcpy(pages, from->pages, used);
    *to = (moec_held_memory){pages, count, from->length, 0};
    return true;
}

static moec_error begin_state(moec_session *session, int32_t at, int64_t max_tokens, const int64_t *sizes) {
    const moec_program *program = session->model->program;
    const moec_state *state = program->session->states + at;
    const moec_spec *spec = program->inputs + state->input;
    int64_t room = state->has_room ? room_of(program, state, max_tokens) : 0;
    if (room < 0)
        return moec_fail(MOEC_ERROR_ARGUMENT, "state '%s' has room for as many tokens as it is told; give max_tokens",
                         spec->name);
    if (state->has_room && (session->most == 0 || room < session->most)) session->most = room;
    moec_tensor *tensor = session->states + at;
    *tensor = (moec_tensor){.type = spec->type, .rank = spec->rank};
    for (int32_t axis = 0; axis < spec->rank; axis++)
        tensor->shape[axis] = first_size(session, state, axis, room, sizes);
    if (state->held >= 0) {
        int64_t length = program->held[state->held].has_room ? tensor->shape[state->axis] : 0;
        int64_t count = max_tokens > 0 ? pages_for(max_tokens) : FIRST_PAGES;
        moec_held_memory empty = {NULL, 0, length, 0};
        if (count < pages_for(length)) count = pages_for(length);
        return move_pages(session, state->held, &empty, session->held + state->held, count) ? MOEC_OK : no_memory();
    }
    if (moec_elements(tensor->rank, tensor->shape) * 8 >= MOEC_MOST_BYTES) return no_memory();
    tensor->data = calloc(moec_bytes_of(tensor) + 1, 1);
    return tensor->data != NULL ? MOEC_OK : no_memory();
}

static bool are_held(const moec_program *program) {
    for (int32_t at = 0; at < program->session->state_count; at++)
        if (program->session->states[at].held >= 0) return true;
    return false;
}

static bool allocate(moec_session *session) {
    const moec_program *program = session->model->program;
    session->is_incremental = program->session->state_count > 0;
    session->states = calloc((size_t)program->session->state_count + 1, sizeof *session->states);
    if (are_held(program)) session->held = calloc((size_t)program->held_count, sizeof *session->held);
    return session->states != NULL && (session->held != NULL || !are_held(program));
}

moec_error moec_states_begin(moec_session *session, int64_t max_tokens) {
    const moec_program *program = session->model->program;
    int64_t sizes[program->size_count + 1];
    if (!allocate(session)) return no_memory();
    for (int32_t at = 0; at < program->size_count; at++) sizes[at] = -1;
    for (int32_t at = 0; at < program->session->batch_size_count; at++)
        sizes[program->session->batch_sizes[at]] = session->batch;
    for (int32_t at = 0; at < program->session->state_count; at++) {
        moec_error error = begin_state(session, at, max_tokens, sizes);
        if (error != MOEC_OK) return error;
    }
    return MOEC_OK;
}

void moec_states_end(moec_session *session) {
    const moec_program *program = session->model->program;
    for (int32_t at = 0; session->states != NULL && at < program->session->state_count; at++)
        free(session->states[at].data);
    for (int32_t at = 0; session->held != NULL && at < program->held_count; at++) free(session->held[at].pages);
    free(session->states);
    free(session->held);
}

bool moec_states_hold(const moec_session *session, int32_t input) {
    const moec_program *program = session->model->program;
    for (int32_t at = 0; session->held != NULL && at < program->held_count; at++)
        if (program->held[at].input == input) return true;
    return false;
}

void moec_states_as_inputs(const moec_session *session, moec_tensor *inputs) {
    const moec_session_spec *spec = session->model->program->session;
    for (int32_t at = 0; at < spec->state_count; at++) {
        const moec_state *state = spec->states + at;
        moec_tensor *input = inputs + state->input;
        *input = session->states[at];
        if (state->held >= 0) input->shape[state->axis] = session->held[state->held].length;
    }
}

/* How much a run appends to a held state; -1 for what no memory holds. */
static int64_t growth_of(const moec_held *held, const int64_t *sizes) {
    bool by_zero = false;
    int64_t growth = held->growth(sizes, &by_zero);
    return growth <= MOEC_MOST_SIZE ? growth : -1;
}

moec_error moec_states_make_room(moec_session *session, const int64_t *sizes, moec_pages *pages) {
    const moec_program *program = session->model->program;
    for (int32_t at = 0; session->held != NULL && at < program->held_count; at++) {
        moec_held_memory *memory = session->held + at, larger;
        const moec_held *held = program->held + at;
        int32_t rank = program->inputs[held->input].rank;
        int64_t growth = growth_of(held, sizes), needed = pages_for(memory->length + growth), shape[MOEC_MAX_RANK];
        if (growth < 0) return no_memory();
        if (needed > memory->count) {
            int64_t count = needed > 2 * memory->count ? needed : 2 * memory->count;
            if (!move_pages(session, at, memory, &larger, count)) return no_memory();
            free(memory->pages);
            *memory = larger;
        }
        memcpy(shape, shape_of(session, at), (size_t)rank * sizeof *shape);
        shape[held->axis] = MOEC_PAGE;
        moec_describe_pages(pages + at, held, memory->pages, needed, shape, rank);
        session->held[at].growth = growth;
    }
    return MOEC_OK;
}

void moec_states_advance(moec_session *session, moec_tensor *outputs) {
    const moec_program *program = session->model->program;
    for (int32_t at = 0; session->held != NULL && at < program->held_count; at++)
        session->held[at].length += session->held[at].growth;
    for (int32_t at = 0; at < program->session->state_count; at++) {
        const moec_state *state = program->session->states + at;
        if (state->held >= 0) continue;
        free(session->states[at].data);
        session->states[at] = outputs[state->output];
        outputs[state->output].data = NULL;
    }
}

/* Whether tokens can be removed from the end of a state. */
static bool can_be_cut(const moec_session *session, int32_t at) {
    const moec_state *state = session->model->program->session->states + at;
    if (state->axis < 0) return false;
    if (state->has_room) return true;
    int64_t own = state->held >= 0 ? session->held[state->held].length : session->states[at].shape[state->axis];
    return own == session->length;
}

/* Keep the first `length` entries along the axis, in place: rows move to the front. */
static void cut(moec_tensor *tensor, int32_t axis, int64_t length) {
    int64_t before = (int64_t)moec_elements(axis, tensor->shape);
    size_t inner = moec_type_size(tensor->type) *
                   (size_t)moec_elements(tensor->rank - axis - 1, tensor->shape + axis + 1);
    size_t from = (size_t)tensor->shape[axis] * inner, to = (size_t)length * inner;
    for (int64_t row = 1; row < before; row++)
        memmove((char *)tensor->data + (size_t)row * to, (char *)tensor->data + (size_t)row * from, to);
    tensor->shape[axis] = length;
    tensor->bytes = moec_bytes_of(tensor);
}

moec_error moec_states_truncate(moec_session *session, int64_t length) {
    const moec_program *program = session->model->program;
    if (length == session->length) return MOEC_OK;
    for (int32_t at = 0; at < program->session->state_count; at++)
        if (!can_be_cut(session, at))
            return moec_fail(MOEC_ERROR_UNSUPPORTED, "the session cannot be truncated: each run replaces state '%s'; fork "
                             "it before the tokens to forget",
                             program->inputs[program->session->states[at].input].name);
    for (int32_t at = 0; at < program->session->state_count; at++) {
        const moec_state *state = program->session->states + at;
        if (state->held < 0 && !state->has_room) cut(session->states + at, state->axis, length);
        if (state->held >= 0 && !program->held[state->held].has_room) session->held[state->held].length = length;
    }
    return MOEC_OK;
}

moec_error moec_states_copy(const moec_session *session, moec_session *copy) {
    const moec_program *program = session->model->program;
    if (!allocate(copy)) return no_memory();
    for (int32_t at = 0; at < program->session->state_count; at++) {
        const moec_tensor *tensor = session->states + at;
        copy->states[at] = *tensor;
        copy->states[at].data = NULL;
        if (tensor->data == NULL) continue;
        copy->states[at].data = moec_allocate(moec_bytes_of(tensor));
        if (copy->states[at].data == NULL) return no_memory();
        memcpy(copy->states[at].data, tensor->data, moec_bytes_of(tensor));
    }
    for (int32_t at = 0; session->held != NULL && at < program->held_count; at++)
        if (!move_pages(copy, at, session->held + at, copy->held + at, session->held[at].count)) return no_memory();
    return MOEC_OK;
}

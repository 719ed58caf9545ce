/* Sessions: the states of a language model between runs, so that each token is computed once. A model without states
 * runs all tokens again each time, with the same results. */

#include "moec_session.h"

#include <stdlib.h>
#include <string.h>

static moec_error busy(void) {
    return moec_fail(MOEC_ERROR_BUSY, "the session is being used by another thread; give each thread one of its own");
}

static bool claim(moec_session *session) { return !atomic_exchange(&session->is_used, true); }

static moec_error let_go(moec_session *session, moec_error error) {
    atomic_store(&session->is_used, false);
    return error;
}

static moec_error check_begin(const moec_model *model, int64_t max_tokens, int64_t batch) {
    const moec_program *program = model->program;
    if (program->session->obstacle != NULL)
        return moec_fail(MOEC_ERROR_UNSUPPORTED, "%s", program->session->obstacle);
    if (max_tokens < 0 || max_tokens > MOEC_MOST_SIZE || batch < 1 || batch > MOEC_MOST_SIZE)
        return moec_fail(MOEC_ERROR_ARGUMENT, "max_tokens is %lld and batch is %lld; expected 0 or more, and 1 or more",
                         (long long)max_tokens, (long long)batch);
    int64_t fixed = program->inputs[program->session->ids].sizes[0];
    if (fixed >= 0 && fixed != batch)
        return moec_fail(MOEC_ERROR_INPUT, "the model is for %lld sequences side by side, and batch is %lld",
                         (long long)fixed, (long long)batch);
    return MOEC_OK;
}

moec_error moec_session_begin(moec_model *model, int64_t max_tokens, int64_t batch, moec_session **session) {
    if (model == NULL || session == NULL) return moec_fail(MOEC_ERROR_ARGUMENT, "the model or the session is NULL");
    *session = NULL;
    moec_error error = check_begin(model, max_tokens, batch);
    if (error != MOEC_OK) return error;
    moec_session *begun = calloc(1, sizeof *begun);
    if (begun == NULL) return moec_fail(MOEC_ERROR_MEMORY, "there is not enough memory for a session");
    begun->model = model, begun->batch = batch, begun->most = max_tokens;
    error = moec_states_begin(begun, max_tokens);
    if (error == MOEC_OK)
        *session = begun;
    else
        moec_session_end(begun);
    return error;
}

void moec_session_end(moec_session *session) {
    if (session == NULL) return;
    moec_states_end(session);
    free(session->seen);
    free(session->mask);
    free(session);
}

int64_t moec_session_length(const moec_session *session) { return session == NULL ? 0 : session->length; }

static moec_error check_ids(const moec_session *session, const int64_t *ids, int64_t count) {
    const moec_session_spec *spec = session->model->program->session;
    if (count < 1 || count > MOEC_MOST_SIZE / session->batch)
        return moec_fail(MOEC_ERROR_INPUT, "%lld token ids are given; expected 1 or more", (long long)count);
    for (int64_t at = 0; at < session->batch * count; at++)
        if (ids[at] < 0 || (spec->limit > 0 && ids[at] >= spec->limit))
            return moec_fail(MOEC_ERROR_INPUT, "token id %lld is outside of the vocabulary; expected 0 to %lld",
                             (long long)ids[at], (long long)(spec->limit > 0 ? spec->limit - 1 : INT64_MAX));
    if (session->most > 0 && session->length + count > session->most)
        return moec_fail(MOEC_ERROR_INPUT, "the session would hold %lld tokens (%lld and %lld new ones), and its "
                         "max_tokens is %lld; truncate it, or begin one for more", (long long)(session->length + count),
                         (long long)session->length, (long long)count, (long long)session->most);
    return MOEC_OK;
}

/* Token ids that the model is run on: the new ones, or, for a model without states, all. `all` [batch, total] becomes
 * those of the session after the run. */
static void gather_ids(const moec_session *session, const int64_t *ids, int64_t count, int64_t *all) {
    int64_t before = session->is_incremental ? 0 : session->length, total = before + count;
    for (int64_t row = 0; row < session->batch; row++) {
        if (before > 0) memcpy(all + row * total, session->seen + row * before, (size_t)before * sizeof *all);
        memcpy(all + row * total + before, ids + row * count, (size_t)count * sizeof *all);
    }
}

/* Allocate an input [batch, columns], or one of rank 1, for a run. */
static bool new_input(moec_tensor *input, const moec_spec *spec, int64_t rows, int64_t columns) {
    *input = (moec_tensor){.type = spec->type, .rank = spec->rank, .shape = {rows, columns}};
    if (spec->rank == 1) input->shape[0] = columns;
    input->data = moec_allocate(moec_bytes_of(input));
    return input->data != NULL;
}

/* A mask [batch, total] of all tokens; NULL where there is no padding. */
static bool join_masks(const moec_session *session, const uint8_t *mask, int64_t count, uint8_t **all) {
    int64_t before = session->length, total = before + count;
    *all = NULL;
    if (session->mask == NULL && mask == NULL) return true;
    *all = moec_allocate((size_t)(session->batch * total));
    for (int64_t row = 0; *all != NULL && row < session->batch; row++) {
        uint8_t *to = *all + row * total;
        memset(to, 1, (size_t)total);
        if (session->mask != NULL) moec_copy(to, session->mask + row * before, (size_t)before);
        for (int64_t at = 0; mask != NULL && at < count; at++) to[before + at] = mask[row * count + at] != 0;
    }
    return *all != NULL;
}

/* Whether a model that counts a mask's ones leaves out the padding: it has to come after all tokens, in the first run
 * alone where states are kept. */
static bool is_countable(const moec_session *session, const uint8_t *all, int64_t total) {
    bool is_later = session->is_incremental && session->length > 0;
    for (int64_t row = 0; row < session->batch; row++)
        for (int64_t at = is_later ? session->length : 1; at < total; at++) {
            const uint8_t *here = all + row * total + at;
            if (is_later ? !*here : *here > here[-1]) return false;
        }
    return true;
}

static moec_error check_mask(const moec_session *session, const uint8_t *all, int64_t total) {
    const moec_session_spec *spec = session->model->program->session;
    bool has_mask = false;
    for (int32_t at = 0; at < spec->filled_count; at++) has_mask = has_mask || spec->filled[at].role == MOEC_MASK;
    if (all == NULL) return MOEC_OK;
    if (!has_mask)
        return moec_fail(MOEC_ERROR_UNSUPPORTED, "the model takes no attention mask; give each row a session of its own");
    if (!spec->counts_mask || is_countable(session, all, total)) return MOEC_OK;
    return moec_fail(MOEC_ERROR_INPUT, "the mask is 0 where the model cannot leave a token out: it counts the ones to "
                     "tell how long a sequence is; pad on the right and in the first run alone, or give each row a "
                     "session of its own");
}

/* Fill in a mask, or the positions of the last columns of a mask. */
static void fill_padded(moec_tensor *input, const uint8_t *mask, int64_t total, int64_t columns, bool has_positions) {
    size_t size = moec_type_size(input->type);
    int64_t position = -1, rows = input->shape[0];
    for (int64_t at = 0; at < rows * total; at++) {
        int64_t column = at % total - (total - columns);
        position = at % total == 0 ? mask[at] - 1 : position + mask[at];
        int64_t value = has_positions ? (position > 0 ? position : 0) : mask[at];
        char *place = (char *)input->data + (size_t)(at / total * columns + column) * size;
        if (column >= 0) moec_fill(input->type, place, 1, value, 0);
    }
}

static bool fill_input(const moec_session *session, const moec_filled *filled, int64_t fed, int64_t total,
                       const uint8_t *mask, moec_tensor *input) {
    const moec_spec *spec = session->model->program->inputs + filled->input;
    bool is_mask = filled->role == MOEC_MASK, has_positions = filled->role == MOEC_POSITIONS;
    int64_t columns = is_mask ? total : has_positions ? fed : session->batch;
    if (!new_input(input, spec, session->batch, columns)) return false;
    if (mask != NULL && spec->rank == 2 && (is_mask || has_positions)) {
        fill_padded(input, mask, total, columns, has_positions);
        return true;
    }
    int64_t first = is_mask ? 1 : filled->role == MOEC_TOTAL ? total : total - fed;
    size_t row = (size_t)columns * moec_type_size(spec->type);
    for (int64_t at = 0; at < (spec->rank == 1 ? 1 : session->batch); at++)
        moec_fill(spec->type, (char *)input->data + (size_t)at * row, (size_t)columns, first, has_positions);
    return true;
}

/* Make the inputs of a run; those that own their memory are ids and filled ones. */
static moec_error make_inputs(moec_session *session, const int64_t *all, int64_t fed, int64_t total,
                              const uint8_t *mask, moec_tensor *inputs) {
    const moec_program *program = session->model->program;
    const moec_session_spec *spec = program->session;
    moec_tensor *ids = inputs + spec->ids;
    bool is_there = new_input(ids, program->inputs + spec->ids, session->batch, fed);
    for (int64_t at = 0; is_there && at < session->batch * fed; at++)
        moec_fill(ids->type, (char *)ids->data + (size_t)at * moec_type_size(ids->type), 1, all[at], 0);
    for (int32_t at = 0; is_there && at < spec->filled_count; at++)
        is_there = fill_input(session, spec->filled + at, fed, total, mask, inputs + spec->filled[at].input);
    if (!is_there) return moec_fail(MOEC_ERROR_MEMORY, "there is not enough memory for the inputs of a run");
    moec_states_as_inputs(session, inputs);
    for (int32_t at = 0; at < program->input_count; at++) {
        if (moec_states_hold(session, at)) continue;
        moec_error error = moec_check_input(program->inputs + at, inputs + at);
        if (error != MOEC_OK) return error;
    }
    return MOEC_OK;
}

static void free_inputs(const moec_session_spec *spec, moec_tensor *inputs) {
    moec_release(inputs + spec->ids);
    for (int32_t at = 0; at < spec->filled_count; at++) moec_release(inputs + spec->filled[at].input);
}

/* Give the caller the last `count` rows of the logits, as float32. */
static moec_error give_logits(moec_tensor *from, int64_t count, moec_tensor *logits) {
    int64_t batch = from->shape[0], rows = from->shape[1], width = from->shape[2];
    int64_t kept = rows < count ? rows : count;
    moec_tensor given = {.type = MOEC_FLOAT32, .rank = 3, .shape = {batch, kept, width}};
    size_t bytes = moec_bytes_of(&given), row = (size_t)(kept * width);
    if (logits->data != NULL && logits->bytes < bytes)
        return moec_fail(MOEC_ERROR_ARGUMENT, "the logits have room for %zu bytes; expected %zu", logits->bytes, bytes);
    given.data = logits->data != NULL ? logits->data : moec_allocate(bytes);
    given.bytes = logits->data != NULL ? logits->bytes : bytes;
    if (given.data == NULL) return moec_fail(MOEC_ERROR_MEMORY, "there is not enough memory for the logits");
    for (int64_t at = 0; at < batch; at++) {
        size_t start = (size_t)((at * rows + rows - kept) * width);
        moec_convert(MOEC_FLOAT32, (float *)given.data + (size_t)at * row, from->type,
                     (char *)from->data + start * moec_type_size(from->type), row);
    }
    *logits = given;
    return MOEC_OK;
}

static moec_error run_model(moec_session *session, const moec_tensor *inputs, int64_t wanted, moec_tensor *logits,
                            moec_tensor *outputs) {
    const moec_program *program = session->model->program;
    const moec_spec *spec = program->outputs + program->session->logits;
    int64_t sizes[program->size_count + 1];
    moec_pages pages[program->held_count + 1];
    moec_error error = moec_bind_sizes(program, inputs, sizes);
    if (error == MOEC_OK) error = moec_states_make_room(session, sizes, pages);
    if (error != MOEC_OK) return error;
    bool is_direct = program->last_input >= 0 && spec->type == MOEC_FLOAT32;
    moec_tensor *own = outputs + program->session->logits;
    if (is_direct) *own = *logits;
    error = moec_run_bound(session->model, inputs, sizes, session->held == NULL ? NULL : pages, wanted, outputs);
    if (error == MOEC_OK && !is_direct) return give_logits(own, wanted, logits);
    if (error == MOEC_OK)
        *logits = *own;
    else if (logits->data == NULL)
        moec_release(own);
    if (is_direct) own->data = NULL; /* it is the caller's */
    return error;
}

/* Run on the inputs, and let the session become what it is behind the run. `all`: the ids; `mask`: of all tokens. */
static moec_error step(moec_session *session, int64_t **all, uint8_t **mask, int64_t count, int64_t last,
                       moec_tensor *logits) {
    const moec_program *program = session->model->program;
    int64_t total = session->length + count, fed = session->is_incremental ? count : total;
    moec_tensor inputs[program->input_count + 1], outputs[program->output_count + 1];
    memset(inputs, 0, sizeof inputs), memset(outputs, 0, sizeof outputs);
    moec_error error = make_inputs(session, *all, fed, total, *mask, inputs);
    int64_t wanted = last == 0 || last > count ? count : last;
    if (error == MOEC_OK) error = run_model(session, inputs, wanted, logits, outputs);
    if (error == MOEC_OK) {
        moec_states_advance(session, outputs);
        session->length = total;
        free(session->mask);
        session->mask = *mask, *mask = NULL;
        if (!session->is_incremental) {
            free(session->seen);
            session->seen = *all, *all = NULL;
        }
    }
    free_inputs(program->session, inputs);
    for (int32_t at = 0; at < program->output_count; at++) moec_release(outputs + at);
    return error;
}

static moec_error run(moec_session *session, const int64_t *ids, const uint8_t *mask, int64_t count, int64_t last,
                      moec_tensor *logits) {
    moec_error error = check_ids(session, ids, count);
    if (error != MOEC_OK) return error;
    int64_t total = session->length + count, fed = session->is_incremental ? count : total;
    uint8_t *joined;
    int64_t *all = moec_allocate((size_t)(session->batch * fed) * sizeof *all);
    if (!join_masks(session, mask, count, &joined) || all == NULL)
        error = moec_fail(MOEC_ERROR_MEMORY, "there is not enough memory for the token ids");
    if (error == MOEC_OK) error = check_mask(session, joined, total);
    if (error == MOEC_OK) {
        gather_ids(session, ids, count, all);
        error = step(session, &all, &joined, count, last, logits);
    }
    free(joined);
    free(all);
    return error;
}

moec_error moec_session_run_padded(moec_session *session, const int64_t *ids, const uint8_t *mask, int64_t count,
                                   int64_t last, moec_tensor *logits) {
    if (session == NULL || ids == NULL || logits == NULL || last < 0)
        return moec_fail(MOEC_ERROR_ARGUMENT, "the session, the ids or the logits are NULL, or last is below 0");
    return claim(session) ? let_go(session, run(session, ids, mask, count, last, logits)) : busy();
}

moec_error moec_session_run(moec_session *session, const int64_t *ids, int64_t count, int64_t last,
                            moec_tensor *logits) {
    return moec_session_run_padded(session, ids, NULL, count, last, logits);
}

/* Forget ids and mask behind `length`. */
static void cut_ids(moec_session *session, int64_t length) {
    for (int64_t row = 1; row < session->batch; row++) {
        int64_t to = row * length, from = row * session->length;
        if (session->seen != NULL) memmove(session->seen + to, session->seen + from, (size_t)length * sizeof(int64_t));
        if (session->mask != NULL) memmove(session->mask + to, session->mask + from, (size_t)length);
    }
}

moec_error moec_session_truncate(moec_session *session, int64_t length) {
    if (session == NULL) return moec_fail(MOEC_ERROR_ARGUMENT, "the session is NULL");
    if (!claim(session)) return busy();
    moec_error error = MOEC_OK;
    if (length < 0 || length > session->length)
        error = moec_fail(MOEC_ERROR_INPUT, "truncate to %lld tokens; expected 0 to %lld", (long long)length,
                          (long long)session->length);
    else
        error = moec_states_truncate(session, length);
    if (error == MOEC_OK) {
        cut_ids(session, length);
        session->length = length;
    }
    return let_go(session, error);
}

static moec_error fork_session(const moec_session *session, moec_session *copy) {
    size_t count = (size_t)(session->batch * session->length), ids = count * sizeof(int64_t);
    copy->model = session->model, copy->batch = session->batch, copy->most = session->most;
    copy->length = session->length, copy->is_incremental = session->is_incremental;
    if (session->seen != NULL && (copy->seen = moec_allocate(ids)) == NULL)
        return moec_fail(MOEC_ERROR_MEMORY, "there is not enough memory for another session");
    if (session->seen != NULL) memcpy(copy->seen, session->seen, ids);
    if (session->mask != NULL && (copy->mask = moec_allocate(count)) == NULL)
        return moec_fail(MOEC_ERROR_MEMORY, "there is not enough memory for another session");
    if (session->mask != NULL) memcpy(copy->mask, session->mask, count);
    return moec_states_copy(session, copy);
}

moec_error moec_session_fork(moec_session *session, moec_session **copy) {
    if (session == NULL || copy == NULL) return moec_fail(MOEC_ERROR_ARGUMENT, "the session or its copy is NULL");
    *copy = NULL;
    if (!claim(session)) return busy();
    moec_session *other = calloc(1, sizeof *other);
    moec_error error = other != NULL ? fork_session(session, other)
                                     : moec_fail(MOEC_ERROR_MEMORY, "there is not enough memory for another session");
    if (error == MOEC_OK)
        *copy = other;
    else
        moec_session_end(other);
    return let_go(session, error);
}

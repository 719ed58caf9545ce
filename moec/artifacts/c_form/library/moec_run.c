/* Runs: inputs are checked, the program computes, and results belong to the caller. */

#include "moec_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static _Thread_local char raised[400]; /* by a kernel */
static _Thread_local bool raised_for_sizes;

void moec_raise(const char *kind, const char **parts, int32_t count) {
    size_t length = 0;
    raised[0] = 0;
    for (int32_t at = 0; at < count && length < sizeof raised; at++)
        length += (size_t)snprintf(raised + length, sizeof raised - length, "%s", parts[at]);
    bool asks = strstr(raised, "; expected ") != NULL || strncmp(raised, "Mismatched ", 11) == 0;
    raised_for_sizes = strcmp(kind, "ValueError") == 0 && asks;
}

bool moec_call_kernel(moec_call *call, moec_kernel *kernel, const moec_value *arguments, int32_t count) {
    moec_value nothing = {0};
    raised[0] = 0, raised_for_sizes = false;
    if (kernel(NULL, arguments, count, &nothing) == 0) return true;
    call->error = raised_for_sizes ? MOEC_ERROR_INPUT : MOEC_ERROR_DEFECT;
    snprintf(call->text, sizeof call->text, "the model cannot run on inputs of these sizes: %s", raised);
    return false;
}

bool moec_check(moec_call *call, bool holds, const char *what) {
    if (holds) return true;
    call->error = MOEC_ERROR_INPUT;
    snprintf(call->text, sizeof call->text, "the model cannot run on inputs of these sizes: %s", what);
    return false;
}

bool moec_check_equal(moec_call *call, int64_t actual, int64_t expected, const char *what) {
    if (actual == expected) return true;
    call->error = MOEC_ERROR_INPUT;
    snprintf(call->text, sizeof call->text, "the model cannot run on inputs of these sizes: %s is %lld; expected %lld",
             what, (long long)actual, (long long)expected);
    return false;
}

void moec_set_result(moec_call *call, int32_t at, const moec_view *view) {
    moec_result *result = call->results + at;
    result->view = *view;
    moec_copy(result->shape, view->shape, (size_t)view->rank * sizeof *view->shape);
    result->view.shape = result->shape;
}

/* Check the inputs themselves; sizes are checked against each other later. */
moec_error moec_check_input(const moec_spec *spec, const moec_tensor *tensor) {
    if (tensor->type != spec->type)
        return moec_fail(MOEC_ERROR_INPUT, "input '%s' has type %s (%d); expected %s", spec->name,
                         moec_type_name(tensor->type), (int)tensor->type, moec_type_name(spec->type));
    if (tensor->rank != spec->rank)
        return moec_fail(MOEC_ERROR_INPUT, "input '%s' has rank %d; expected %d", spec->name, tensor->rank, spec->rank);
    for (int32_t axis = 0; axis < spec->rank; axis++) {
        int64_t size = tensor->shape[axis], expected = spec->sizes[axis];
        if (size < 0 || size > MOEC_MOST_SIZE || (expected >= 0 && size != expected))
            return moec_fail(MOEC_ERROR_INPUT, "input '%s' has size %lld on axis %d; expected %lld%s", spec->name,
                             (long long)size, axis, (long long)(expected < 0 ? 0 : expected),
                             expected < 0 ? " or more" : "");
    }
    double bytes = moec_elements(spec->rank, tensor->shape) * (double)moec_type_size(spec->type);
    if (bytes >= MOEC_MOST_BYTES)
        return moec_fail(MOEC_ERROR_INPUT, "input '%s' would have %.0f bytes", spec->name, bytes);
    if (bytes > 0 && tensor->data == NULL)
        return moec_fail(MOEC_ERROR_ARGUMENT, "the data of input '%s' is NULL", spec->name);
    if (tensor->bytes != 0 && (double)tensor->bytes != bytes)
        return moec_fail(MOEC_ERROR_INPUT, "input '%s' has %zu bytes; expected the %.0f of its shape", spec->name,
                         tensor->bytes, bytes);
    return MOEC_OK;
}

static moec_error check_file(const moec_model *model) {
    struct stat status;
    if (model->file < 0) return MOEC_OK;
    if (fstat(model->file, &status) == 0 && (uint64_t)status.st_size >= model->program->weight_bytes) return MOEC_OK;
    return moec_fail(MOEC_ERROR_FILE, "the file of the weights of %s was cut while it was in use; load it anew",
                     model->program->name);
}

/* The caller's memory for an output, where the program may compute it there. */
static void offer_place(moec_result *result, const moec_tensor *output) {
    bool is_aligned = (uintptr_t)output->data % MOEC_ALIGNMENT == 0;
    result->place = is_aligned ? output->data : NULL;
    result->room = output->bytes;
}

static moec_error give_result(const moec_spec *spec, const moec_result *result, moec_tensor *output) {
    size_t bytes = (size_t)(moec_elements(spec->rank, result->shape) * (double)moec_type_size(spec->type));
    if (output->data == NULL) {
        output->data = moec_allocate(bytes);
        if (output->data == NULL)
            return moec_fail(MOEC_ERROR_MEMORY, "there is not enough memory for output '%s' (%zu bytes)", spec->name,
                             bytes);
        output->bytes = bytes;
    } else if (output->bytes < bytes) {
        return moec_fail(MOEC_ERROR_ARGUMENT, "output '%s' has room for %zu bytes; expected %zu", spec->name,
                         output->bytes, bytes);
    }
    if (result->view.data != output->data) moec_copy(output->data, result->view.data, bytes);
    output->type = spec->type, output->rank = spec->rank;
    memcpy(output->shape, result->shape, (size_t)spec->rank * sizeof *output->shape);
    return MOEC_OK;
}

static void *aligned_copy(moec_call *call, const moec_tensor *input) {
    void *copy = moec_take(call, (double)moec_bytes_of(input));
    return copy == NULL ? NULL : memcpy(copy, input->data, moec_bytes_of(input));
}

/* The views of the inputs, as kernels take them. */
static bool place_inputs(moec_call *call, const moec_program *program, const moec_tensor *inputs, moec_view *views) {
    static const _Alignas(MOEC_LINE) char nothing[MOEC_LINE]; /* an address, where there are no elements */
    for (int32_t at = 0; at < program->input_count; at++) {
        const moec_tensor *input = inputs + at;
        void *data = moec_bytes_of(input) == 0 ? (void *)nothing : input->data;
        if ((uintptr_t)data % MOEC_ALIGNMENT != 0 && (data = aligned_copy(call, input)) == NULL) return false;
        views[at] = moec_view_of(input->type, data, input->rank, input->shape);
    }
    return true;
}

/* Replace states among the inputs by pages: those of a session, or new ones. */
static bool place_states(moec_call *call, const moec_program *program, const moec_pages *pages, moec_pages *new_pages,
                         const int64_t *sizes, moec_view *views) {
    for (int32_t at = 0; at < program->held_count; at++) {
        const moec_held *held = program->held + at;
        if (pages == NULL && !moec_store_state(call, held, views + held->input, sizes, new_pages + at)) return false;
        views[held->input] = pages == NULL ? new_pages[at].view : pages[at].view;
    }
    return true;
}

static moec_error give_results(moec_call *call, const moec_program *program, const moec_pages *pages,
                               moec_tensor *outputs) {
    bool is_held[program->output_count + 1];
    memset(is_held, 0, sizeof is_held);
    for (int32_t at = 0; at < program->held_count; at++) {
        const moec_held *held = program->held + at;
        moec_result *result = call->results + held->output;
        is_held[held->output] = pages != NULL;
        if (pages == NULL && !moec_restore_state(call, held, program->outputs + held->output, result))
            return moec_fail(call->error, "%s", call->text);
    }
    for (int32_t at = 0; at < program->output_count; at++) {
        if (is_held[at]) continue;
        moec_error error = give_result(program->outputs + at, call->results + at, outputs + at);
        if (error != MOEC_OK) return error;
    }
    return MOEC_OK;
}

static moec_error run_call(moec_model *model, moec_call *call, const moec_tensor *inputs, const int64_t *sizes,
                           const moec_pages *pages, moec_tensor *outputs) {
    const moec_program *program = model->program;
    moec_view views[program->input_count + 1];
    moec_value values[program->input_count + 1];
    moec_pages new_pages[program->held_count + 1];
    int64_t lengths[program->length_count + 1];
    for (int32_t at = 0; at < program->length_count; at++)
        lengths[at] = inputs[program->lengths[at][0]].shape[program->lengths[at][1]];
    for (int32_t at = 0; at < program->input_count; at++) values[at] = moec_of_view(views + at);
    call->inputs = values, call->lengths = lengths;
    bool is_done = place_inputs(call, program, inputs, views) &&
                   place_states(call, program, pages, new_pages, sizes, views) && program->run(call) == MOEC_OK;
    return is_done ? give_results(call, program, pages, outputs) : moec_fail(call->error, "%s", call->text);
}

moec_error moec_run_bound(moec_model *model, const moec_tensor *inputs, const int64_t *sizes, const moec_pages *pages,
                          int64_t wanted, moec_tensor *outputs) {
    const moec_program *program = model->program;
    moec_result results[program->output_count + 1];
    moec_error error = check_file(model);
    if (error != MOEC_OK) return error;
    for (int32_t at = 0; at < program->output_count; at++) offer_place(results + at, outputs + at);
    pthread_mutex_lock(&model->turn);
    moec_call call = {.wanted = wanted, .weights = model->weights, .results = results, .arena = model->arena,
                      .team = model->team};
    error = run_call(model, &call, inputs, sizes, pages, outputs);
    moec_loops_free(&call);
    moec_arena_end_run(model->arena);
    pthread_mutex_unlock(&model->turn);
    return error;
}

static moec_error run(moec_model *model, const moec_tensor *inputs, moec_tensor *outputs) {
    const moec_program *program = model->program;
    int64_t sizes[program->size_count + 1];
    for (int32_t at = 0; at < program->input_count; at++) {
        moec_error error = moec_check_input(program->inputs + at, inputs + at);
        if (error != MOEC_OK) return error;
    }
    moec_error error = moec_bind_sizes(program, inputs, sizes);
    if (error != MOEC_OK) return error;
    int64_t wanted = program->last_input < 0 ? 0 : inputs[program->last_input].shape[1];
    return moec_run_bound(model, inputs, sizes, NULL, wanted, outputs);
}

moec_error moec_run(moec_model *model, const moec_tensor *inputs, size_t input_count, moec_tensor *outputs,
                    size_t output_count) {
    if (model == NULL || (inputs == NULL && input_count != 0) || (outputs == NULL && output_count != 0))
        return moec_fail(MOEC_ERROR_ARGUMENT, "the model, the inputs or the outputs are NULL");
    const moec_program *program = model->program;
    if (input_count != (size_t)program->input_count || output_count != (size_t)program->output_count)
        return moec_fail(MOEC_ERROR_ARGUMENT, "%zu inputs and %zu outputs are given; %s has %d and %d", input_count,
                         output_count, program->name, program->input_count, program->output_count);
    bool allocated[output_count + 1];
    for (size_t at = 0; at < output_count; at++) allocated[at] = outputs[at].data == NULL;
    moec_error error = run(model, inputs, outputs);
    for (size_t at = 0; error != MOEC_OK && at < output_count; at++)
        if (allocated[at]) moec_release(outputs + at);
    return error;
}

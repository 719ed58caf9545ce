/* Loops whose number of steps is known only when they run: moec/runtime/loops.py in C. */

#include "moec_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Limits of moec/common/loop_steps.py: a file may contain a loop that never ends. Tests set lower ones. */
#ifndef MOST_STEPS
#define MOST_STEPS ((int64_t)1 << 20)
#endif
#ifndef MOST_GROWTH
#define MOST_GROWTH ((double)((int64_t)1 << 30))
#endif
#define MOST_CARRIED ((double)((int64_t)1 << 38))

/* A state, in one of two pieces of memory: a step reads one and writes the other. */
typedef struct {
    moec_view view;
    int64_t shape[MOEC_MAX_RANK + 1];
    void *memory[2];
    size_t room[2];
    int32_t current; /* -1: it is what the program gave */
} moec_carried;

/* The slices of one result, one after the other. */
typedef struct {
    moec_view view; /* of the first slice */
    int64_t shape[MOEC_MAX_RANK + 1];
    char *memory;
    size_t bytes; /* of a slice */
    int64_t room;
} moec_slices;

/* A loop while it runs, and when it has ended. */
typedef struct {
    const moec_loop *loop;
    moec_carried *states;
    moec_slices *slices;
    int32_t slice_count;
    int64_t trips, steps;
    bool goes_on;
    double first, carried; /* bytes of states that may grow: before the first step, and the sum over all steps */
} moec_taken;

struct moec_loops {
    moec_taken *taken;
    int64_t count, room;
};

static size_t bytes_of(const moec_view *view) {
    return (size_t)(moec_elements(view->rank, view->shape) * view->type_bits / 8);
}

static bool fails(moec_call *call, moec_error error, const char *text) {
    call->error = error;
    if (text != call->text) snprintf(call->text, sizeof call->text, "%s", text);
    return false;
}

static bool has_no_memory(moec_call *call) {
    return fails(call, MOEC_ERROR_MEMORY, "there is not enough memory for the results of a loop");
}

static void free_taken(moec_taken *taken) {
    for (int32_t at = 0; taken->states != NULL && at < taken->loop->state_count; at++) {
        free(taken->states[at].memory[0]);
        free(taken->states[at].memory[1]);
    }
    for (int32_t at = 0; taken->slices != NULL && at < taken->slice_count; at++) free(taken->slices[at].memory);
    free(taken->states);
    free(taken->slices);
}

void moec_loops_free(moec_call *call) {
    for (int64_t at = 0; call->loops != NULL && at < call->loops->count; at++) free_taken(call->loops->taken + at);
    if (call->loops != NULL) free(call->loops->taken);
    free(call->loops);
    call->loops = NULL;
}

/* Keep a loop. Returns its number, or -1 where there is no memory. */
static int64_t keep(moec_call *call, const moec_taken *taken) {
    if (call->loops == NULL) call->loops = calloc(1, sizeof *call->loops);
    struct moec_loops *loops = call->loops;
    if (loops == NULL) return -1;
    if (loops->count == loops->room) {
        int64_t room = loops->room ? 2 * loops->room : 4;
        moec_taken *more = realloc(loops->taken, (size_t)room * sizeof *more);
        if (more == NULL) return -1;
        loops->taken = more, loops->room = room;
    }
    loops->taken[loops->count] = *taken;
    return loops->count++;
}

static void set_view(moec_view *view, int64_t *shape, const moec_view *from, void *data) {
    moec_copy(shape, from->shape, (size_t)from->rank * sizeof *shape);
    *view = *from;
    view->shape = shape, view->data = data;
}

/* Make room for a number of bytes, whose content is lost. */
static bool make_room(void **memory, size_t *room, size_t bytes) {
    if (*memory != NULL && *room >= bytes) return true;
    free(*memory);
    *memory = moec_allocate(bytes);
    *room = *memory == NULL ? 0 : bytes;
    return *memory != NULL;
}

/* Let a state be a result of a step, which may be in the state's own memory already. */
static bool carry(moec_carried *state, const moec_view *result) {
    int32_t next = state->current == 0;
    size_t bytes = bytes_of(result);
    if (result->data != state->memory[next]) {
        if (!make_room(&state->memory[next], &state->room[next], bytes)) return false;
        moec_copy(state->memory[next], result->data, bytes);
    }
    set_view(&state->view, state->shape, result, state->memory[next]);
    state->current = next;
    return true;
}

static bool has_same_shape(const moec_view *one, const moec_view *other) {
    bool is_same = one->rank == other->rank;
    for (int32_t axis = 0; is_same && axis < one->rank; axis++) is_same = one->shape[axis] == other->shape[axis];
    return is_same;
}

static size_t write_shape(char *text, size_t room, const moec_view *view) {
    size_t length = (size_t)snprintf(text, room, "[");
    for (int32_t axis = 0; axis < view->rank && length < room; axis++)
        length += (size_t)snprintf(text + length, room - length, axis ? ", %lld" : "%lld", (long long)view->shape[axis]);
    return length < room ? length + (size_t)snprintf(text + length, room - length, "]") : room;
}

static bool slices_differ(moec_call *call, const moec_view *first, const moec_view *other) {
    char shapes[2][200];
    write_shape(shapes[0], sizeof shapes[0], first);
    write_shape(shapes[1], sizeof shapes[1], other);
    snprintf(call->text, sizeof call->text, "the steps of a loop make slices of sizes %s and %s; expected equal sizes",
             shapes[0], shapes[1]);
    return fails(call, MOEC_ERROR_INPUT, call->text);
}

/* Add a copy of a slice. `most`: how many there will be, 0 where only the last step tells. */
static bool add_slice(moec_call *call, moec_slices *slices, const moec_view *slice, int64_t step, int64_t most) {
    if (step == 0) {
        set_view(&slices->view, slices->shape, slice, NULL);
        slices->bytes = bytes_of(slice);
    } else if (!has_same_shape(&slices->view, slice)) {
        return slices_differ(call, &slices->view, slice);
    }
    if (step >= slices->room) {
        int64_t room = most > 0 ? most : step ? 2 * step : 4;
        if ((double)room * (double)slices->bytes >= MOEC_MOST_BYTES) return has_no_memory(call);
        char *memory = realloc(slices->memory, (size_t)room * slices->bytes + 1);
        if (memory == NULL) return has_no_memory(call);
        slices->memory = memory, slices->room = room;
    }
    moec_copy(slices->memory + (size_t)step * slices->bytes, slice->data, slices->bytes);
    return true;
}

/* The bytes of the states that may grow: those with a size that the program asks for. */
static double growing(const moec_taken *taken) {
    double bytes = 0;
    for (int32_t state = 0; state < taken->loop->state_count; state++)
        for (int32_t at = 0; at < taken->loop->place_count; at++) {
            if (taken->loop->places[at][0] != state) continue;
            bytes += (double)bytes_of(&taken->states[state].view);
            break;
        }
    return bytes;
}

static bool is_within_limits(moec_call *call, moec_taken *taken, bool is_counted) {
    double carried = growing(taken), kept = 0;
    double growth = carried > taken->first ? carried - taken->first : 0;
    for (int32_t at = 0; at < taken->slice_count && !is_counted; at++)
        kept += (double)taken->steps * (double)taken->slices[at].bytes;
    taken->carried += growth;
    char problem[160];
    if (taken->steps + 1 > MOST_STEPS)
        snprintf(problem, sizeof problem, "goes on behind its step %lld", (long long)MOST_STEPS);
    else if (growth + kept > MOST_GROWTH || taken->carried > MOST_CARRIED)
        snprintf(problem, sizeof problem, "holds %.0f bytes in its step %lld, and %.0f in its first", carried + kept,
                 (long long)taken->steps + 1, taken->first);
    else
        return true;
    snprintf(call->text, sizeof call->text, "a loop %s; expected it to end before: run the model on shorter inputs, or "
             "mend the condition that ends the loop", problem);
    return fails(call, MOEC_ERROR_INPUT, call->text);
}

/* Compute one step, whose results are in memory until the arena is left. */
static bool compute_step(moec_call *call, const moec_taken *taken, const moec_value *values, bool going,
                         moec_result *results) {
    const moec_loop *loop = taken->loop;
    _Alignas(MOEC_ALIGNMENT) int64_t number = taken->steps;
    _Alignas(MOEC_ALIGNMENT) bool goes_on = going;
    moec_view first[] = {moec_view_of(MOEC_INT64, &number, 0, NULL), moec_view_of(MOEC_BOOL, &goes_on, 0, NULL)};
    moec_value inputs[loop->input_count + 1];
    memcpy(inputs, values, (size_t)loop->input_count * sizeof *inputs);
    inputs[0] = moec_of_view(first), inputs[1] = moec_of_view(first + 1);
    for (int32_t at = 0; at < loop->state_count; at++) inputs[2 + at] = moec_of_view(&taken->states[at].view);
    moec_call step = {.inputs = inputs, .weights = values + loop->input_count, .results = results, .arena = call->arena,
                      .team = call->team};
    bool is_done = loop->body(&step) == MOEC_OK;
    moec_enter(call);
    moec_loops_free(&step);
    return is_done || fails(call, step.error, step.text);
}

/* Offer each state's other memory to the result that follows it. */
static void offer_places(const moec_taken *taken, moec_result *results) {
    memset(results, 0, (size_t)taken->loop->result_count * sizeof *results);
    for (int32_t at = 0; at < taken->loop->state_count; at++) {
        const moec_carried *state = taken->states + at;
        results[taken->loop->asks + at].place = state->memory[state->current == 0];
        results[taken->loop->asks + at].room = state->room[state->current == 0];
    }
}

/* Take over the results of a step. */
static bool advance(moec_call *call, moec_taken *taken, const moec_result *results, bool is_counted) {
    const moec_loop *loop = taken->loop;
    if (loop->asks) {
        if (!moec_check_equal(call, (int64_t)moec_elements(results->view.rank, results->shape), 1,
                              "the number of conditions of a loop"))
            return false;
        taken->goes_on = *(const bool *)results->view.data;
        results++;
    }
    for (int32_t at = 0; at < loop->state_count; at++)
        if (!carry(taken->states + at, &results[at].view)) return has_no_memory(call);
    for (int32_t at = 0; at < taken->slice_count; at++) {
        int64_t most = is_counted ? taken->trips : 0;
        if (!add_slice(call, taken->slices + at, &results[loop->state_count + at].view, taken->steps, most)) return false;
    }
    taken->steps++;
    return true;
}

static bool take_steps(moec_call *call, moec_taken *taken, const moec_value *values) {
    const moec_loop *loop = taken->loop;
    moec_result results[loop->result_count + 1];
    bool is_counted = !loop->asks && taken->trips <= MOST_STEPS, going = taken->goes_on;
    taken->first = growing(taken);
    while (taken->steps < taken->trips && taken->goes_on) {
        if (!is_within_limits(call, taken, is_counted)) return false;
        going = taken->goes_on;
        offer_places(taken, results);
        moec_arena_enter(call->arena);
        bool is_done = compute_step(call, taken, values, going, results) && advance(call, taken, results, is_counted);
        moec_arena_leave(call->arena);
        if (!is_done) return false;
    }
    return true;
}

/* The sizes of slices where there is no step: those that a first one would make, and 0 where it cannot be computed. */
static void imagine_step(moec_call *call, moec_taken *taken, const moec_value *values) {
    moec_result results[taken->loop->result_count + 1];
    offer_places(taken, results);
    moec_arena_enter(call->arena);
    if (compute_step(call, taken, values, taken->goes_on, results)) {
        for (int32_t at = 0; at < taken->slice_count; at++) {
            const moec_view *slice = &results[taken->loop->asks + taken->loop->state_count + at].view;
            set_view(&taken->slices[at].view, taken->slices[at].shape, slice, NULL);
        }
    }
    moec_arena_leave(call->arena);
    call->error = MOEC_OK;
}

static int64_t size_at(const moec_taken *taken, const int32_t *place) {
    int32_t states = taken->loop->state_count;
    const moec_view *view = place[0] < states ? &taken->states[place[0]].view : &taken->slices[place[0] - states].view;
    return place[1] < view->rank ? view->shape[place[1]] : 0;
}

/* Read where the loop begins: its states are copies where no step replaces them. */
static bool begin(moec_taken *taken, const moec_loop *loop, const moec_value *arguments) {
    *taken = (moec_taken){.loop = loop, .slice_count = loop->result_count - loop->asks - loop->state_count};
    taken->states = calloc((size_t)loop->state_count + 1, sizeof *taken->states);
    taken->slices = calloc((size_t)taken->slice_count + 1, sizeof *taken->slices);
    if (taken->states == NULL || taken->slices == NULL) return false;
    memcpy(&taken->trips, arguments[0].view->data, sizeof taken->trips);
    memcpy(&taken->goes_on, arguments[1].view->data, sizeof taken->goes_on);
    for (int32_t at = 0; at < loop->state_count; at++) {
        moec_carried *state = taken->states + at;
        const moec_view *given = arguments[2 + at].view;
        state->current = -1;
        set_view(&state->view, state->shape, given, given->data);
    }
    return true;
}

/* Copy the states of a loop without steps: what the program gave lies in memory that it may write to. */
static bool copy_states(moec_taken *taken) {
    for (int32_t at = 0; taken->steps == 0 && at < taken->loop->state_count; at++) {
        moec_view given = taken->states[at].view;
        if (!carry(taken->states + at, &given)) return false;
    }
    return true;
}

bool moec_take_loop(moec_call *call, const moec_loop *loop, const moec_value *arguments, int64_t *report) {
    moec_taken taken;
    if (!begin(&taken, loop, arguments)) {
        free_taken(&taken);
        return has_no_memory(call);
    }
    bool is_done = take_steps(call, &taken, arguments);
    if (is_done && taken.steps == 0 && loop->place_count > 0) imagine_step(call, &taken, arguments);
    if (is_done && !copy_states(&taken)) is_done = has_no_memory(call);
    int64_t number = is_done ? keep(call, &taken) : -1;
    if (number < 0) {
        free_taken(&taken);
        return is_done ? has_no_memory(call) : false;
    }
    report[0] = number, report[1] = taken.steps;
    const moec_taken *kept = call->loops->taken + number;
    for (int32_t at = 0; at < loop->place_count; at++) report[2 + at] = size_at(kept, loop->places[at]);
    return true;
}

static bool write_slices(const moec_taken *taken, const moec_slices *slices, int32_t axis, bool is_backward,
                         const moec_view *y) {
    if (y->rank != slices->view.rank + 1 || y->shape[axis] != taken->steps) return false;
    if (bytes_of(y) != (size_t)taken->steps * slices->bytes) return false;
    int64_t before = (int64_t)moec_elements(axis, slices->view.shape);
    size_t inner = before > 0 ? slices->bytes / (size_t)before : 0;
    for (int64_t step = 0; step < taken->steps && inner > 0; step++) {
        int64_t place = is_backward ? taken->steps - 1 - step : step;
        for (int64_t row = 0; row < before; row++)
            memcpy((char *)y->data + (size_t)(row * taken->steps + place) * inner,
                   slices->memory + (size_t)step * slices->bytes + (size_t)row * inner, inner);
    }
    return true;
}

bool moec_loop_result(moec_call *call, const int64_t *report, int32_t result, int32_t axis, bool is_backward,
                      const moec_view *y) {
    const moec_taken *taken = call->loops->taken + report[0];
    int32_t slice = result - taken->loop->state_count;
    bool fits = true;
    if (slice < 0) {
        const moec_view *state = &taken->states[result].view;
        fits = has_same_shape(state, y);
        if (fits) moec_copy(y->data, state->data, bytes_of(y));
    } else if (taken->steps > 0) {
        fits = write_slices(taken, taken->slices + slice, axis, is_backward, y);
    }
    return moec_check(call, fits, "a loop makes a result of other sizes than the model says");
}

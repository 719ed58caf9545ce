/* Calls of moec.h that are wrong, at the edge, or from many threads at once. The model is an attention with its cache:
 * ids, attention_mask, k, v -> logits, pk, pv. Prints what was not as expected, and exits with 1 then.
 *
 *     attack WEIGHTS TRUNCATED_WEIGHTS OTHER_WEIGHTS TIMES */

#include "attending.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 8, BATCH = 2, PAST = 3, NEW = 4, TOTAL = PAST + NEW, WIDTH = 4, HUGE_SIZE = 1 << 30 };

static int failures;

#define EXPECT(call, expected) expect(call, expected, #call, __LINE__)
#define CHECK(condition) expect((condition) ? MOEC_OK : MOEC_ERROR_DEFECT, MOEC_OK, #condition, __LINE__)

static void expect(moec_error actual, moec_error expected, const char *what, int line) {
    if (actual == expected && (expected == MOEC_OK || moec_last_error()[0] != 0)) return;
    printf("line %d: %s is %s (%s); expected %s\n", line, what, moec_error_name(actual), moec_last_error(),
           moec_error_name(expected));
    failures++;
}

typedef struct {
    int64_t ids[BATCH * NEW], mask[BATCH * TOTAL];
    float k[BATCH * PAST * WIDTH], v[BATCH * PAST * WIDTH];
    moec_tensor inputs[4], outputs[3];
} run_data;

static void prepare(run_data *data) {
    memset(data, 0, sizeof *data);
    for (int at = 0; at < BATCH * NEW; at++) data->ids[at] = at % 5;
    for (int at = 0; at < BATCH * TOTAL; at++) data->mask[at] = 1;
    for (int at = 0; at < BATCH * PAST * WIDTH; at++) data->k[at] = (float)at / 8, data->v[at] = 1 - (float)at / 4;
    data->inputs[0] = (moec_tensor){data->ids, sizeof data->ids, MOEC_INT64, 2, {BATCH, NEW}};
    data->inputs[1] = (moec_tensor){data->mask, sizeof data->mask, MOEC_INT64, 2, {BATCH, TOTAL}};
    data->inputs[2] = (moec_tensor){data->k, sizeof data->k, MOEC_FLOAT32, 4, {BATCH, 1, PAST, WIDTH}};
    data->inputs[3] = (moec_tensor){data->v, sizeof data->v, MOEC_FLOAT32, 4, {BATCH, 1, PAST, WIDTH}};
}

static void release(run_data *data) {
    for (int at = 0; at < 3; at++) moec_release(data->outputs + at);
}

static void null_pointers(moec_model *model, const char *weights) {
    run_data data;
    moec_model *other = model;
    moec_session *session = NULL;
    int64_t id = 1;
    prepare(&data);
    EXPECT(moec_load(NULL, weights, NULL, &other), MOEC_ERROR_ARGUMENT);
    EXPECT(moec_load(&attending_program, weights, NULL, NULL), MOEC_ERROR_ARGUMENT);
    EXPECT(moec_load(&attending_program, NULL, NULL, &other), MOEC_ERROR_ARGUMENT);
    CHECK(other == NULL);
    EXPECT(moec_run(NULL, data.inputs, 4, data.outputs, 3), MOEC_ERROR_ARGUMENT);
    EXPECT(moec_run(model, NULL, 4, data.outputs, 3), MOEC_ERROR_ARGUMENT);
    EXPECT(moec_run(model, data.inputs, 4, NULL, 3), MOEC_ERROR_ARGUMENT);
    EXPECT(moec_session_begin(NULL, 0, 1, &session), MOEC_ERROR_ARGUMENT);
    EXPECT(moec_session_begin(model, 0, 1, NULL), MOEC_ERROR_ARGUMENT);
    EXPECT(moec_session_run(NULL, &id, 1, 1, data.outputs), MOEC_ERROR_ARGUMENT);
    EXPECT(moec_session_run_padded(NULL, &id, NULL, 1, 1, data.outputs), MOEC_ERROR_ARGUMENT);
    EXPECT(moec_session_truncate(NULL, 0), MOEC_ERROR_ARGUMENT);
    EXPECT(moec_session_fork(NULL, &session), MOEC_ERROR_ARGUMENT);
    EXPECT(moec_session_begin(model, 0, 1, &session), MOEC_OK);
    EXPECT(moec_session_run(session, NULL, 1, 1, data.outputs), MOEC_ERROR_ARGUMENT);
    EXPECT(moec_session_run(session, &id, 1, 1, NULL), MOEC_ERROR_ARGUMENT);
    EXPECT(moec_session_fork(session, NULL), MOEC_ERROR_ARGUMENT);
    moec_session_end(session);
    size_t count = 1;
    CHECK(moec_inputs(NULL, &count) == NULL && count == 0);
    CHECK(moec_name(NULL) == NULL && moec_threads(NULL) == 0 && moec_session_length(NULL) == 0);
    CHECK(moec_outputs(&attending_program, NULL) != NULL);
    CHECK(strcmp(moec_type_name((moec_type)99), "unknown") == 0 && moec_type_size((moec_type)-1) == 0);
    moec_free(NULL), moec_session_end(NULL), moec_release(NULL);
}

static void files(const char *truncated, const char *others) {
    moec_model *model;
    moec_options wrong = {.threads = -1}, unknown = {.reserved = 1};
    EXPECT(moec_load(&attending_program, "no such file", NULL, &model), MOEC_ERROR_FILE);
    EXPECT(moec_load(&attending_program, "/", NULL, &model), MOEC_ERROR_FILE);
    EXPECT(moec_load(&attending_program, "/dev/zero", NULL, &model), MOEC_ERROR_FILE);
    EXPECT(moec_load(&attending_program, truncated, NULL, &model), MOEC_ERROR_FILE);
    CHECK(strstr(moec_last_error(), truncated) != NULL);
    EXPECT(moec_load(&attending_program, others, NULL, &model), MOEC_ERROR_FILE);
    CHECK(strstr(moec_last_error(), "has the weights of another model than attending") != NULL);
    EXPECT(moec_load(&attending_program, truncated, &wrong, &model), MOEC_ERROR_ARGUMENT);
    EXPECT(moec_load(&attending_program, truncated, &unknown, &model), MOEC_ERROR_ARGUMENT);
}

/* One input at a time is wrong; then nothing is allocated, and the model works on. */
static void wrong_inputs(moec_model *model) {
    static const int64_t sizes[] = {-1, 8, HUGE_SIZE, INT64_MAX, INT64_MIN};
    run_data data;
    prepare(&data);
    EXPECT(moec_run(model, data.inputs, 3, data.outputs, 3), MOEC_ERROR_ARGUMENT);
    EXPECT(moec_run(model, data.inputs, 4, data.outputs, 4), MOEC_ERROR_ARGUMENT);
    for (int input = 0; input < 4; input++) {
        for (int type = -1; type < 18; type++) {
            prepare(&data);
            if (data.inputs[input].type == (moec_type)type) continue;
            data.inputs[input].type = (moec_type)type;
            EXPECT(moec_run(model, data.inputs, 4, data.outputs, 3), MOEC_ERROR_INPUT);
        }
        for (int rank = -1; rank < 20; rank++) {
            prepare(&data);
            if (data.inputs[input].rank == rank) continue;
            data.inputs[input].rank = rank;
            EXPECT(moec_run(model, data.inputs, 4, data.outputs, 3), MOEC_ERROR_INPUT);
        }
        for (size_t at = 0; at < sizeof sizes / sizeof *sizes; at++) {
            prepare(&data);
            data.inputs[input].shape[1] = sizes[at];
            EXPECT(moec_run(model, data.inputs, 4, data.outputs, 3), MOEC_ERROR_INPUT);
        }
        prepare(&data);
        data.inputs[input].data = NULL;
        EXPECT(moec_run(model, data.inputs, 4, data.outputs, 3), MOEC_ERROR_ARGUMENT);
        prepare(&data);
        data.inputs[input].bytes = 5;
        EXPECT(moec_run(model, data.inputs, 4, data.outputs, 3), MOEC_ERROR_INPUT);
        for (int at = 0; at < 3; at++) CHECK(data.outputs[at].data == NULL);
    }
    prepare(&data);
    EXPECT(moec_run(model, data.inputs, 4, data.outputs, 3), MOEC_OK);
    release(&data);
}

static void rooms_of_outputs(moec_model *model) {
    run_data data;
    float logits[BATCH * NEW * WIDTH + 1];
    prepare(&data);
    data.outputs[0] = (moec_tensor){.data = logits, .bytes = sizeof(float)};
    EXPECT(moec_run(model, data.inputs, 4, data.outputs, 3), MOEC_ERROR_ARGUMENT);
    CHECK(data.outputs[1].data == NULL && data.outputs[2].data == NULL);
    for (int shift = 0; shift < 2; shift++) { /* also at an odd multiple of 4 bytes */
        data.outputs[0] = (moec_tensor){.data = logits + shift, .bytes = sizeof(float) * BATCH * NEW * WIDTH};
        EXPECT(moec_run(model, data.inputs, 4, data.outputs, 3), MOEC_OK);
        CHECK(data.outputs[0].data == logits + shift && data.outputs[0].shape[1] == NEW);
    }
    data.outputs[0].data = NULL;
    release(&data);
}

static void empty_inputs(moec_model *model) {
    for (int which = 0; which < 3; which++) {
        run_data data;
        int batch = which == 0 ? 0 : BATCH, count = which == 1 ? 0 : NEW, past = which == 2 ? 0 : PAST;
        prepare(&data);
        for (int at = 0; at < 4; at++) data.inputs[at].bytes = 0, data.inputs[at].shape[0] = batch;
        data.inputs[0].shape[1] = count, data.inputs[1].shape[1] = past + count;
        data.inputs[2].shape[2] = data.inputs[3].shape[2] = past;
        if (which == 1) data.inputs[0].data = NULL; /* no elements need no memory */
        EXPECT(moec_run(model, data.inputs, 4, data.outputs, 3), MOEC_OK);
        CHECK(data.outputs[0].shape[0] == batch && data.outputs[1].shape[2] == past + count);
        release(&data);
    }
}

static void wrong_sessions(moec_model *model) {
    int64_t ids[] = {1, 2, 3, 4, 5, -1};
    moec_session *session;
    moec_tensor logits = {0};
    EXPECT(moec_session_begin(model, -1, 1, &session), MOEC_ERROR_ARGUMENT);
    EXPECT(moec_session_begin(model, 0, 0, &session), MOEC_ERROR_ARGUMENT);
    EXPECT(moec_session_begin(model, INT64_MAX, 1, &session), MOEC_ERROR_ARGUMENT);
    EXPECT(moec_session_begin(model, (int64_t)1 << 39, (int64_t)1 << 39, &session), MOEC_ERROR_MEMORY);
    EXPECT(moec_session_begin(model, 4, 1, &session), MOEC_OK);
    EXPECT(moec_session_run(session, ids, 0, 1, &logits), MOEC_ERROR_INPUT);
    EXPECT(moec_session_run(session, ids, -1, 1, &logits), MOEC_ERROR_INPUT);
    EXPECT(moec_session_run(session, ids, INT64_MAX, 1, &logits), MOEC_ERROR_INPUT);
    EXPECT(moec_session_run(session, ids, 1, -1, &logits), MOEC_ERROR_ARGUMENT);
    EXPECT(moec_session_run(session, ids + 4, 1, 1, &logits), MOEC_ERROR_INPUT);
    EXPECT(moec_session_run(session, ids + 5, 1, 1, &logits), MOEC_ERROR_INPUT);
    EXPECT(moec_session_run(session, ids, 5, 1, &logits), MOEC_ERROR_INPUT);
    CHECK(logits.data == NULL && moec_session_length(session) == 0);
    EXPECT(moec_session_run(session, ids, 4, INT64_MAX, &logits), MOEC_OK);
    CHECK(logits.shape[1] == 4 && moec_session_length(session) == 4);
    EXPECT(moec_session_truncate(session, -1), MOEC_ERROR_INPUT);
    EXPECT(moec_session_truncate(session, 5), MOEC_ERROR_INPUT);
    EXPECT(moec_session_truncate(session, 0), MOEC_OK);
    logits.bytes = 3;
    EXPECT(moec_session_run(session, ids, 1, 1, &logits), MOEC_ERROR_ARGUMENT);
    moec_release(&logits);
    moec_session_end(session);
}

/* Masks are kept, copied and cut with their tokens; a run that fails changes none. */
static void padded_sessions(moec_model *model) {
    static const uint8_t mask[20] = {1, 1, 1, 0, 0, 255};
    int64_t ids[20] = {1, 2, 3, 4, 0, 1};
    moec_session *session, *copy;
    moec_tensor logits = {0};
    EXPECT(moec_session_begin(model, 9, 2, &session), MOEC_OK);
    EXPECT(moec_session_run_padded(session, ids, mask, 3, 0, &logits), MOEC_OK);
    EXPECT(moec_session_run_padded(session, ids, mask, 10, 0, &logits), MOEC_ERROR_INPUT);
    EXPECT(moec_session_run(session, ids, 2, 0, &logits), MOEC_OK);
    EXPECT(moec_session_fork(session, &copy), MOEC_OK);
    EXPECT(moec_session_truncate(session, 1), MOEC_OK);
    EXPECT(moec_session_run_padded(session, ids, mask, 1, 0, &logits), MOEC_OK);
    CHECK(moec_session_length(session) == 2 && moec_session_length(copy) == 5);
    moec_session_end(session);
    EXPECT(moec_session_run(copy, ids, 3, 0, &logits), MOEC_OK);
    moec_session_end(copy);
    moec_release(&logits);
}

typedef struct {
    moec_model *models[2];
    moec_session *shared;
    float expected[BATCH * NEW * WIDTH];
    int times, wrong, busy, done;
    pthread_mutex_t mutex;
} crowd;

static void *work(void *argument) {
    crowd *all = argument;
    run_data data;
    moec_session *session = NULL;
    moec_tensor logits = {0}, others = {0};
    int64_t ids[] = {1, 2, 3};
    int wrong = 0, busy = 0, done = 0;
    prepare(&data);
    for (int time = 0; time < all->times; time++) {
        moec_model *model = all->models[time % 2];
        wrong += moec_run(model, data.inputs, 4, data.outputs, 3) != MOEC_OK;
        wrong += data.outputs[0].data == NULL || memcmp(data.outputs[0].data, all->expected, sizeof all->expected) != 0;
        release(&data);
        wrong += moec_session_begin(model, 0, 1, &session) != MOEC_OK;
        wrong += moec_session_run(session, ids, 3, 1, &logits) != MOEC_OK || moec_session_length(session) != 3;
        moec_session_end(session);
        moec_error error = moec_session_run(all->shared, ids, 1, 1, &others);
        busy += error == MOEC_ERROR_BUSY, done += error == MOEC_OK;
        wrong += error != MOEC_OK && error != MOEC_ERROR_BUSY;
    }
    moec_release(&logits), moec_release(&others);
    pthread_mutex_lock(&all->mutex);
    all->wrong += wrong, all->busy += busy, all->done += done;
    pthread_mutex_unlock(&all->mutex);
    return NULL;
}

static void two_models_in_eight_threads(const char *weights, int times) {
    crowd all = {.times = times, .mutex = PTHREAD_MUTEX_INITIALIZER};
    pthread_t threads[THREADS];
    run_data data;
    for (int at = 0; at < 2; at++)
        EXPECT(moec_load(&attending_program, weights, &(moec_options){.threads = 1 + at}, all.models + at), MOEC_OK);
    EXPECT(moec_session_begin(all.models[0], 0, 1, &all.shared), MOEC_OK);
    prepare(&data);
    EXPECT(moec_run(all.models[0], data.inputs, 4, data.outputs, 3), MOEC_OK);
    memcpy(all.expected, data.outputs[0].data, sizeof all.expected);
    release(&data);
    for (int at = 0; at < THREADS; at++) pthread_create(threads + at, NULL, work, &all);
    for (int at = 0; at < THREADS; at++) pthread_join(threads[at], NULL);
    CHECK(all.wrong == 0 && all.done + all.busy == THREADS * times);
    CHECK(moec_session_length(all.shared) == all.done);
    moec_session_end(all.shared);
    moec_free(all.models[0]), moec_free(all.models[1]);
}

static long resident_pages(void) {
    long all = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file != NULL && fscanf(file, "%ld %ld", &all, &resident) != 2) resident = 0;
    if (file != NULL) fclose(file);
    return resident;
}

static void load_and_free(const char *weights, int times) {
    long before = 0, behind = 0;
    for (int time = 0; time < times; time++) {
        run_data data;
        moec_model *model;
        prepare(&data);
        EXPECT(moec_load(&attending_program, weights, NULL, &model), MOEC_OK);
        EXPECT(moec_run(model, data.inputs, 4, data.outputs, 3), MOEC_OK);
        release(&data);
        moec_free(model);
        behind = resident_pages();
        if (time == times / 10) before = behind;
    }
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    before = behind; /* they keep what was freed */
#endif
    CHECK(behind - before < 64); /* a quarter of a MiB */
}

int main(int count, char **arguments) {
    moec_model *model;
    if (count != 5) return 2;
    CHECK(moec_last_error()[0] == 0);
    EXPECT(moec_load(&attending_program, arguments[1], NULL, &model), MOEC_OK);
    if (model == NULL) return 1;
    null_pointers(model, arguments[1]);
    files(arguments[2], arguments[3]);
    wrong_inputs(model);
    rooms_of_outputs(model);
    empty_inputs(model);
    wrong_sessions(model);
    padded_sessions(model);
    moec_free(model);
    two_models_in_eight_threads(arguments[1], atoi(arguments[4]) / 10);
    load_and_free(arguments[1], atoi(arguments[4]));
    return failures != 0;
}

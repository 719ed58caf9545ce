/* Programs become models: weights are mapped, threads started, and the processor is checked. */

#include "moec_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "moec_machine.h"

const char *moec_name(const moec_program *program) { return program == NULL ? NULL : program->name; }

const moec_spec *moec_inputs(const moec_program *program, size_t *count) {
    if (count != NULL) *count = program == NULL ? 0 : (size_t)program->input_count;
    return program == NULL ? NULL : program->inputs;
}

const moec_spec *moec_outputs(const moec_program *program, size_t *count) {
    if (count != NULL) *count = program == NULL ? 0 : (size_t)program->output_count;
    return program == NULL ? NULL : program->outputs;
}

int32_t moec_threads(const moec_model *model) { return model == NULL ? 0 : model->threads; }

static moec_error map_weights(moec_model *model, const char *path) {
    const moec_program *program = model->program;
    if (program->weight_bytes == 0) return MOEC_OK;
    if (path == NULL) return moec_fail(MOEC_ERROR_ARGUMENT, "the path of the weights of %s is NULL", program->name);
    struct stat status;
    model->file = open(path, O_RDONLY | O_CLOEXEC);
    if (model->file < 0 || fstat(model->file, &status) != 0)
        return moec_fail(MOEC_ERROR_FILE, "%s: cannot be opened: %s", path, strerror(errno));
    if (!S_ISREG(status.st_mode) || (uint64_t)status.st_size != program->weight_bytes)
        return moec_fail(MOEC_ERROR_FILE, "%s: has %lld bytes; expected the %llu of the weights of %s", path,
                         (long long)status.st_size, (unsigned long long)program->weight_bytes, program->name);
    void *mapped = mmap(NULL, program->weight_bytes, PROT_READ, MAP_PRIVATE, model->file, 0);
    if (mapped == MAP_FAILED) return moec_fail(MOEC_ERROR_FILE, "%s: cannot be mapped: %s", path, strerror(errno));
    model->mapped = mapped;
    return MOEC_OK;
}

/* Notice the weights of another model of the same size. */
static moec_error check_stamp(const moec_model *model, const char *path) {
    const moec_program *program = model->program;
    uint64_t stamp = UINT64_C(0xcbf29ce484222325);
    for (int32_t at = 0; at < program->weight_count; at++) {
        uint64_t bytes = program->weights[at].bytes, read = bytes < 64 ? bytes : 64;
        const unsigned char *first = (const unsigned char *)model->mapped + program->weights[at].offset;
        for (uint64_t byte = 0; byte < read; byte++) stamp = (stamp ^ first[byte]) * UINT64_C(0x100000001b3);
        for (uint64_t byte = bytes - read; byte < bytes; byte++) stamp = (stamp ^ first[byte]) * UINT64_C(0x100000001b3);
    }
    if (stamp == program->weight_stamp) return MOEC_OK;
    return moec_fail(MOEC_ERROR_FILE, "%s: has the weights of another model than %s", path, program->name);
}

/* Make the arguments of kernels that are the same in all runs. A weight of rank 0 is a number for the program itself. */
static moec_error place_weights(moec_model *model) {
    const moec_program *program = model->program;
    size_t count = (size_t)program->weight_count + 1;
    model->weight_views = calloc(count, sizeof *model->weight_views);
    model->weights = calloc(count, sizeof *model->weights);
    if (model->weight_views == NULL || model->weights == NULL)
        return moec_fail(MOEC_ERROR_MEMORY, "there is not enough memory to load %s", program->name);
    for (int32_t at = 0; at < program->weight_count; at++) {
        const moec_weight *weight = program->weights + at;
        model->weight_views[at] = weight->view;
        char *data = (char *)model->mapped + weight->offset;
        model->weight_views[at].data = data;
        int32_t number = 0;
        if (weight->view.rank == 0) memcpy(&number, data, sizeof number);
        model->weights[at] = weight->view.rank == 0 ? moec_of_number(number) : moec_of_view(model->weight_views + at);
    }
    return MOEC_OK;
}

static moec_error load(moec_model *model, const char *path, int32_t threads) {
    const moec_program *program = model->program;
    moec_error error = moec_check_machine(program);
    if (error == MOEC_OK) error = map_weights(model, path);
    if (error == MOEC_OK) error = check_stamp(model, path);
    if (error == MOEC_OK) error = place_weights(model);
    if (error != MOEC_OK) return error;
    int32_t cores = moec_core_count();
    int32_t wanted = threads > 0 ? threads : program->threads > 0 ? program->threads : cores;
    model->threads = wanted < cores ? wanted : cores;
    model->arena = moec_arena_new();
    if (model->arena == NULL) return moec_fail(MOEC_ERROR_MEMORY, "there is not enough memory to load %s", program->name);
    if (model->threads > 1 && (model->team = moec_team_new(model->threads)) == NULL)
        return moec_fail(MOEC_ERROR_MEMORY, "%d threads cannot be started; load with threads = 1", model->threads);
    return MOEC_OK;
}

moec_error moec_load(const moec_program *program, const char *weights, const moec_options *options,
                     moec_model **model) {
    if (program == NULL || model == NULL) return moec_fail(MOEC_ERROR_ARGUMENT, "the program or the model is NULL");
    *model = NULL;
    if (program->abi != MOEC_ABI)
        return moec_fail(MOEC_ERROR_ARGUMENT, "the program's library has version %u; expected %u: compile models that "
                         "run in one process with one version of moec", program->abi, MOEC_ABI);
    if (options != NULL && (options->threads < 0 || options->reserved != 0))
        return moec_fail(MOEC_ERROR_ARGUMENT, "the options have %d threads and %d in the reserved field; expected 0 or "
                         "more threads, and 0", options->threads, options->reserved);
    moec_model *loaded = calloc(1, sizeof *loaded);
    if (loaded == NULL) return moec_fail(MOEC_ERROR_MEMORY, "there is not enough memory to load %s", program->name);
    loaded->program = program, loaded->file = -1;
    pthread_mutex_init(&loaded->turn, NULL);
    moec_error error = load(loaded, weights, options == NULL ? 0 : options->threads);
    if (error == MOEC_OK)
        *model = loaded;
    else
        moec_free(loaded);
    return error;
}

void moec_free(moec_model *model) {
    if (model == NULL) return;
    moec_team_free(model->team);
    moec_arena_free(model->arena);
    free(model->weights);
    free(model->weight_views);
    if (model->mapped != NULL) munmap(model->mapped, model->program->weight_bytes);
    if (model->file >= 0) close(model->file);
    pthread_mutex_destroy(&model->turn);
    free(model);
}

/* MoE blocks of a model as custom operators of ONNX Runtime, which registers them by RegisterCustomOps.
 *
 * An operator is a program of this library. A node of it is the program with weights, those of the file
 * weights/<digest>.bin beside the library. Attributes of the node are the digest, the SHA-256 of the file, and its stamp, so
 * that no model runs with the weights of another. Inputs are read and outputs written where ONNX Runtime has them. */

#define _GNU_SOURCE /* dladdr */

#include "moec_ops.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TRY(call)                            \
    do {                                     \
        OrtStatus *status_ = (call);         \
        if (status_ != NULL) return status_; \
    } while (0)

enum { DIGEST = 64, STAMP = 16, MOST_INPUTS = 8 };

typedef struct {
    OrtCustomOp base; /* first, because ONNX Runtime passes its address back */
    const moec_program *program;
} moec_operator;

/* The place among the inputs of a size of the output; input -1 stands for a number. */
typedef struct {
    int32_t input, axis;
} moec_place;

typedef struct {
    moec_program program; /* with the stamp of its weights */
    moec_model *model;    /* without an arena between runs */
    pthread_mutex_t turn; /* held during a run */
    int32_t threads;      /* of the session, as far as they were seen */
    moec_place places[MOEC_MAX_RANK];
} moec_node;

const OrtApi *moec_ops_api;

static pthread_mutex_t registering = PTHREAD_MUTEX_INITIALIZER;
static OrtCustomOpDomain *domain;
static moec_operator *operators;
static char folder[PATH_MAX]; /* of this library */

static OrtStatus *failed(moec_error error) {
    OrtErrorCode code = error == MOEC_ERROR_INPUT ? ORT_INVALID_ARGUMENT : ORT_FAIL;
    return moec_ops_api->CreateStatus(code, moec_last_error());
}

/* Element types. */

static const ONNXTensorElementDataType types[] = {
    [MOEC_BOOL] = ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,       [MOEC_INT8] = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
    [MOEC_INT16] = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,     [MOEC_INT32] = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
    [MOEC_INT64] = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,     [MOEC_UINT8] = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
    [MOEC_UINT16] = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,   [MOEC_UINT32] = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
    [MOEC_UINT64] = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,   [MOEC_FLOAT16] = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
    [MOEC_BFLOAT16] = ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, [MOEC_FLOAT32] = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
    [MOEC_FLOAT64] = ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
    [MOEC_FLOAT8_E4M3FN] = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN,
    [MOEC_FLOAT8_E5M2] = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2,
};

/* Runs. */

static OrtStatus *read_shape(const OrtTensorTypeAndShapeInfo *info, moec_tensor *tensor) {
    size_t rank;
    TRY(moec_ops_api->GetDimensionsCount(info, &rank));
    if (rank > MOEC_MAX_RANK) return failed(moec_fail(MOEC_ERROR_INPUT, "an input has rank %zu", rank));
    tensor->rank = (int32_t)rank;
    return moec_ops_api->GetDimensions(info, tensor->shape, rank);
}

/* Describe an input. ONNX Runtime has checked its type, which is the operator's. */
static OrtStatus *read_input(const OrtKernelContext *context, size_t at, moec_type type, moec_tensor *tensor) {
    const OrtValue *value;
    OrtTensorTypeAndShapeInfo *info;
    TRY(moec_ops_api->KernelContext_GetInput(context, at, &value));
    TRY(moec_ops_api->GetTensorTypeAndShape(value, &info));
    OrtStatus *status = read_shape(info, tensor);
    moec_ops_api->ReleaseTensorTypeAndShapeInfo(info);
    if (status != NULL) return status;
    tensor->type = type;
    return moec_ops_api->GetTensorMutableData((OrtValue *)value, &tensor->data);
}

/* Let ONNX Runtime allocate the output, whose sizes are numbers or those of inputs. */
static OrtStatus *place_output(const moec_node *node, OrtKernelContext *context, const moec_tensor *inputs,
                               moec_tensor *output) {
    const moec_spec *spec = node->model->program->outputs;
    OrtValue *value;
    for (int32_t axis = 0; axis < spec->rank; axis++) {
        moec_place place = node->places[axis];
        output->shape[axis] = place.input < 0 ? spec->sizes[axis] : inputs[place.input].shape[place.axis];
    }
    TRY(moec_ops_api->KernelContext_GetOutput(context, 0, output->shape, (size_t)spec->rank, &value));
    output->type = spec->type, output->rank = spec->rank, output->bytes = moec_bytes_of(output);
    return moec_ops_api->GetTensorMutableData(value, &output->data);
}

static moec_error run(moec_node *node, const OrtKernelContext *context, const moec_tensor *inputs,
                      moec_tensor *output) {
    moec_arena *arena = moec_ops_take_arena();
    if (arena == NULL) return moec_fail(MOEC_ERROR_MEMORY, "there is not enough memory for a run");
    pthread_mutex_lock(&node->turn);
    node->model->arena = arena;
    moec_ops_use_threads(context, &node->threads);
    moec_error error = moec_run(node->model, inputs, (size_t)node->program.input_count, output, 1);
    moec_ops_use_threads(NULL, NULL);
    node->model->arena = NULL;
    pthread_mutex_unlock(&node->turn);
    moec_ops_give_arena(arena);
    return error;
}

static OrtStatus *compute(void *state, OrtKernelContext *context) {
    moec_node *node = state;
    const moec_program *program = node->model->program;
    moec_tensor inputs[MOST_INPUTS] = {{0}}, output = {0};
    for (int32_t at = 0; at < program->input_count; at++)
        TRY(read_input(context, (size_t)at, program->inputs[at].type, inputs + at));
    TRY(place_output(node, context, inputs, &output));
    if (output.bytes == 0) return NULL;
    moec_error error = run(node, context, inputs, &output);
    return error == MOEC_OK ? NULL : failed(error);
}

/* Nodes. */

/* Find the sizes of the output among those of the inputs. */
static OrtStatus *find_places(const moec_program *program, moec_place *places) {
    const moec_spec *output = program->outputs;
    for (int32_t axis = 0; axis < output->rank; axis++) {
        const char *name = output->size_names[axis];
        bool is_found = name == NULL;
        places[axis] = (moec_place){-1, 0};
        for (int32_t input = 0; input < program->input_count && !is_found; input++) {
            const moec_spec *spec = program->inputs + input;
            for (int32_t at = 0; at < spec->rank && !is_found; at++) {
                is_found = spec->size_names[at] != NULL && strcmp(spec->size_names[at], name) == 0;
                places[axis] = (moec_place){input, at};
            }
        }
        if (!is_found)
            return failed(moec_fail(MOEC_ERROR_DEFECT, "no input of %s has the size %s", program->name, name));
    }
    return NULL;
}

/* Read an attribute of so many hexadecimal digits. A model is untrusted: another text could name any file. */
static OrtStatus *read_digits(const OrtKernelInfo *info, const char *name, size_t count, char *digits) {
    size_t size = count + 1;
    OrtStatus *status = moec_ops_api->KernelInfoGetAttribute_string(info, name, digits, &size);
    bool is_read = status == NULL;
    moec_ops_api->ReleaseStatus(status);
    if (!is_read || size != count + 1 || strspn(digits, "0123456789abcdef") != count)
        return failed(moec_fail(MOEC_ERROR_INPUT, "the attribute '%s' has not %zu hexadecimal digits; export the model "
                                "again", name, count));
    return NULL;
}

static OrtStatus *load(const OrtKernelInfo *info, moec_node *node) {
    char digest[DIGEST + 1], stamp[STAMP + 1], path[PATH_MAX + DIGEST + sizeof "/weights/.bin"];
    TRY(find_places(&node->program, node->places));
    TRY(read_digits(info, "weights", DIGEST, digest));
    TRY(read_digits(info, "stamp", STAMP, stamp));
    node->program.weight_stamp = strtoull(stamp, NULL, 16);
    snprintf(path, sizeof path, "%s/weights/%s.bin", folder, digest);
    moec_error error = moec_load(&node->program, path, &(moec_options){.threads = 1}, &node->model);
    if (error != MOEC_OK) return failed(error);
    moec_ops_give_arena(node->model->arena);
    node->model->arena = NULL;
    return NULL;
}

static void destroy(void *state) {
    moec_node *node = state;
    moec_free(node->model);
    pthread_mutex_destroy(&node->turn);
    free(node);
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **state) {
    (void)api;
    moec_node *node = calloc(1, sizeof *node);
    if (node == NULL) return moec_ops_api->CreateStatus(ORT_FAIL, "there is not enough memory");
    pthread_mutex_init(&node->turn, NULL);
    node->threads = 1;
    node->program = *((const moec_operator *)op)->program;
    OrtStatus *status = load(info, node);
    if (status == NULL)
        *state = node;
    else
        destroy(node);
    return status;
}

/* Operators. */

static const char *name_of(const OrtCustomOp *op) { return ((const moec_operator *)op)->program->name; }

static const char *provider_of(const OrtCustomOp *op) {
    (void)op;
    return "CPUExecutionProvider";
}

static ONNXTensorElementDataType input_type(const OrtCustomOp *op, size_t at) {
    return types[((const moec_operator *)op)->program->inputs[at].type];
}

static size_t input_count(const OrtCustomOp *op) { return (size_t)((const moec_operator *)op)->program->input_count; }

static ONNXTensorElementDataType output_type(const OrtCustomOp *op, size_t at) {
    return types[((const moec_operator *)op)->program->outputs[at].type];
}

static size_t output_count(const OrtCustomOp *op) { return (size_t)((const moec_operator *)op)->program->output_count; }

static OrtCustomOpInputOutputCharacteristic always_there(const OrtCustomOp *op, size_t at) {
    (void)op, (void)at;
    return INPUT_OUTPUT_REQUIRED;
}

static OrtMemType in_default_memory(const OrtCustomOp *op, size_t at) {
    (void)op, (void)at;
    return OrtMemTypeDefault;
}

static int first_version(const OrtCustomOp *op) {
    (void)op;
    return 1;
}

static int last_version(const OrtCustomOp *op) {
    (void)op;
    return INT_MAX;
}

static moec_operator operator_of(const moec_program *program) {
    OrtCustomOp base = {
        .version = MOEC_OPS_API,
        .GetName = name_of,
        .GetExecutionProviderType = provider_of,
        .GetInputType = input_type,
        .GetInputTypeCount = input_count,
        .GetOutputType = output_type,
        .GetOutputTypeCount = output_count,
        .GetInputCharacteristic = always_there,
        .GetOutputCharacteristic = always_there,
        .GetInputMemoryType = in_default_memory,
        .GetStartVersion = first_version,
        .GetEndVersion = last_version,
        .CreateKernelV2 = create,
        .KernelComputeV2 = compute,
        .KernelDestroy = destroy,
    };
    return (moec_operator){base, program};
}

/* Registration. */

static OrtStatus *find_folder(void) {
    Dl_info info;
    if (dladdr(&registering, &info) == 0 || strlen(info.dli_fname) >= PATH_MAX)
        return failed(moec_fail(MOEC_ERROR_FILE, "the system does not say where the library of moec.ops is"));
    char path[PATH_MAX + 2] = "./"; /* of a name without a folder */
    strcpy(path + (strchr(info.dli_fname, '/') == NULL ? 2 : 0), info.dli_fname);
    *(strrchr(path, '/') + 1) = '\0';
    if (realpath(path, folder) == NULL) return failed(moec_fail(MOEC_ERROR_FILE, "%s: cannot be opened", path));
    return NULL;
}

static OrtStatus *make_domain(void) {
    size_t count = 0;
    TRY(find_folder());
    while (moec_ops_programs[count] != NULL) count++;
    if (operators == NULL) operators = calloc(count, sizeof *operators);
    if (operators == NULL) return moec_ops_api->CreateStatus(ORT_FAIL, "there is not enough memory");
    OrtCustomOpDomain *made;
    TRY(moec_ops_api->CreateCustomOpDomain("moec.ops", &made));
    for (size_t at = 0; at < count; at++) {
        operators[at] = operator_of(moec_ops_programs[at]);
        OrtStatus *status = moec_ops_api->CustomOpDomain_Add(made, &operators[at].base);
        if (status == NULL) continue;
        moec_ops_api->ReleaseCustomOpDomain(made);
        return status;
    }
    domain = made;
    return NULL;
}

/* ONNX Runtime unloads the library after its last session. */
__attribute__((destructor)) static void forget(void) {
    if (domain != NULL) moec_ops_api->ReleaseCustomOpDomain(domain);
    free(operators);
    moec_ops_free_arenas();
}

__attribute__((visibility("default"))) OrtStatus *RegisterCustomOps(OrtSessionOptions *options,
                                                                    const OrtApiBase *runtime) {
    const OrtApi *api = runtime->GetApi(MOEC_OPS_API);
    if (api == NULL) return runtime->GetApi(1)->CreateStatus(ORT_FAIL, "moec.ops needs ONNX Runtime 1.21 or newer");
    pthread_mutex_lock(&registering);
    moec_ops_api = api;
    OrtStatus *status = domain == NULL ? make_domain() : NULL;
    pthread_mutex_unlock(&registering);
    return status != NULL ? status : api->AddCustomOpDomain(options, domain);
}

/* Runs one compiled kernel on arrays from a file, for processors that these tests emulate: no TVM library is needed.

   driver ARRAYS RESULTS. ARRAYS: int64 count, then of every array int32 type code, bits, lanes, number of dimensions,
   int64 sizes, int64 bytes, and the bytes. RESULTS gets the bytes of all arrays after the call. Like the arrays of
   guarded.py, every array ends where a page without access begins. */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <tvm/ffi/c_api.h>
#include <unistd.h>

enum { MOST_ARRAYS = 32, MOST_DIMENSIONS = 8, LINE = 64, TASKS = 3 };

typedef struct {
  void* sync_handle;
  int32_t task_count;
} TaskGroup;
typedef int (*Task)(int task, TaskGroup* group, void* closure);

int __tvm_ffi_kernel(void* self, TVMFFIAny* arguments, int32_t count, TVMFFIAny* result);

/* What compiled kernels call. Tasks run one after the other: they must not depend on each other. */

void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < count; i++) fputs(parts[i], stderr);
  fputc('\n', stderr);
}

static int run_tasks(Task task, void* closure, int count) {
  TaskGroup group = {NULL, count > 0 ? count : TASKS};
  for (int i = 0; i < group.task_count; i++) {
    int status = task(i, &group, closure);
    if (status != 0) return status;
  }
  return 0;
}

static void* allocate(int device_type, int device, uint64_t bytes, int code, int bits) {
  return aligned_alloc(LINE, (bytes + LINE - 1) / LINE * LINE);
}

static int release(int device_type, int device, void* memory) {
  free(memory);
  return 0;
}

int (*__TVMBackendParallelLaunch)(Task, void*, int) = run_tasks;
void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate;
int (*__TVMBackendFreeWorkspace)(int, int, void*) = release;

static void stop(const char* reason) {
  fprintf(stderr, "driver: %s\n", reason);
  exit(2);
}

static void* guarded(size_t bytes) {
  size_t page = sysconf(_SC_PAGESIZE), used = (bytes + LINE - 1) / LINE * LINE, size = (used + page - 1) / page * page;
  char* memory = mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory + size, page, PROT_NONE) != 0) stop("no memory");
  return memory + size - used;
}

static void take(void* target, size_t bytes, FILE* file) {
  if (bytes > 0 && fread(target, bytes, 1, file) != 1) stop("the file of arrays is too short");
}

int main(int count, char** names) {
  static DLTensor tensors[MOST_ARRAYS];
  static int64_t sizes[MOST_ARRAYS][MOST_DIMENSIONS], strides[MOST_ARRAYS][MOST_DIMENSIONS], bytes[MOST_ARRAYS];
  static TVMFFIAny arguments[MOST_ARRAYS], result;
  int64_t arrays;
  FILE* file = count == 3 ? fopen(names[1], "rb") : NULL;
  if (file == NULL) stop("usage: driver ARRAYS RESULTS");
  take(&arrays, sizeof arrays, file);
  if (arrays > MOST_ARRAYS) stop("too many arrays");
  for (int64_t i = 0; i < arrays; i++) {
    int32_t type[4];
    take(type, sizeof type, file);
    if (type[3] > MOST_DIMENSIONS) stop("too many dimensions");
    take(sizes[i], type[3] * sizeof(int64_t), file);
    take(&bytes[i], sizeof(int64_t), file);
    for (int32_t axis = type[3] - 1; axis >= 0; axis--)
      strides[i][axis] = axis == type[3] - 1 ? 1 : strides[i][axis + 1] * sizes[i][axis + 1];
    DLTensor tensor = {guarded(bytes[i]), {kDLCPU, 0}, type[3], {type[0], type[1], type[2]}, sizes[i], strides[i], 0};
    tensors[i] = tensor;
    take(tensors[i].data, bytes[i], file);
    arguments[i].type_index = kTVMFFIDLTensorPtr;
    arguments[i].v_ptr = &tensors[i];
  }
  fclose(file);
  if (__tvm_ffi_kernel(NULL, arguments, arrays, &result) != 0) return 1;
  file = fopen(names[2], "wb");
  for (int64_t i = 0; file != NULL && i < arrays; i++)
    if (bytes[i] > 0 && fwrite(tensors[i].data, bytes[i], 1, file) != 1) stop("the results cannot be written");
  return file == NULL || fclose(file) != 0;
}

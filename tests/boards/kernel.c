/* Runs one kernel without TVM's runtime: program INPUT OUTPUT.
 *
 * INPUT: int32 count, then for each parameter int32 bits of a float, int32 ndim, int64 sizes, values;
 * the last one is the output, whose values go to OUTPUT. Kernels that start threads run their tasks in turn. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

#define MAX 8
typedef struct {
  void *sync_handle;
  int32_t num_task;
} Group;
typedef int (*Task)(int, Group *, void *);

extern int __tvm_ffi_main(void *, const TVMFFIAny *, int32_t, TVMFFIAny *);
extern void *__TVMBackendParallelLaunch __attribute__((weak));
extern void *__TVMBackendAllocWorkspace __attribute__((weak));
extern void *__TVMBackendFreeWorkspace __attribute__((weak));

static int launch(Task task, void *data, int count) {
  Group group = {NULL, count > 0 ? count : TASKS};
  for (int i = 0; i < group.num_task; ++i)
    if (task(i, &group, data)) return -1;
  return 0;
}

static void *workspace(int kind, int id, uint64_t bytes, int code, int bits) {
  void *memory = NULL;
  (void)kind, (void)id, (void)code, (void)bits;
  return posix_memalign(&memory, 64, bytes) ? NULL : memory;
}

static int release(int kind, int id, void *memory) {
  (void)kind, (void)id;
  free(memory);
  return 0;
}

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int i = 0; i < count; ++i)
    if (parts[i]) fputs(parts[i], stderr);
  fputs("\n", stderr);
  exit(3);
}

#ifdef __arm__
void __aeabi_unwind_cpp_pr0(void) {}
void __aeabi_unwind_cpp_pr1(void) {}
#endif

static void get(void *into, size_t size, FILE *file) {
  if (fread(into, 1, size, file) != size) {
    fputs("the input is too short\n", stderr);
    exit(2);
  }
}

int main(int argc, char **argv) {
  DLTensor tensors[MAX];
  TVMFFIAny arguments[MAX], result;
  int32_t count = 0, bits = 0;
  size_t bytes = 0;
  FILE *file = argc == 3 ? fopen(argv[1], "rb") : NULL;
  if (!file) return 2;
  get(&count, sizeof count, file);
  memset(tensors, 0, sizeof tensors);
  memset(arguments, 0, sizeof arguments);
  memset(&result, 0, sizeof result);
  for (int i = 0; i < count && i < MAX; ++i) {
    DLTensor *t = &tensors[i];
    get(&bits, sizeof bits, file);
    get(&t->ndim, sizeof t->ndim, file);
    t->shape = calloc(t->ndim, sizeof(int64_t));
    get(t->shape, t->ndim * sizeof(int64_t), file);
    bytes = bits / 8;
    for (int d = 0; d < t->ndim; ++d) bytes *= t->shape[d];
    if (posix_memalign(&t->data, 64, bytes)) return 2;
    get(t->data, bytes, file);
    t->device.device_type = kDLCPU;
    t->dtype.code = kDLFloat;
    t->dtype.bits = bits;
    t->dtype.lanes = 1;
    arguments[i].type_index = kTVMFFIDLTensorPtr;
    arguments[i].v_ptr = t;
  }
  fclose(file);
  if (&__TVMBackendParallelLaunch) __TVMBackendParallelLaunch = (void *)launch;
  if (&__TVMBackendAllocWorkspace) __TVMBackendAllocWorkspace = (void *)workspace;
  if (&__TVMBackendFreeWorkspace) __TVMBackendFreeWorkspace = (void *)release;
  if (__tvm_ffi_main(NULL, arguments, count, &result)) return 4;
  file = fopen(argv[2], "wb");
  if (!file || fwrite(tensors[count - 1].data, 1, bytes, file) != bytes) return 5;
  return fclose(file) ? 5 : 0;
}

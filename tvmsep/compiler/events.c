/* Times on a CUDA device, linked into what is measured there: candidates, and networks whose
 * kernels are timed in their places.
 *
 * CUDA's events are taken from the runtime library that TVM's own has loaded; the library names no
 * symbol of CUDA, so it links without CUDA and loads where TVM does. All work goes to the default
 * stream, as TVM's does, and nothing waits until all has been queued: while the device sweeps its
 * cache the host has time to queue the kernel, so a time is the device's and not the launch's. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>

/* TVM's ABI: tvm/ffi/c_api.h, dlpack/dlpack.h. */
typedef struct {
  int32_t type;
  uint32_t padding;
  union {
    int64_t number;
    void* pointer;
  };
} Any;
enum { NONE = 0, INT = 1, TENSOR_VIEW = 7, TENSOR = 70, OBJECT_BYTES = 24 };
typedef struct {
  void* data;
  int32_t device, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t offset;
} Tensor;
extern void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message);
extern void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count);

#define EXPORT __attribute__((visibility("default")))
__attribute__((weak)) extern int __tvm_ffi_tvmsep_kernel(void*, const Any*, int32_t, Any*);

typedef void* Event;
enum { DEVICE_TO_DEVICE = 3 };
static struct {
  int (*create)(Event*);
  int (*record)(Event, void* stream);
  int (*wait)(Event);
  int (*elapsed)(float* milliseconds, Event, Event);
  int (*copy)(void*, const void*, size_t, int kind, void* stream);
  const char* (*words)(int error);
} cuda;

static Event* events;
static int32_t* ids;
static int64_t room, used;
static int error; /* the first of those that `tvmsep_mark` met */

static int fail(const char* what, const char* why) {
  const char* parts[] = {what, why};
  TVMFFIErrorSetRaisedFromCStrParts("CUDAError", parts, 2);
  return -1;
}

static int failed(int code, const char* what) {
  return code ? fail(what, cuda.words(code)) : 0;
}

static int load(void) {
  if (cuda.words) return 0;
  void* library = dlopen("libcudart.so.13", RTLD_LAZY | RTLD_NOLOAD);
  if (!library) return fail("no CUDA runtime: ", "TVM has not loaded libcudart.so.13 here");
  const char* names[] = {"cudaEventCreate", "cudaEventRecord", "cudaEventSynchronize",
                         "cudaEventElapsedTime", "cudaMemcpyAsync", "cudaGetErrorString"};
  void* found[6];
  for (int i = 0; i < 6; i++)
    if (!(found[i] = dlsym(library, names[i]))) return fail("libcudart.so.13 lacks ", names[i]);
  __builtin_memcpy(&cuda, found, sizeof cuda);
  return 0;
}

/* The event at place `at`, made at first use; CUDA's error. */
static int event(int64_t at, Event* out) {
  if (at >= room) {
    int64_t more = room ? 2 * room : 256;
    while (more <= at) more *= 2;
    Event* e = realloc(events, more * sizeof *e);
    if (e) events = e;
    int32_t* i = realloc(ids, more * sizeof *i);
    if (i) ids = i;
    if (!e || !i) return 2; /* cudaErrorMemoryAllocation */
    for (int64_t k = room; k < more; k++) events[k] = NULL;
    room = more;
  }
  int code = events[at] ? 0 : cuda.create(&events[at]);
  *out = events[at];
  return code;
}

static int record(int64_t at) {
  Event e;
  int code = event(at, &e);
  return code ? code : cuda.record(e, NULL);
}

static Tensor* tensor(const Any* a) {
  if (a->type == TENSOR_VIEW) return a->pointer;
  return a->type == TENSOR ? (Tensor*)((char*)a->pointer + OBJECT_BYTES) : NULL;
}

static int64_t bytes_of(const Tensor* t) {
  int64_t count = ((int64_t)t->bits * t->lanes + 7) / 8;
  for (int32_t i = 0; i < t->ndim; i++) count *= t->shape[i];
  return count;
}

static char* data(const Tensor* t) { return (char*)t->data + t->offset; }

static void nothing(Any* result) {
  result->type = NONE;
  result->padding = 0;
  result->number = 0;
}

/* `(source, *kernel parameters, sweep, times, repeats)`: in each repeat the device copies one half
 * of `sweep` over the other, which leaves nothing else in its L2, then `source` over the first
 * parameter, as a producer would have written it, and then runs the kernel between two events.
 * `times`, float64 [rows, 2] on the host: seconds from the first kernel's begin to this one's, and
 * of this one. */
EXPORT int __tvm_ffi_tvmsep_time(void* self, const Any* args, int32_t count, Any* result) {
  (void)self;
  nothing(result);
  if (load()) return -1;
  if (count < 6 || !__tvm_ffi_tvmsep_kernel || args[count - 1].type != INT)
    return fail("tvmsep_time: ", "not what it is called with");
  Tensor *source = tensor(args), *sweep = tensor(args + count - 3), *out = tensor(args + count - 2);
  Tensor* input = tensor(args + 1);
  int64_t repeats = args[count - 1].number;
  if (!source || !input || !sweep || !out || bytes_of(source) != bytes_of(input) || repeats < 1 ||
      out->ndim != 2 || out->bits != 64 || out->shape[0] < repeats)
    return fail("tvmsep_time: ", "not what it is called with");
  int64_t half = bytes_of(sweep) / 2;
  for (int64_t r = 0; r < repeats; r++) {
    if (failed(cuda.copy(data(sweep), data(sweep) + half, half, DEVICE_TO_DEVICE, NULL),
               "sweeping the cache: ") ||
        failed(cuda.copy(data(input), data(source), bytes_of(source), DEVICE_TO_DEVICE, NULL),
               "writing the input: ") ||
        failed(record(2 * r), "cudaEventRecord: "))
      return -1;
    Any ignored = {.type = NONE};
    if (__tvm_ffi_tvmsep_kernel(NULL, args + 1, count - 4, &ignored)) return -1;
    if (failed(record(2 * r + 1), "cudaEventRecord: ")) return -1;
  }
  if (failed(cuda.wait(events[2 * repeats - 1]), "the kernel: ")) return -1;
  double* rows = (double*)data(out);
  for (int64_t r = 0; r < repeats; r++) {
    float since, own;
    if (failed(cuda.elapsed(&since, events[0], events[2 * r]), "cudaEventElapsedTime: ") ||
        failed(cuda.elapsed(&own, events[2 * r], events[2 * r + 1]), "cudaEventElapsedTime: "))
      return -1;
    rows[2 * r] = since * 1e-3;
    rows[2 * r + 1] = own * 1e-3;
  }
  return 0;
}

/* Called by a network's functions: `id` after the launch of what it names, `~id` before. Of the
 * latter only those of the function that ran first are recorded: they begin a run of the network,
 * and elsewhere the end of one kernel begins the next. */
EXPORT int32_t tvmsep_mark(int32_t id) {
  static int32_t first;
  if (!cuda.words && load()) return -1; /* `tvmsep_marks` meets it again, and can say so */
  if (id < 0 && !used) first = id;
  if (id < 0 && id != first) return 0;
  int code = record(used);
  if (!code) ids[used++] = id;
  if (!error) error = code;
  return code;
}

/* `(ids, seconds)`, int32 and float64 [rows] on the host, gets what was marked since the last call:
 * each function in the order of the launches, and the time from the mark before. Answers how many
 * there are, also where there is no room for all of them. */
EXPORT int __tvm_ffi_tvmsep_marks(void* self, const Any* args, int32_t count, Any* result) {
  (void)self;
  nothing(result);
  int64_t marks = used, rows = 0;
  int code = error;
  used = error = 0;
  if (load() || failed(code, "cudaEventRecord: ")) return -1;
  Tensor *who = count == 2 ? tensor(args) : NULL, *time = count == 2 ? tensor(args + 1) : NULL;
  if (!who || !time || who->bits != 32 || time->bits != 64 || who->ndim != 1 || time->ndim != 1)
    return fail("tvmsep_marks: ", "not what it is called with");
  int64_t most = who->shape[0] < time->shape[0] ? who->shape[0] : time->shape[0];
  if (marks && failed(cuda.wait(events[marks - 1]), "the network: ")) return -1;
  for (int64_t i = 1; i < marks; i++) {
    if (ids[i] < 0) continue;
    if (rows < most) {
      float own;
      if (failed(cuda.elapsed(&own, events[i - 1], events[i]), "cudaEventElapsedTime: ")) return -1;
      ((int32_t*)data(who))[rows] = ids[i];
      ((double*)data(time))[rows] = own * 1e-3;
    }
    rows++;
  }
  result->type = INT;
  result->number = rows;
  return 0;
}

// A stand-in for libcuda.so.1: modules are libraries that tvmsep.emulator compiled for this CPU.
//
// Environment: TVMSEP_EMULATOR_ARCH=sm_87 is what the device says it is; TVMSEP_EMULATOR_SEED is the
// order of threads; TVMSEP_EMULATOR_FAULT is a list, by commas, of memory:BYTES (the device has no
// more) and, with the name of a kernel or *, launch:, address:, failed: and hang:.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "device.h"
#include "emulator.h"

#define PAGE 4096
#define FILL 0xff /* new memory is undefined: NaN */
#define DEFAULT_MEMORY ((size_t)8 << 30)
#define STATIC_SHARED (48 * 1024)

typedef struct {
  void* handle;
  int file;
  int (*launch)(const char*, emu_launch*);
  const emu_kernel* (*find)(const char*);
} module;

typedef struct {
  module* module;
  const emu_kernel* kernel;
  size_t max_dynamic;
} function;

typedef struct {
  uint32_t grid[3], block[3], shared;
  void *stream, *attributes;
  uint32_t n_attributes;
} launch_config;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static emu_range* allocations;  // in ascending order
static size_t n_allocations, room, used;
static int sticky;
static char why[600];

// --- faults --------------------------------------------------------------------------------------

// The value of `kind:VALUE` in the list, or NULL.
static const char* fault(const char* kind, size_t* length) {
  const char* at = getenv("TVMSEP_EMULATOR_FAULT");
  size_t n = strlen(kind);
  while (at && *at) {
    size_t whole = strcspn(at, ",");
    if (whole > n && !strncmp(at, kind, n) && at[n] == ':') {
      *length = whole - n - 1;
      return at + n + 1;
    }
    at += whole + (at[whole] == ',');
  }
  return NULL;
}

static int faulty(const char* kind, const char* kernel) {
  size_t n = 0;
  const char* name = fault(kind, &n);
  return name && ((n == 1 && *name == '*') || (strlen(kernel) == n && !strncmp(name, kernel, n)));
}

static size_t total_memory(void) {
  size_t n = 0;
  const char* bytes = fault("memory", &n);
  return bytes ? strtoull(bytes, NULL, 10) : DEFAULT_MEMORY;
}

static int fail(int code, const char* kind, const char* detail) {
  sticky = code;
  snprintf(why, sizeof why, "%s: %s", kind, detail);
  fprintf(stderr, "tvmsep.emulator: %s\n", why);
  return SUCCESS;  // a kernel's error is seen by the calls after its launch
}

int emu_sticky(void) { return sticky; }
void emu_reset(void) { sticky = 0, why[0] = 0; }

// --- the device ----------------------------------------------------------------------------------

const emu_facts* emu_device_facts(void) {
  static emu_facts f;
  const char* arch = getenv("TVMSEP_EMULATOR_ARCH");
  int c = arch && !strncmp(arch, "sm_", 3) ? atoi(arch + 3) : 87;
  // Shared memory, threads and blocks by compute capability: CUDA C++ Programming Guide, table of
  // technical specifications.
  int big = c >= 90 && c < 120 ? 228 : c == 80 || c == 87 ? 164 : c >= 86 ? 100 : c >= 70 && c < 75 ? 96 : 64;
  int optin = c >= 80 ? big - 1 : c >= 70 ? big : 48;
  int threads = c == 75 ? 1024 : c == 86 || c == 87 || c == 89 || c >= 120 ? 1536 : 2048;
  f.capability = c, f.sms = 16, f.threads_per_sm = threads, f.l2_bytes = 4 << 20;
  f.blocks_per_sm = c == 75 || c == 86 || c == 87 ? 16 : c == 89 || c >= 120 ? 24 : 32;
  f.shared_per_sm = big * 1024, f.shared_optin = optin * 1024;
  snprintf(f.name, sizeof f.name, "emulated CUDA device");
  return &f;
}

void emu_memory(size_t* free_bytes, size_t* total) {
  *total = total_memory();
  *free_bytes = used < *total ? *total - used : 0;
}

// The place of the first allocation that begins after p.
static size_t after(const void* p) {
  size_t low = 0, high = n_allocations;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (allocations[middle].base > (const char*)p) high = middle;
    else low = middle + 1;
  }
  return low;
}

// An allocation ends where a page begins that cannot be touched, so that overruns are faults.
static size_t mapping(const emu_range* a, char** start) {
  size_t size = (a->bytes + 255) / 256 * 256;
  char* end = a->base + size;
  *start = (char*)((uintptr_t)a->base / PAGE * PAGE) - PAGE;
  return (size_t)(end + PAGE - *start);
}

int emu_malloc(void** out, size_t bytes) {
  *out = NULL;
  if (sticky) return sticky;
  if (!bytes) return SUCCESS;
  size_t size = (bytes + 255) / 256 * 256, pages = (size + PAGE - 1) / PAGE * PAGE;
  pthread_mutex_lock(&lock);
  int code = OUT_OF_MEMORY;
  if (used + size > total_memory()) goto done;
  char* start = mmap(NULL, pages + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) goto done;
  mprotect(start + PAGE, pages, PROT_READ | PROT_WRITE);
  if (n_allocations == room) {
    room = room ? 2 * room : 64;
    emu_range* grown = realloc(allocations, room * sizeof *grown);
    if (!grown) abort();
    allocations = grown;
  }
  char* base = start + PAGE + pages - size;
  memset(base, FILL, size);
  size_t at = after(base);
  memmove(allocations + at + 1, allocations + at, (n_allocations - at) * sizeof *allocations);
  allocations[at] = (emu_range){base, bytes};
  n_allocations++, used += size;
  *out = base, code = SUCCESS;
done:
  pthread_mutex_unlock(&lock);
  return code;
}

int emu_free(void* p) {
  if (!p) return sticky;
  pthread_mutex_lock(&lock);
  size_t at = after(p);
  int code = INVALID_VALUE;
  if (at && allocations[at - 1].base == p) {
    char* start;
    size_t whole = mapping(&allocations[at - 1], &start);
    used -= (allocations[at - 1].bytes + 255) / 256 * 256;
    munmap(start, whole);
    memmove(allocations + at - 1, allocations + at, (n_allocations - at) * sizeof *allocations);
    n_allocations--, code = sticky;
  }
  pthread_mutex_unlock(&lock);
  return code;
}

static int inside(const void* p, size_t bytes) {
  size_t at = after(p);
  const emu_range* a = at ? &allocations[at - 1] : NULL;
  // TVM copies whole allocations that it rounded up itself.
  return a && (const char*)p + bytes <= a->base + (a->bytes + 255) / 256 * 256;
}

int emu_copy(void* to, const void* from, size_t bytes, int to_device, int from_device) {
  if (sticky || !bytes) return sticky;
  pthread_mutex_lock(&lock);
  int sound = (!to_device || inside(to, bytes)) && (!from_device || inside(from, bytes));
  pthread_mutex_unlock(&lock);
  if (!sound) return INVALID_VALUE;
  memmove(to, from, bytes);
  return SUCCESS;
}

// --- errors --------------------------------------------------------------------------------------

static const struct {
  int code;
  const char *driver, *runtime, *text;
} errors[] = {
    {SUCCESS, "CUDA_SUCCESS", "cudaSuccess", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "cudaErrorInvalidValue", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "cudaErrorMemoryAllocation", "out of memory"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "cudaErrorInvalidDevice",
     "invalid device ordinal"},
    {NO_BINARY, "CUDA_ERROR_NO_BINARY_FOR_GPU", "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "cudaErrorInvalidResourceHandle",
     "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "cudaErrorSymbolNotFound", "named symbol not found"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "cudaErrorLaunchOutOfResources",
     "too many resources requested for launch"},
    {MISALIGNED_ADDRESS, "CUDA_ERROR_MISALIGNED_ADDRESS", "cudaErrorMisalignedAddress",
     "misaligned address"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "cudaErrorLaunchFailure",
     "unspecified launch failure"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"},
};

const char* emu_error_name(int code, int driver) {
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].code == code) return driver ? errors[i].driver : errors[i].runtime;
  return "unrecognized error code";
}

const char* emu_error_text(int code) {
  static _Thread_local char text[800];
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
    if (errors[i].code != code) continue;
    if (!code || code != sticky || !why[0]) return errors[i].text;
    snprintf(text, sizeof text, "%s (emulator: %s)", errors[i].text, why);
    return text;
  }
  return "unrecognized error code";
}

EXPORT int cuGetErrorName(int code, const char** out) {
  *out = emu_error_name(code, 1);
  return SUCCESS;
}

EXPORT int cuGetErrorString(int code, const char** out) {
  *out = emu_error_text(code);
  return SUCCESS;
}

// --- modules -------------------------------------------------------------------------------------

#if defined(__x86_64__)
#define MACHINE EM_X86_64
#else
#define MACHINE EM_AARCH64
#endif

// Bytes of the library that begins at `image`, or 0 if none for this CPU does.
static size_t length_of(const char* image) {
  const Elf64_Ehdr* e = (const void*)image;
  if (memcmp(image, ELFMAG, SELFMAG) || e->e_machine != MACHINE || e->e_type != ET_DYN) return 0;
  size_t end = e->e_shoff + (size_t)e->e_shnum * e->e_shentsize;
  const Elf64_Phdr* p = (const void*)(image + e->e_phoff);
  for (int i = 0; i < e->e_phnum; i++)
    if (p[i].p_offset + p[i].p_filesz > end) end = p[i].p_offset + p[i].p_filesz;
  return end;
}

static module* load(const char* image, size_t bytes) {
  module m = {.file = memfd_create("tvmsep-emulator", MFD_CLOEXEC)};
  char path[64];
  for (size_t done = 0; done < bytes;) {
    ssize_t n = write(m.file, image + done, bytes - done);
    if (n <= 0) return close(m.file), NULL;
    done += (size_t)n;
  }
  // The file stays open with the module: its number is its name, which no other may have.
  snprintf(path, sizeof path, "/proc/self/fd/%d", m.file);
  dlopen("libm.so.6", RTLD_NOW | RTLD_GLOBAL);
  m.handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (m.handle) {
    *(void**)&m.launch = dlsym(m.handle, "tvmsep_emulator_launch");
    *(void**)&m.find = dlsym(m.handle, "tvmsep_emulator_kernel");
  } else {
    fprintf(stderr, "tvmsep.emulator: %s\n", dlerror());
  }
  if (!m.launch || !m.find) {
    if (m.handle) dlclose(m.handle);
    return close(m.file), NULL;
  }
  module* kept = malloc(sizeof m);
  if (kept) *kept = m;
  return kept;
}

EXPORT int cuModuleLoadData(module** out, const void* image) {
  *out = NULL;
  if (sticky) return sticky;
  if (!image) return INVALID_VALUE;
  size_t bytes = length_of(image);
  if (bytes) *out = load(image, bytes);
  return *out ? SUCCESS : NO_BINARY;
}

EXPORT int cuModuleUnload(module* m) {
  if (!m) return INVALID_HANDLE;
  dlclose(m->handle);
  close(m->file);
  free(m);
  return sticky;
}

EXPORT int cuModuleGetFunction(function** out, module* m, const char* name) {
  *out = NULL;
  if (sticky) return sticky;
  if (!m || !name) return INVALID_VALUE;
  const emu_kernel* k = m->find(name);
  if (!k) return NOT_FOUND;
  // Never freed: CUDA's go with their module, and TVM asks once a kernel.
  *out = malloc(sizeof **out);
  if (!*out) return OUT_OF_MEMORY;
  size_t fixed = (size_t)(k->shared_end - k->shared);
  **out = (function){m, k, fixed < STATIC_SHARED ? STATIC_SHARED - fixed : 0};
  return SUCCESS;
}

EXPORT int cuFuncSetAttribute(function* f, int attribute, int value) {
  const int max_dynamic = 8;
  if (sticky) return sticky;
  if (!f || value < 0) return INVALID_VALUE;
  if (attribute != max_dynamic) return SUCCESS;
  size_t fixed = (size_t)(f->kernel->shared_end - f->kernel->shared);
  if (fixed + (size_t)value > (size_t)emu_device_facts()->shared_optin) return INVALID_VALUE;
  f->max_dynamic = (size_t)value;
  return SUCCESS;
}

EXPORT int cuLaunchKernelEx(const launch_config* c, function* f, void** arguments, void** extra) {
  (void)extra;
  if (sticky) return sticky;
  if (!c || !f) return INVALID_VALUE;
  const char* name = f->kernel->name;
  if (faulty("launch", name)) return OUT_OF_RESOURCES;
  if (faulty("hang", name)) for (;;) pause();
  if (faulty("address", name)) return fail(ILLEGAL_ADDRESS, "fault asked for", name);
  if (faulty("failed", name)) return fail(LAUNCH_FAILED, "fault asked for", name);
  size_t fixed = (size_t)(f->kernel->shared_end - f->kernel->shared);
  if (fixed > STATIC_SHARED || c->shared > f->max_dynamic) return INVALID_VALUE;
  const char* seed = getenv("TVMSEP_EMULATOR_SEED");
  emu_launch l = {.dynamic_shared = c->shared, .arguments = arguments,
                  .seed = seed ? strtoull(seed, NULL, 10) : 0};
  memcpy(l.grid, c->grid, sizeof l.grid);
  memcpy(l.block, c->block, sizeof l.block);
  pthread_mutex_lock(&lock);
  l.ranges = allocations, l.n_ranges = n_allocations;
  int status = f->module->launch(name, &l);
  pthread_mutex_unlock(&lock);
  switch (status) {
    case EMU_OK: return SUCCESS;
    case EMU_ADDRESS: return fail(ILLEGAL_ADDRESS, "address", l.message);
    case EMU_MISALIGNED: return fail(MISALIGNED_ADDRESS, "misaligned", l.message);
    case EMU_RACE: return fail(LAUNCH_FAILED, "race", l.message);
    case EMU_DIVERGENCE: return fail(LAUNCH_FAILED, "divergence", l.message);
    default: return INVALID_VALUE;
  }
}

EXPORT int cuDeviceGetName(char* out, int room_for_it, int device) {
  if (device) return INVALID_DEVICE;
  snprintf(out, (size_t)room_for_it, "%s", emu_device_facts()->name);
  return SUCCESS;
}

EXPORT int cuTensorMapEncodeTiled(void) { return INVALID_VALUE; }
